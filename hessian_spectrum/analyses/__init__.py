"""One question a file; none imports another."""
