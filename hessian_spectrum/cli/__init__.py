"""Command line -> configuration -> command -> exit code."""
