"""One HTML page about result files, and results in notebooks. NumPy and Matplotlib: no torch."""
