"""The loss as a deterministic function of the parameters: data, criteria, BatchNorm, gradient."""
