"""Hessian products of other packages through our interface: rows (k, n) -> rows (k, n).

Each package is used as documented, with the same model, loss, minibatches and dtype. Packages are
imported on first use.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.suite.findings import Finding
from benchmarks.suite.networks import Problem

Products = Callable[[Tensor], Tensor]

PACKAGES = {
    "pyhessian": "PyHessian",
    "hessian_eigenthings": "hessian_eigenthings",
    "curvlinops": "curvlinops-for-pytorch",
    "loss_landscapes": "loss-landscapes",
}


def find() -> None:
    """Add the folder that HESSIAN_SPECTRUM_PEERS names to the import path.

    It is filled by ``pip install --no-deps --target``.
    """
    folder = os.environ.get("HESSIAN_SPECTRUM_PEERS")
    if folder and folder not in sys.path:
        sys.path.append(folder)


def is_installed(name: str) -> bool:
    """Whether a package of ``PACKAGES`` can be imported here."""
    find()
    return importlib.util.find_spec(name) is not None


def absent(name: str, claim: str) -> Finding:
    """The finding on a claim about a package that is not here: nothing is judged."""
    what = f"{claim}: {PACKAGES[name]} is not installed here"
    return Finding(what, PACKAGES[name], math.nan, -math.inf, math.inf, is_judged=False)


def versions() -> dict[str, str]:
    """The version of each peer, or "absent"."""
    found = {}
    for name in PACKAGES.values():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def pyhessian(problem: Problem, one_batch: bool = False) -> tuple[Products, str]:
    """PyHessian: reverse over reverse, one vector at a time.

    Args:
        one_batch: pass all the data as one batch, whose first-order graph PyHessian keeps.
            Otherwise it builds the graph of each minibatch again for each vector.
    """
    package = imported("pyhessian")
    replace_eig()
    made = []

    def products(vectors: Tensor) -> Tensor:
        if not made:  # in the first call, so that its memory is measured
            data = (problem.inputs, problem.targets) if one_batch else None
            loader = None if one_batch else problem.batches
            cuda = problem.inputs.is_cuda
            made.append(package.hessian(problem.model, problem.loss_fn, data, loader, cuda=cuda))
        one = _pyhessian_kept if one_batch else _pyhessian_rebuilt
        return torch.stack([one(made[0], v, problem) for v in vectors])

    note = "torch.eig (removed from torch) replaced by torch.linalg.eigh; products do not call it"
    return products, note


def _pyhessian_kept(hessian, v: Tensor, problem: Problem) -> Tensor:
    utils = importlib.import_module("pyhessian.utils")
    rows = utils.hessian_vector_product(hessian.gradsH, hessian.params, _split(v, problem))
    return _joined(rows)


def _pyhessian_rebuilt(hessian, v: Tensor, problem: Problem) -> Tensor:
    return _joined(hessian.dataloader_hv_product(_split(v, problem))[1])


def curvlinops(problem: Problem) -> tuple[Products, str]:
    """curvlinops: jvp of jacrev under vmap, all vectors at once; keeps nothing between products."""
    package = imported("curvlinops")
    # The determinism check takes passes over the data and does not change the products.
    operator = package.HessianLinearOperator(
        problem.model,
        problem.loss_fn,
        problem.parameters,
        problem.batches,
        check_deterministic=False,
    )
    return lambda vectors: (operator @ vectors.T).T, ""


def hessian_eigenthings(problem: Problem) -> tuple[Products, str]:
    """hessian-eigenthings: reverse over reverse, one vector at a time; keeps nothing."""
    package = imported("hessian_eigenthings")
    loss = package.supervised_loss(problem.loss_fn)
    operator = package.HessianOperator(problem.model, problem.batches, loss)
    return lambda vectors: torch.stack([operator.matvec(v) for v in vectors]), ""


def imported(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(
            f"{PACKAGES[name]} is not installed ({error}); see HESSIAN_SPECTRUM_PEERS"
        ) from None


def replace_eig() -> None:
    """Define torch.eig, which torch removed and PyHessian calls on a symmetric matrix."""

    def eig(matrix: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    torch.eig = eig


def _split(v: Tensor, problem: Problem) -> list[Tensor]:
    parts = v.split([p.numel() for p in problem.parameters])
    return [part.view_as(p) for part, p in zip(parts, problem.parameters)]


def _joined(tensors) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])
