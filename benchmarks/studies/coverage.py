"""How often do the 95 % intervals cover the true value?

Over many seeds of the probes, on known spectra (``benchmarks/suite/spectra.py``) and on all
eigenvalues of small trained networks: for each query the share of seeds whose interval covers the
truth, averaged over the query's points or thresholds, and the median half-width of the interval
relative to the truth (absolute where the truth is zero). Thresholds lie midway between two distinct
eigenvalues. Coverage should be at least 90 percent; where a truncation error is a bound, as with
thresholds, it may be 100.

Of spectra with fewer distinct eigenvalues than steps the rules are exact and every interval covers,
which the test checks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.exact_networks import MNIST, Network
from benchmarks.suite.spectra import SPECTRA, Diagonal
from hessian_spectrum.spectral.quadrature import Array

MOST_POINTS = 25  # at which a density is compared
LEAST_DENSITY = 0.01  # share of the peak; points of lower density are ignored
SHARES = 0.001, 0.25, 0.5, 0.9, 0.97, 0.99  # shares of eigenvalues below the thresholds
OUTERMOST = 1, 2, 4  # numbers of eigenvalues beyond further thresholds, from each end
SLACK = 1e-9  # relative to the answer's scale: rounding where the interval is a single point
FEW = ("multiplicities", "low rank", "all zero")  # distinct eigenvalues
SMOOTH = ("moment", "trace", "frobenius_norm", "effective_dimension")
DENSITY, POLYNOMIALS, THRESHOLDS = "densities", "moments, trace, norm, dimension", "thresholds"
WHY_NOT = {
    ("a gap", DENSITY): "so few steps do not resolve two even bands",
    ("clusters", THRESHOLDS): "counts within a cluster that is 1e-4 wide",
}


@dataclass(frozen=True)
class Size:
    estimator: str
    probes: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.estimator} {self.probes} x {self.steps}"


@dataclass(frozen=True)
class Options:
    """
    Args:
        sizes: of the first one, the coverage is judged.
        spectra: names of synthetic ones, of ``n`` eigenvalues each.
        sigma2: variance of the smoothing; None: (width of the support / 50)^2, and / 500.
    """

    sizes: tuple[Size, ...] = (Size("block", 12, 15),)
    seeds: int = 40
    n: int = 1500
    spectra: tuple[str, ...] = tuple(SPECTRA)
    networks: tuple[Network, ...] = ()
    sigma2: float | None = None
    level: float = 0.95


@dataclass(frozen=True)
class Query:
    """One query with its true answer."""

    title: str  # queries of the same title share a row
    name: str
    args: tuple[Any, ...]
    truth: float | Array
    scale: float  # scale of the answer, for rounding errors


def coverage(
    exact: Array, size: Size, options: Options
) -> tuple[dict[str, float], dict[str, float]]:
    """By query: the share of intervals that cover the truth, and their median half-width."""
    asked = list(queries(exact, options.sigma2))
    covered: dict[str, list[float]] = {query.title: [] for query in asked}
    widths: dict[str, list[float]] = {query.title: [] for query in asked}
    steps = min(size.steps, len(exact))
    for seed in range(options.seeds):
        measure = hs.spectral_density(
            Diagonal(exact), size.probes, steps, seed, estimator=size.estimator
        )
        for query in asked:
            low, high = measure.interval(query.name, *query.args, level=options.level)
            slack = SLACK * query.scale
            inside = (low - slack <= query.truth) & (query.truth <= high + slack)
            truth = np.abs(query.truth)
            relative = (high - low) / 2 / np.where(truth > slack, truth, 1.0)
            covered[query.title].append(float(np.mean(inside)))
            widths[query.title].append(float(np.mean(relative)))
    return (
        {title: float(np.mean(shares)) for title, shares in covered.items()},
        {title: float(np.median(width)) for title, width in widths.items()},
    )


def family(title: str) -> str:
    if title.startswith("density"):
        return DENSITY
    return POLYNOMIALS if title.startswith(SMOOTH) else THRESHOLDS


def judged(
    context: Context, name: str, size: Size, covered: dict[str, float], options: Options
) -> Iterator[Finding]:
    if name in FEW:
        claim = f"{name}, {size.name}: share of intervals that cover the truth"
        least = min(covered.values())
        yield context.check(
            *(claim, least, 1.0, 1.0), source="the rule is exact", judged_from="test"
        )
        return
    for kind in (DENSITY, POLYNOMIALS, THRESHOLDS):
        share = np.mean([share for title, share in covered.items() if family(title) == kind])
        yield context.check(
            f"{name}, {size.name}, {kind}: share of {options.level:.0%} intervals that cover",
            *(share, 0.9, 1.0),
            source="the intervals' definition",
            # Of one query at one point: points of one seed are not independent.
            uncertainty=math.sqrt(max(share * (1 - share), 0.0) / options.seeds),
            why_not=WHY_NOT.get((name, kind), ""),
        )


def run(context: Context, options: Options) -> Outcome:
    warnings.filterwarnings("ignore", message="effective_dimension")
    spectra = {name: SPECTRA[name](options.n) for name in options.spectra}
    spectra |= {network.name: network.exact(context) for network in options.networks}
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    for name, exact in spectra.items():
        for size in options.sizes:
            covered, widths = coverage(exact, size, options)
            if size == options.sizes[0]:
                findings += judged(context, name, size, covered, options)
            for title, share in covered.items():
                what = f"{name}/{size.name}/{title.replace('/', 'over')}"
                values[f"{what}/covered"] = share
                values[f"{what}/half-width"] = widths[title]
                print(f"{what}: {share:.1%} ({widths[title]:.1g})", flush=True)
    return Outcome(findings, values)


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


STUDY = Study(
    title="How often do 95 % intervals cover the truth?",
    source="the package's own claims",
    run=run,
    scales={
        "test": Options(seeds=1, n=150, spectra=FEW),
        "cpu": Options(),
        "gpu": Options(
            (Size("block", 12, 15), Size("block", 36, 10), Size("slq", 10, 90)),
            seeds=200,
            networks=MNIST,
        ),
    },
    group="accuracy",
    data=("mnist",),
)
