"""Curvature while a network trains."""
