"""Models larger than one device: parameters, derivatives and Krylov vectors over all ranks."""
