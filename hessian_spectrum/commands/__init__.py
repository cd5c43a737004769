"""Compute, save, resume, stop on a signal: one command a file."""
