"""Compute -> save -> resume -> stop on signal, one command a file: numerics and storage meet."""
