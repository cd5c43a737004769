"""Objectives whose loss, and a path whose shape, can be worked out by hand."""

import numpy as np
import torch
from torch import nn

import hessian_spectrum as hs


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


class Vector(nn.Module):
    """A parameter vector, whatever the input."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta.clone())

    def forward(self, x):
        return self.theta.expand(len(x), -1)


def objective(function, theta, **options):
    """The evaluator of function(theta), (n,) -> ()."""
    data = torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    return hs.Evaluator(
        Vector(tensor(theta)), lambda out, _: function(out[0]), data, batch_size=2, **options
    )


def bowl(a, theta=(0.5, -1.0, 2.0)):
    """theta^T A theta / 2."""
    return objective(lambda t: t @ a @ t / 2, theta[: len(a)])


class Product(nn.Module):
    """x -> w_1 ... w_depth x: a deep linear network of width 1."""

    def __init__(self, depth):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(depth)))

    def forward(self, x):
        return self.layers(x)


def product(depth):
    """(1 - w_1 ... w_depth)^2, Goodfellow et al. 2015, section 5."""
    torch.manual_seed(0)
    ones = torch.ones(2, 1, dtype=torch.float64)
    return hs.Evaluator(Product(depth).double(), nn.MSELoss(), (ones, ones))


def spiral(count=12, n=30, seed=0):
    """A curved path of ``count`` points near a space of three dimensions, (count, n)."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, count)[:, None]
    ends = rng.normal(size=(3, n))
    return tensor(
        (1 - t) * ends[0]
        + t * ends[1]
        + np.sin(3 * t) * ends[2]
        + 0.01 * rng.normal(size=(count, n))
    )
