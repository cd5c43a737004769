"""Operator -> result: densities, eigenpairs, linear systems."""
