"""Job scripts for SLURM and mpirun, and their submission."""
