"""Do the error bounds of a float32 run's eigenpairs hold in float64?

The command ``eigenpairs`` computes pairs of a trained network in float32. Its stated bounds (the
residual, and the rounding error of float32, which is measured on random combinations of all pairs,
``residual_check.arithmetic_error``) are compared with residuals in float64, from a float64 product
for each pair. A float64 eigenvalue lies within the float64 residual of the float64 Rayleigh
quotient; a stated bound holds if it is at least the float64 residual of the float32 pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from hessian_spectrum.algorithms import residual_check
from hessian_spectrum.zoo import problem_loader

TRAINED = ("--epochs", 1, "--every", 1, "--batch-size", 64)


@dataclass(frozen=True)
class Network:
    """
    Args:
        data: "digits" or "cifar10".
        training: options of ``train`` alone.
        limit: samples of the Hessian.
        k, k_smallest: eigenpairs at the ends.
        tol: of the pairs, relative to the largest |eigenvalue|.
        checked: indices of the pairs that are checked, 0 being the smallest; none: all.
    """

    model: str
    data: str
    training: tuple[object, ...]
    limit: int
    batch_size: int
    k: int
    k_smallest: int
    tol: float = 1e-4
    checked: tuple[int, ...] = ()

    def fields(self, context: Context) -> dict[str, Any]:
        """Of a configuration: model, data and parameters."""
        found: dict[str, Any] = {"model": self.model, "dataset": self.data}
        if self.data == "cifar10":
            found |= {"dataset": "arrays", "data_root": context.data("cifar10")}
        folder = context.network(*_words(found), *self.training)
        checkpoint = sorted(folder.glob("epoch-*.pt"))[-1]
        sizes = {"limit": self.limit, "batch_size": self.batch_size}
        return {**found, **sizes, "checkpoint": checkpoint}


def _words(fields: dict[str, Any]) -> list[object]:
    return [w for k, v in fields.items() for w in (f"--{k.replace('_', '-')}", v)]


DIGITS = Network("mlp-64-20-10", "digits", TRAINED, 1500, 500, 5, 5)
CIFAR = Network("resnet20", "cifar10", ("--limit", 1000, *TRAINED), 64, 64, 2, 1, 1e-3)
LONG = ("--limit", 10_000, "--epochs", 10, "--every", 10, "--batch-size", 128)
LARGE = Network(
    *("resnet20", "cifar10", (*LONG, "--weight-decay", 5e-4, "--lr", 0.1), 2048, 128, 20, 5),
    checked=(0, 4, 5, 10, 15, 20, 24),
)


@dataclass(frozen=True)
class Options:
    networks: tuple[Network, ...] = (DIGITS, CIFAR)


def measured(context: Context, network: Network) -> dict[str, np.ndarray]:
    """Of each checked pair: value, stated bound, and what float64 products say of it."""
    fields = network.fields(context)
    with context.computed(
        context.folder / f"{network.model}.h5",
        "eigenpairs",
        *_words(fields),
        *("--k", network.k, "--k-smallest", network.k_smallest, "--tol", network.tol),
    ) as run:
        found, values = run["eigenpairs"], run["values"]
        vectors = np.asarray(found.vectors, np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    config = hs.EigenpairsConfig(**fields, out=context.folder / "none.h5")
    hessian = hs.Hessian(problem_loader.load(config).evaluator())
    stated, added = found.residuals, values.get("arithmetic_error")
    if added is None:
        added = residual_check.arithmetic_error(hessian, torch.from_numpy(vectors).float(), seed=0)
        stated = np.hypot(stated, added)
    exact = hessian.in_float64()
    checked = list(network.checked or range(len(vectors)))
    products = [
        exact.products(torch.from_numpy(v[None]).to(exact.device))[0].cpu().numpy()
        for v in vectors[checked]
    ]
    quotients = [v @ p for v, p in zip(vectors[checked], products)]
    misfits = np.array(products) - found.values[checked, None] * vectors[checked]
    return {
        "value": found.values[checked],
        "stated": stated[checked],
        "quotient": np.array(quotients),
        "residual": np.linalg.norm(misfits, axis=1),
        "arithmetic": np.full(len(checked), float(added)),
    }


def run(context: Context, options: Options) -> Outcome:
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    for network in options.networks:
        found = measured(context, network)
        values |= {f"{network.model}/{name}": column for name, column in found.items()}
        count = len(found["value"])
        findings.append(
            context.check(
                f"{network.model}: residual in float64 over the stated bound, largest of {count} "
                "pairs",
                *((found["residual"] / found["stated"]).max(), 0.0, 1.0),
                source="the bound's definition",
            )
        )
        # The triangle inequality: the float64 product is as far away as float32 is wrong.
        over = (found["residual"] - found["stated"]) / found["arithmetic"]
        findings.append(
            context.check(
                f"{network.model}: residual in float64 minus the stated bound, over the error of "
                "float32 products, largest",
                *(over.max(), -np.inf, 1.0),
                source="the triangle inequality",
                judged_from="test",
            )
        )
        # By the residual r, a Rayleigh quotient is at most r away from the value.
        apart = np.abs(found["quotient"] - found["value"])
        findings.append(
            context.check(
                f"{network.model}: distance of the Rayleigh quotient in float64 over the residual, "
                "largest",
                *((apart / found["residual"]).max(), 0.0, 1.0 + 1e-9),
                source="Cauchy-Schwarz",
                judged_from="test",
            )
        )
    return Outcome(findings, values)


STUDY = Study(
    title="Do the stated errors of float32 eigenpairs hold in float64?",
    source="the package's own claims",
    run=run,
    scales={
        "test": Options((Network("mlp-64-3-10", "digits", TRAINED, 200, 100, 2, 1),)),
        "cpu": Options(),
        "gpu": Options((DIGITS, LARGE)),
    },
    group="accuracy",
    data=("cifar10",),
)
