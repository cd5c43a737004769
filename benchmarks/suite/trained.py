"""A problem file: a small network with BatchNorm that is trained on the included digits."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset

from hessian_spectrum.zoo.datasets import load_dataset

EPOCHS, BATCH = 15, 50


def batchnorm() -> tuple[nn.Module, nn.Module, Dataset]:
    """Two convolutions with BatchNorm and a dense layer: 3,778 parameters."""
    data = load_dataset("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(96, 10)),
        )
        train(model, *data.tensors)
    return model, nn.CrossEntropyLoss(), data


def train(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
