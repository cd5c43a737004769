"""Exact eigenvalues of a network's Hessian, by brute force in float64, cached."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import trange

import hessian_spectrum as hs

COLUMNS = 64  # of the identity, multiplied at a time


def eigenvalues(evaluator: hs.Evaluator, cache: Path) -> np.ndarray:
    """All n eigenvalues of the Hessian, ascending, float64.

    n products with the columns of the identity, then LAPACK. Rows and columns that are
    exactly zero (weights of pixels that are blank in every image) are found by one product
    with a random vector and left out: they add exact zeros. O(n^3) flops, 8 n^2 bytes.

    Args:
        evaluator: in float64.
        cache: folder for the result, under a name made of the digests of parameters and data.
    """
    digests = evaluator.digests()
    path = cache / f"exact-{digests['parameters'][:16]}-{digests['data'][:16]}.npy"
    if path.exists():
        return np.load(path)
    hessian = hs.Hessian(evaluator)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(hessian.n, generator=generator, dtype=torch.float64)
    live = torch.nonzero(hessian @ probe)[:, 0]
    clock = time.perf_counter()
    matrix = torch.empty(len(live), len(live), dtype=torch.float64)
    for start in trange(0, len(live), COLUMNS, desc="exact Hessian", disable=None):
        columns = live[start : start + COLUMNS]
        unit = torch.zeros(len(columns), hessian.n, dtype=torch.float64)
        unit[torch.arange(len(columns)), columns] = 1
        matrix[start : start + COLUMNS] = hessian.products(unit)[:, live]
    asymmetry = ((matrix - matrix.T).abs().max() / matrix.abs().max()).item()
    built = time.perf_counter() - clock
    trace, frobenius = matrix.trace().item(), matrix.norm().item()
    values = torch.linalg.eigvalsh(matrix).numpy()
    # The spectrum must account for the matrix it came from.
    assert np.isclose(values.sum(), trace) and np.isclose(np.linalg.norm(values), frobenius)
    values = np.sort(np.concatenate([values, np.zeros(hessian.n - len(live))]))
    print(
        f"exact Hessian: n = {hessian.n}, {len(live)} rows not zero, asymmetry {asymmetry:.1e}; "
        f"{built:.0f} s to build, {time.perf_counter() - clock - built:.0f} s to diagonalize",
        file=sys.stderr,
    )
    cache.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return values


def l1_distance(measure: hs.SpectralMeasure, eigenvalues: np.ndarray, sigma2: float) -> float:
    """Integral of |phi_sigma(t) - estimate(t)| dt, trapezoidal on 20 points a sigma."""
    sigma = sigma2**0.5
    low = min(eigenvalues[0], measure.nodes[0]) - 8 * sigma
    high = max(eigenvalues[-1], measure.nodes[-1]) + 8 * sigma
    t = np.arange(low, high, sigma / 20)
    n = len(eigenvalues)
    exact = hs.SpectralMeasure(
        nodes=eigenvalues,
        weights=np.full((1, n), 1 / n),
        n=n,
        residuals=np.zeros(n),
        certified=np.ones(n, dtype=bool),
    )
    return float(np.trapezoid(np.abs(exact.density(t, sigma2) - measure.density(t, sigma2)), t))
