"""Changes of a network's parameters that leave its function as it is."""
