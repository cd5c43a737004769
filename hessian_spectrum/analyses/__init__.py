"""One question a file; each combines the packages below it."""
