"""Points of parameter space: paths, directions, evaluation of many points, curves, surfaces."""
