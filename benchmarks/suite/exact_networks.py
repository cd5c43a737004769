"""Small trained networks, all of whose eigenvalues are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import hessian_spectrum as hs
from benchmarks.suite.context import Context
from benchmarks.suite.exact import eigenvalues
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.zoo import problem_loader


@dataclass(frozen=True)
class Network:
    """A perceptron that the command ``train`` makes.

    Args:
        data: "digits" or "mnist".
    """

    model: str
    activation: str
    data: str = "digits"
    samples: int = 1500
    epochs: int = 20

    @property
    def name(self) -> str:
        return f"{self.model.removeprefix('mlp-')} {self.activation}"

    def problem(self, context: Context, dtype: torch.dtype = torch.float64) -> Problem:
        """Trained, or found where another study has trained it."""
        config = hs.DensityConfig(
            model=self.model,
            activation=self.activation,
            dataset=self.data,
            data_root=context.data("mnist") if self.data == "mnist" else None,
            limit=self.samples,
            checkpoint=self._checkpoint(context),
            out=context.folder / "none.h5",
        )
        return replace(problem_loader.load(config), dtype=dtype)

    def exact(self, context: Context) -> np.ndarray:
        """All eigenvalues of the Hessian in float64, ascending; kept beside the networks."""
        return eigenvalues(self.problem(context).evaluator(), context.shared / "exact")

    def _checkpoint(self, context: Context) -> Path:
        root = ("--data-root", context.data("mnist")) if self.data == "mnist" else ()
        folder = context.network(
            *("--model", self.model, "--activation", self.activation),
            *("--dataset", self.data, *root, "--limit", self.samples),
            *("--epochs", self.epochs, "--every", self.epochs),
        )
        return folder / f"epoch-{self.epochs:04d}.pt"


def pair(model: str, **more: object) -> tuple[Network, Network]:
    """The same network with tanh and with ReLU."""
    return Network(model, "tanh", **more), Network(model, "relu", **more)


TINY = Network("mlp-64-3-10", "tanh", samples=100, epochs=2)
DIGITS = pair("mlp-64-20-10")
MNIST = pair("mlp-784-20-10", data="mnist", samples=9000)
