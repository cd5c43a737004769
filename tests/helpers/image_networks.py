"""Small float64 image networks, plans of their evaluation, and points around their parameters."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.point_passes import PointPlan


def mlp(activation=nn.Tanh):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), activation(), nn.Linear(5, 3)).double()


def conv():
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*layers, nn.Conv2d(4, 4, 3), *head).double()


def images(samples, channels=3, side=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, channels, side, side, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (samples,), generator=generator)


def evaluator(model=None, samples=11, **options):
    options = {"batch_size": 4, **options}
    return hs.Evaluator(model or mlp(), F.cross_entropy, images(samples), **options)


def plane(ev, count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2, ev.n, generator=generator, dtype=torch.float64)
    return Points.around(ev.theta, directions, np.random.default_rng(seed).normal(size=(count, 2)))


PLANS = {
    "loop": PointPlan(),
    "chunks": PointPlan(chunk=3),
    "cut": PointPlan(batch_size=3),
    "together": PointPlan(chunk=4, together=4),
    "uneven": PointPlan(chunk=5, together=2),
    "superposed": PointPlan(chunk=6, together=3, superposed=True),
}
