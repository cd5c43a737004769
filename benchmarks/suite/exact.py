"""Exact eigenvalues of a network's Hessian, by brute force in float64, cached."""

from __future__ import annotations

import sys
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import trapezoid
from torch import nn
from tqdm import trange

import hessian_spectrum as hs
from hessian_spectrum.spectral.atoms import smoothed

COLUMNS = 64  # of the identity, multiplied at a time


def eigenvalues(evaluator: hs.Evaluator, cache: Path) -> np.ndarray:
    """All n eigenvalues of the Hessian, ascending, float64.

    The matrix comes from a closed form for two-layer perceptrons, and otherwise from n products
    with the columns of the identity; LAPACK diagonalizes it. Rows and columns that are exactly
    zero (weights of pixels that are blank in every image) are left out, and contribute exact
    zeros. O(n^3) flops, 8 n^2 bytes.

    Args:
        evaluator: float64, one rank, with the mean cross entropy as its loss.
        cache: folder of results; file names have the digests of parameters and data.
    """
    digests = evaluator.digests()
    path = cache / f"exact-{digests['parameters'][:16]}-{digests['data'][:16]}.npy"
    if path.exists():
        return np.load(path)
    hessian = hs.Hessian(evaluator, plan=hs.ProductPlan("reverse-batched"))
    clock = time.perf_counter()
    kinds = [type(layer) for layer in evaluator.model]
    if len(kinds) == 4 and kinds[0] is nn.Flatten and kinds[1] is kinds[3] is nn.Linear:
        matrix, live = perceptron_hessian(evaluator)
    else:
        matrix, live = hessian_by_products(hessian)
    # Either matrix is checked against products with random vectors.
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(hessian.n, 4, generator=generator, dtype=torch.float64)
    products = hessian @ probes
    expected = torch.zeros_like(products)
    expected[live] = matrix @ probes[live]
    error = ((products - expected).norm() / expected.norm()).item()
    built = time.perf_counter() - clock
    trace, frobenius = matrix.trace().item(), matrix.norm().item()
    values = torch.linalg.eigvalsh(matrix).numpy()
    assert error < 1e-11, f"the dense Hessian disagrees with its products: {error}"
    assert np.isclose(values.sum(), trace) and np.isclose(np.linalg.norm(values), frobenius)
    values = np.sort(np.concatenate([values, np.zeros(hessian.n - len(live))]))
    print(
        f"exact Hessian: n = {hessian.n}, {len(live)} nonzero rows; 4 random products agree to "
        f"{error:.1e}; {built:.0f} s to build, {time.perf_counter() - clock - built:.0f} s to "
        "diagonalize",
        file=sys.stderr,
    )
    cache.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return values


def perceptron_hessian(evaluator: hs.Evaluator) -> tuple[torch.Tensor, torch.Tensor]:
    """The Hessian of Flatten, Linear, activation, Linear, without one Hessian-vector product.

    With a = W1 x + b1 and phi = (W2, b2), a sample's loss l(a, phi) has a small Hessian M, and
    the chain rule gives H[(p, i), (q, j)] = mean of M[i, j] x[p] x[q] over the samples, where
    x is the input with a 1 appended for the bias. Returns (matrix, indices of its rows).
    """
    first, last = evaluator.model[1], evaluator.model[3]
    x = torch.cat([batch[0].flatten(1) for batch in evaluator.batches])
    y = torch.cat([batch[1] for batch in evaluator.batches])
    inputs, hidden = x.shape[1], first.out_features
    seen = torch.nonzero((x != 0).any(0))[:, 0]
    x = torch.cat([x[:, seen], x.new_ones(len(x), 1)], dim=1)
    named = {name: p.detach().double() for name, p in evaluator.model.named_parameters()}
    a = x @ torch.cat([named["1.weight"][:, seen], named["1.bias"][:, None]], dim=1).T
    phi = torch.cat([named["3.weight"].flatten(), named["3.bias"]])

    def loss(joint, label):
        z, weight, bias = joint.split([hidden, last.weight.numel(), last.out_features])
        outputs = weight.view_as(last.weight) @ evaluator.model[2](z) + bias
        return nn.functional.cross_entropy(outputs, label)

    small = []
    for a_part, y_part in zip(a.split(500), y.split(500)):
        joint = torch.cat([a_part, phi.expand(len(a_part), -1)], dim=1)
        small.append(torch.func.vmap(torch.func.hessian(loss))(joint, y_part))
    small = torch.cat(small) / len(x)  # (N, hidden + n2, hidden + n2)

    width, n2 = x.shape[1], len(phi)
    matrix = x.new_empty(hidden * width + n2, hidden * width + n2)
    for i in range(hidden):
        rows = slice(i * width, (i + 1) * width)
        for j in range(i + 1):
            block = x.T @ (small[:, i, j, None] * x)
            matrix[rows, j * width : (j + 1) * width] = block
            matrix[j * width : (j + 1) * width, rows] = block.T
        cross = x.T @ small[:, i, hidden:]
        matrix[rows, hidden * width :] = cross
        matrix[hidden * width :, rows] = cross.T
    matrix[hidden * width :, hidden * width :] = small[:, hidden:, hidden:].sum(0)

    # In theta: W1 row by row, then b1, then phi.
    weights = torch.arange(hidden)[:, None] * inputs + seen
    biases = hidden * inputs + torch.arange(hidden)[:, None]
    live = torch.cat([weights, biases], dim=1).flatten()
    return matrix, torch.cat([live, hidden * (inputs + 1) + torch.arange(n2)])


def hessian_by_products(hessian: hs.Hessian) -> tuple[torch.Tensor, torch.Tensor]:
    """The Hessian of any model from products with the columns of the identity.

    Returns (matrix, indices of its rows).
    """
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(hessian.n, generator=generator, dtype=torch.float64)
    live = torch.nonzero(hessian @ probe)[:, 0]
    matrix = torch.empty(len(live), len(live), dtype=torch.float64)
    for start in trange(0, len(live), COLUMNS, desc="exact Hessian", disable=None):
        columns = live[start : start + COLUMNS]
        unit = torch.zeros(len(columns), hessian.n, dtype=torch.float64)
        unit[torch.arange(len(columns)), columns] = 1
        matrix[start : start + COLUMNS] = hessian.products(unit)[:, live]
    return (matrix + matrix.T) / 2, live


def l1_distance(measure: hs.SpectralMeasure, eigenvalues: np.ndarray, sigma2: float) -> float:
    """Integral of |phi_sigma(t) - estimate(t)| dt by the trapezoidal rule, 20 points per sigma.

    The range covers the exact spectrum, within which the nodes lie up to rounding.
    """
    t, exact = _smoothed(np.asarray(eigenvalues, dtype=np.float64).tobytes(), sigma2)
    return float(trapezoid(np.abs(exact - measure.density(t, sigma2)), t))


@lru_cache(maxsize=4)
def _smoothed(eigenvalues: bytes, sigma2: float) -> tuple[np.ndarray, np.ndarray]:
    """(t, phi_sigma(t))."""
    values = np.frombuffer(eigenvalues)
    sigma = sigma2**0.5
    t = np.arange(values[0] - 8 * sigma, values[-1] + 8 * sigma, sigma / 20)
    return t, smoothed(values, np.full((1, len(values)), 1 / len(values)), t, sigma2)[0]
