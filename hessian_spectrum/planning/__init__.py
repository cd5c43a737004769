"""Plans for products: time and memory are measured, and the fastest plan that fits is chosen."""
