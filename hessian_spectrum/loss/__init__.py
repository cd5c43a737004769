"""The loss as one deterministic function of the parameters: data, criteria, BatchNorm, gradient."""
