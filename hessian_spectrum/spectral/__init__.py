"""Spectral measures and eigenpairs, their queries and their errors. NumPy only: no torch."""
