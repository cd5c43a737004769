"""Studies of papers' claims and of our own, run by ``python -m benchmarks``."""
