"""How often do the 95 % intervals cover the true value?

Over many seeds of the probes, on known spectra (``spectra.py``) and on exact spectra of networks,
whose files ``exact_density.py`` writes to its cache::

    python benchmarks/coverage.py --exact benchmarks/cache/exact-....npy --sigma2 1e-5

A row is a query on a spectrum, a column is a size. An entry is the share of seeds whose interval
covers the truth, averaged over the points or thresholds of the query, and the median half-width of
the interval relative to the truth (absolute where the truth is zero). Coverage should be between 90
and 99 percent for smooth queries and at least 90 percent for queries with a threshold, whose
truncation error is a bound. Thresholds lie midway between two distinct eigenvalues.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import trange

import hessian_spectrum as hs
from benchmarks.suite.spectra import SPECTRA, Diagonal
from hessian_spectrum.spectral.quadrature import Array

MOST_POINTS = 25  # at which a density is compared
LEAST_DENSITY = 0.01  # share of the peak; points of lower density are ignored
SHARES = 0.001, 0.25, 0.5, 0.9, 0.97, 0.99  # shares of eigenvalues below the thresholds
OUTERMOST = 1, 2, 4  # numbers of eigenvalues beyond further thresholds, from each end
SLACK = 1e-9  # relative to the answer's scale: rounding where the interval is a single point


@dataclass(frozen=True, kw_only=True)
class Config:
    sizes: tuple[str, ...] = ("block:12x15", "block:36x10", "slq:10x90")
    """Estimator:probes x steps."""
    repetitions: int = 200
    n: int = 1500
    """Eigenvalues of the synthetic spectra."""
    spectra: tuple[str, ...] = tuple(SPECTRA)
    exact: tuple[Path, ...] = ()
    """Files (.npy) of exact eigenvalues."""
    sigma2: float | None = None
    """Variance of the smoothing. Default: (width of the support / 50)^2, and / 500."""
    level: float = 0.95
    seed: int = 0
    """First seed of the probes."""


@dataclass(frozen=True)
class Query:
    """One query with its true answer."""

    title: str  # queries of the same title share a row
    name: str
    args: tuple[Any, ...]
    truth: float | Array
    scale: float  # scale of the answer, for rounding errors


def main(config: Config) -> None:
    warnings.filterwarnings("ignore", message="effective_dimension")
    spectra = {name: SPECTRA[name](config.n) for name in config.spectra}
    spectra |= {path.stem: np.sort(np.load(path)) for path in config.exact}
    print(f"{config.repetitions} seeds; covered %, median half-width relative to the truth\n")
    print("| spectrum | query | " + " | ".join(config.sizes) + " |")
    print("|---" * (len(config.sizes) + 2) + "|")
    for name, exact in spectra.items():
        columns = [cells(exact, size, config, name) for size in config.sizes]
        for title in columns[0]:
            print(f"| {name} | {title} | " + " | ".join(c[title] for c in columns) + " |")
        print(end="", flush=True)


def cells(exact: Array, size: str, config: Config, name: str) -> dict[str, str]:
    """Coverage and half-width of each row of a table, for one spectrum and one size."""
    asked = list(queries(exact, config.sigma2))
    covered: dict[str, list[float]] = {query.title: [] for query in asked}
    widths: dict[str, list[float]] = {query.title: [] for query in asked}
    seeds = range(config.seed, config.seed + config.repetitions)
    for i in trange(len(seeds), desc=f"{name}, {size}", leave=False, disable=None):
        measure = density(exact, size, seeds[i])
        for query in asked:
            low, high = measure.interval(query.name, *query.args, level=config.level)
            slack = SLACK * query.scale
            inside = (low - slack <= query.truth) & (query.truth <= high + slack)
            truth = np.abs(query.truth)
            relative = (high - low) / 2 / np.where(truth > slack, truth, 1.0)
            covered[query.title].append(float(np.mean(inside)))
            widths[query.title].append(float(np.mean(relative)))
    return {
        title: f"{100 * np.mean(covered[title]):.0f} ({np.median(widths[title]):.1g})"
        for title in covered
    }


def density(exact: Array, size: str, seed: int) -> hs.SpectralMeasure:
    estimator, _, shape = size.partition(":")
    num_probes, num_steps = (int(part) for part in shape.split("x"))
    return hs.spectral_density(
        Diagonal(exact), num_probes, min(num_steps, len(exact)), seed, estimator=estimator
    )


def queries(exact: Array, sigma2: float | None) -> Iterator[Query]:
    """All queries on a spectrum, with their answers."""
    n, low, high = len(exact), exact[0], exact[-1]
    size = max(abs(low), abs(high)) or 1.0
    variances = (
        {f"density, sigma {sigma2**0.5:.2g}": sigma2}
        if sigma2
        else {
            f"density, sigma width / {parts}": (((high - low) or size) / parts) ** 2
            for parts in (50, 500)
        }
    )
    for title, variance in variances.items():
        t = _points(exact, variance)
        truth = _density(exact, t, variance)
        yield Query(title, "density", (t, variance), truth, truth.max())
    for p in range(1, 5):
        truth = float(np.mean(exact**p))
        yield Query(f"moment {p}", "moment", (p,), truth, size**p)
    yield Query("trace", "trace", (), exact.sum(), n * size)
    yield Query("frobenius_norm", "frobenius_norm", (), np.linalg.norm(exact), n**0.5 * size)
    for part in (0.1, 0.001):
        positive = exact.clip(0)
        truth = np.sum(positive / (positive + part * size))
        title = f"effective_dimension({part:g} |lambda|max)"
        yield Query(title, "effective_dimension", (part * size,), truth, n)
    yield from _with_thresholds(exact, size)


def _with_thresholds(exact: Array, size: float) -> Iterator[Query]:
    n = len(exact)
    for where, x in _thresholds(exact):
        below = float(np.mean(exact <= x))
        yield Query(f"mass below, {where}", "mass", (-np.inf, x), below, 1.0)
        yield Query(f"count above, {where}", "count", (x, np.inf), n * (1 - below), n)
    inner = [x for where, x in _thresholds(exact) if where == "in the bulk"]
    if len(inner) > 1:
        a, b = inner[0], inner[-1]
        truth = float(np.mean((exact >= a) & (exact <= b)))
        yield Query("mass between two in the bulk", "mass", (a, b), truth, 1.0)
    for part in (0.01, 0.001):
        truth = float(np.mean(exact < -part * size))
        title = f"negative_fraction({part:g} |lambda|max)"
        yield Query(title, "negative_fraction", (part * size,), truth, 1.0)
    for q in (*SHARES, 1 - 2.5 / n):
        where = "in the bulk" if 0.01 < q < 0.95 else "in the tails"
        truth = exact[min(int(np.ceil(q * n - 1e-9)), n) - 1]
        yield Query(f"quantile, {where}", "quantile", (q,), float(truth), size)


def _thresholds(exact: Array) -> Iterator[tuple[str, float]]:
    """(where, x) with x midway between two distinct eigenvalues."""
    n = len(exact)
    distinct = np.flatnonzero(np.diff(exact) > 1e-9 * max(abs(exact[0]), abs(exact[-1])))
    if not len(distinct):
        return
    ranks = {
        round(share * n): "in the bulk" if 0.01 < share < 0.95 else "in the tails"
        for share in SHARES
    }
    ranks |= {k: "at the lower end" for k in OUTERMOST}
    ranks |= {n - k: "at the upper end" for k in OUTERMOST}
    used = set()
    for rank, where in ranks.items():
        k = distinct[np.abs(distinct + 1 - rank).argmin()]
        if k not in used:
            used.add(k)
            yield where, float(exact[k] + exact[k + 1]) / 2


def _points(exact: Array, sigma2: float) -> Array:
    sigma = sigma2**0.5
    t = np.arange(exact[0] - 3 * sigma, exact[-1] + 3 * sigma, sigma / 2)
    values = _density(exact, t, sigma2)
    t = t[values >= LEAST_DENSITY * values.max()]
    return t[np.linspace(0, len(t) - 1, min(len(t), MOST_POINTS)).round().astype(int)]


def _density(exact: Array, t: Array, sigma2: float) -> Array:
    rows = [np.exp(-((exact - x) ** 2) / (2 * sigma2)).mean() for x in t]
    return np.array(rows) / np.sqrt(2 * np.pi * sigma2)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
