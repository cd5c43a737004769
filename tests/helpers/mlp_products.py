"""Evaluators of a small perceptron, and all columns of their products."""

import torch
from small_networks import data, mlp
from torch.nn import functional as F

import hessian_spectrum as hs


def evaluator(model=None, loss_fn=F.cross_entropy, samples=None, **options):
    options = {"batch_size": 4, **options}
    return hs.Evaluator(model or mlp(), loss_fn, samples or data(), **options)


def eye_of(ev):
    return torch.eye(ev.n, dtype=torch.float64)
