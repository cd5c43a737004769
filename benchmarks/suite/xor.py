"""The four points of XOR, and networks of one hidden layer of sigmoid units that learn it."""

from __future__ import annotations

import torch
from torch import nn

import hessian_spectrum as hs

XOR = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
LABELS = (0.0, 1.0, 1.0, 0.0)


def sigmoid_network(hidden: int) -> hs.Evaluator:
    """2-hidden-1 with biases, a sigmoid output and the mean squared error of the points."""
    model = nn.Sequential(nn.Linear(2, hidden), nn.Sigmoid(), nn.Linear(hidden, 1), nn.Sigmoid())
    data = torch.tensor(XOR).double(), torch.tensor(LABELS).double()[:, None]
    return hs.Evaluator(model.double(), nn.MSELoss(), data)
