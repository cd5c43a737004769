"""Compute, save, resume, stop on a signal.

registry.py names the commands, runner.py carries them out; what each computes is in
a file of its own, a ``Computation``.
"""
