"""Points of parameter space: paths, directions, many points in one pass, curves and surfaces."""
