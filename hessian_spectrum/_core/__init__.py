"""Errors, input checks, whole-or-nothing file replacement and the version. No torch."""
