"""The zoo's own networks, one family a module; ``zoo.models`` has the table of their names."""
