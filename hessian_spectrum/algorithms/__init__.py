"""Algorithms on operators: spectral densities, eigenpairs, linear systems."""
