"""Symmetric operators on sharded vectors, and the ways to multiply by a curvature matrix."""
