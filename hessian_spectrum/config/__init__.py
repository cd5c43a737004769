"""One frozen dataclass a command: the same fields on the command line, in a file, in Python."""
