"""Surfaces whose values are written down."""

import numpy as np

from hessian_spectrum.landscape.results import Surface


def bowl(a=9, b=7, broken=False, positions=True):
    x, y = np.linspace(-1, 1, a), np.linspace(-2, 2, b)
    z = 0.1 + np.add.outer(10 * x**2, y**2)
    if broken:
        z[0, 0], z[-1, -1] = np.inf, np.nan
    about = {"batch_norm": "recalibrate", "n": 83, "num_samples": 11}
    about["directions"] = 2 * [{"kind": "random", "seed": 3, "normalize": "filter"}]
    places = np.stack(np.meshgrid(2 * x, 3 * y, indexing="ij"), -1)
    extra = {"positions": places} if positions else {}
    return Surface(x, y, {"loss": z, "accuracy": np.zeros_like(z)}, about, **extra)
