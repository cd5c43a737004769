"""Hessian products per point of a curvature map, compared with SciPy's eigsh at each point.

Both find the largest and the smallest eigenvalue to the same residual, relative to the larger
|eigenvalue|. eigsh finds the eigenvalue of largest magnitude, then the other end of the spectrum
from the matrix shifted by it, as in the code of Li et al. (2018, "Visualizing the loss landscape of
neural nets", figure 7). eigsh starts anew at each point; ours starts from the eigenvectors of the
point before ("warm") or anew ("cold"). True residuals of both are computed afterwards, and the
eigenvalues are compared.

Points are those of a grid along two random directions around a trained network: perceptrons on the
shipped digits and on MNIST, and ResNet-20 without BatchNorm on CIFAR-10 pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import nn

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from hessian_spectrum import zoo
from hessian_spectrum.analyses.curvature_map import LENGTH, map_task, segments
from hessian_spectrum.krylov.extremal import extremes

PLAN = hs.ProductPlan("linearize", keep=True)


@dataclass(frozen=True)
class Map:
    """A map of one network.

    Args:
        data: "digits", "mnist" or "cifar10".
        training: options of ``train``; none: 100 steps of gradient descent with momentum.
        grid: points along each direction, from -1 to 1.
        paths: number of the paths that share eigenvectors, evenly spread; 0: all.
        length: points of each path that are computed; None: all.
    """

    model: str
    activation: str
    data: str
    samples: int = 500
    training: tuple[object, ...] = ()
    parts: tuple[str, ...] = ()
    grid: int = 9
    paths: int = 0
    length: int | None = None
    tols: tuple[float, ...] = (1e-4, 1e-5)
    dtype: str = "float64"

    @property
    def name(self) -> str:
        return " ".join([self.model, *self.parts, *([self.activation] * self.model.count("mlp"))])

    def evaluator(self, context: Context) -> hs.Evaluator:
        root = None if self.data == "digits" else context.data(self.data)
        dataset = "arrays" if self.data == "cifar10" else self.data
        data = zoo.load_dataset(dataset, data_root=root, limit=self.samples)
        without = {part: False for part in self.parts_off()}
        model = zoo.model_for(data, self.model, self.activation, 0, **without)
        if self.training:
            off = [f"--no-{part}" for part in without]
            words = ("--model", self.model, *off, "--activation", self.activation)
            source = ("--dataset", dataset, "--data-root", root)
            folder = context.network(*words, *source, *self.training)
            zoo.load_checkpoint(model, sorted(folder.glob("epoch-*.pt"))[-1])
        else:
            descend(model, *data.tensors)
        dtype = getattr(torch, self.dtype)
        return hs.Evaluator(model, nn.CrossEntropyLoss(), data.tensors, dtype=dtype)

    def parts_off(self) -> tuple[str, ...]:
        """Parts of the network that it does not have."""
        return tuple(part.removeprefix("no ") for part in self.parts)


def descend(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Some deterministic steps towards a minimum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


TRAINED = ("--limit", 9000, "--epochs", 20, "--every", 20)
RESNET = ("--limit", 10_000, "--epochs", 10, "--every", 10, "--batch-size", 128)
RESNET += ("--optimizer", "adam", "--lr", 0.001, "--weight-decay", 5e-4)
DIGITS = Map("mlp-64-20-10", "tanh", "digits")
MNIST = Map("mlp-784-20-10", "relu", "mnist", training=TRAINED, grid=7)
CIFAR = tuple(
    Map(
        *("resnet20", "relu", "cifar10", 64, RESNET, parts),
        paths=2,
        length=5,
        tols=(1e-4,),
        dtype="float32",
    )
    for parts in (("no batchnorm",), ("no batchnorm", "no shortcut"))
)


@dataclass(frozen=True)
class Options:
    maps: tuple[Map, ...] = (DIGITS,)


class Counted:
    """Counted products with one vector, as NumPy arrays."""

    def __init__(self, operator: hs.SymmetricOperator):
        self.operator, self.count = operator, 0

    def __call__(self, v: np.ndarray, shift: float = 0.0) -> np.ndarray:
        self.count += 1
        row = torch.from_numpy(v.reshape(1, -1)).to(self.operator.dtype)
        return self.operator.products(row).cpu().numpy()[0] - shift * v.reshape(-1)


def by_scipy(
    operator: hs.SymmetricOperator, tol: float, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """(values, true residuals, products), started from a random vector; NaN: no convergence."""
    product = Counted(operator)
    v0 = np.random.default_rng(seed).standard_normal(operator.n)
    values, vectors, shift = [], [], 0.0
    for _ in range(2):
        shifted = LinearOperator(
            operator.shape, matvec=lambda v, s=shift: product(v, s), dtype=np.float64
        )
        try:
            found, vector = eigsh(shifted, 1, which="LM", tol=tol, v0=v0)
        except ArpackNoConvergence:
            return np.full(2, np.nan), np.full(2, np.nan), product.count
        values.append(found[0] + shift)
        vectors.append(vector[:, 0])
        shift = values[0]
    spent = product.count
    residuals = [np.linalg.norm(product(v, x)) for v, x in zip(vectors, values)]
    order = np.argsort(values)
    return np.array(values)[order], np.array(residuals)[order], spent


@dataclass(frozen=True)
class Points:
    """All points of a map at one tolerance; residuals and differences over |lambda|max."""

    cold: np.ndarray  # products, (point,)
    warm: np.ndarray
    scipy: np.ndarray
    residual: np.ndarray  # ours, warm, the larger
    scipy_residual: np.ndarray
    difference: np.ndarray  # of the eigenvalues, the larger

    @property
    def share(self) -> float:
        """Products of ours, warm, over SciPy's."""
        return float(self.warm.sum() / self.scipy.sum())


def measured(ev: hs.Evaluator, of: Map, tol: float) -> Points:
    axis = np.linspace(-1, 1, of.grid)
    task = map_task(ev, hs.directions.random(ev), (axis, axis))
    paths = segments((of.grid, of.grid), LENGTH)
    if of.paths:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, of.paths).astype(int)]
    rows = []
    for path in paths:
        known = None
        for index in path[: of.length]:
            operator = hs.Hessian(ev, task.points.rows(index, index + 1)[0], PLAN)
            alone = extremes(operator, tol=tol)
            known = found = extremes(operator, known, tol=tol)
            values, residuals, spent = by_scipy(operator, tol, index)
            own = torch.tensor(found.values).to(found.vectors)[:, None]
            true = operator.products(found.vectors) - found.vectors * own
            scale = np.abs(found.values).max()
            rows.append(
                (
                    *(alone.products, found.products, spent),
                    true.norm(dim=1).max().item() / scale,
                    residuals.max() / scale,
                    np.abs(values - found.values).max() / scale,
                )
            )
    return Points(*np.array(rows, float).T)


def judged(context: Context, of: Map, tol: float, found: Points) -> list[Finding]:
    what = f"{of.name}, tolerance {tol:g}"
    # In float32 products are wrong by about 1e-6 of the largest eigenvalue.
    rounding = 2e-6 if of.dtype == "float32" else 1e-4 * tol
    residual = found.residual + found.scipy_residual
    return [
        context.check(
            f"{what}: products of ours, from the neighbour, over SciPy's",
            *(found.share, 0.0, 0.5),
            source="measured 2026-11-22: 0.29 to 0.43",
            uncertainty=(found.warm / found.scipy).std(),
        ),
        context.check(
            f"{what}: products of ours, from the neighbour, over those started anew",
            *(found.warm.sum() / found.cold.sum(), 0.0, 1.0),
            source="the package's own claims",
        ),
        context.check(
            f"{what}: largest residual of ours, over |lambda|max",
            *(found.residual.max(), 0.0, tol + rounding),
            source="its definition",
            judged_from="test",
        ),
        # An eigenvalue is at most a residual away from the value that has this residual.
        context.check(
            f"{what}: difference from SciPy's eigenvalues over the sum of both residuals, largest",
            *((found.difference / (residual + rounding)).max(), 0.0, 1.0),
            source="SciPy",
            judged_from="test",
        ),
    ]


def run(context: Context, options: Options) -> Outcome:
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    notes = []
    for of in options.maps:
        ev = of.evaluator(context)
        for tol in of.tols:

            def make(ev: hs.Evaluator = ev, of: Map = of, tol: float = tol) -> dict[str, Any]:
                return vars(measured(ev, of, tol))

            found = Points(**context.kept(f"{of.name} {tol:g}", of, make))
            findings += judged(context, of, tol, found)
            for name, column in vars(found).items():
                values[f"{of.name}/{tol:g}/{name}"] = column
            notes.append(
                f"{of.name}, n = {ev.n:,}, {tol:g}, {len(found.warm)} points: products cold, from "
                f"the neighbour, SciPy: {found.cold.mean():.1f}, {found.warm.mean():.1f}, "
                f"{found.scipy.mean():.1f}"
            )
    return Outcome(findings, values, notes="; ".join(notes))


STUDY = Study(
    title="How many products does a point of a curvature map take?",
    source="Li et al. 2018, figure 7, by the method of its code",
    run=run,
    scales={
        "test": Options((Map("mlp-64-3-10", "tanh", "digits", 100, grid=3, tols=(1e-4,)),)),
        "cpu": Options(),
        "gpu": Options((DIGITS, MNIST, *CIFAR)),
    },
    group="accuracy",
    data=("mnist", "cifar10"),
)
