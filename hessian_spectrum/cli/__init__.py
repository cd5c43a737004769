"""The command line: words to a configuration, the command, its exit code."""
