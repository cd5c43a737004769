"""Index against loss at the critical points of small networks.

1. Dauphin et al. (2014, arXiv:1406.2572): the share of negative eigenvalues at critical points
   grows with the loss. A tanh network with one hidden layer, on MNIST pictures of 4 x 4 pixels of
   three digits, cross entropy with weight decay, which takes away the null directions of the
   softmax. Starts are points along trajectories of SGD, with noise; Newton steps lead to
   |g| <= 1e-10, and ``hs.classify`` says what is there. Searches that do not end there are counted,
   and left out.
2. Pennington & Bahri (2017, "Geometry of neural network loss surfaces via random matrix theory"):
   with e the loss by output, alpha ~ |e - e_c|^(3/2) above an energy e_c, below which there are
   minima only. Their setting: one hidden layer of ReLU without biases, as many inputs, hidden units
   and outputs, Gaussian data; phi = 2 n / m for m samples. The gradient of a ReLU network jumps
   where a unit of a sample switches, and searches end there, at the least |g| around, with g != 0:
   how many converge is told, and all ends are used. A tanh network is beside it. For comparison,
   not judged: e_c where the Hessian is the free sum of a Wishart and a Wigner matrix.

Two answers are known: the eigenvalues that the package finds at the points are those of the second
derivatives as they are written out here (benchmarks/suite/two_layer.py), and the fit finds the
exponent of numbers that follow a power law. The study's folder has critical.h5, which query and
plot read. The test takes the shipped digits, and few searches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import least_squares
from torch import Tensor

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.pictures import Digits, of_classes
from benchmarks.suite.two_layer import TwoLayer, newton
from hessian_spectrum.landscape.results.correlation import LEAST, correlation

CLASSES, SIDE, HIDDEN, DECAY = 3, 4, 3, 1e-2
SAMPLES, BATCH, LR = 100, 20, 0.3
TOL = 1e-10  # of |g|
ZERO = 1e-7  # eigenvalues of at most this magnitude are not counted as negative
DAUPHIN, PENNINGTON = "Dauphin et al. 2014", "Pennington & Bahri 2017"
Activation = Literal["relu", "tanh"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "tanh")
Z95 = 1.96
# The theory is of large n, and of critical points.
WHY_NOT: dict[Activation, str] = {
    "relu": "no search of a ReLU network of 8 units ends at a critical point: the gradient jumps",
    "tanh": "searches have not converged, in 8 dimensions",
}
SOURCES = "the package and written-out derivatives"


@dataclass(frozen=True)
class Options:
    """
    Args:
        runs: of SGD, ten starts each.
        steps: Newton steps of a search.
        width: inputs, hidden units and outputs, for the exponent.
        m: Gaussian samples.
        draws: of the Gaussian data, among which the searches are divided.
        resamples: of the bootstrap.
    """

    data: Digits = "mnist"
    runs: int = 100
    sgd_steps: int = 1000
    steps: int = 50
    width: int = 8
    m: int = 64
    searches: int = 240
    draws: int = 6
    energy_steps: int = 40
    resamples: int = 200
    seed: int = 0

    @property
    def phi(self) -> float:
        """Parameters over residuals."""
        return 2 * self.width / self.m


# -- index against loss ----------------------------------------------------------------------------


def noisy(theta: Tensor, least: float, most: float, rng: np.random.Generator) -> Tensor:
    """Gaussian noise added, of 10^least to 10^most times the root mean square of each point."""
    size = torch.from_numpy(10 ** rng.uniform(least, most, (len(theta), 1)))
    noise = torch.from_numpy(rng.standard_normal(theta.shape))
    return theta + size * theta.square().mean(1, keepdim=True).sqrt() * noise


def trajectories(net: TwoLayer, runs: int, steps: int, rng: np.random.Generator) -> Tensor:
    """Ten points of each of several runs of SGD, after 1 to ``steps`` steps, log-evenly."""
    first, second = net.shapes
    sizes = [torch.full((r * c,), c**-0.5) for r, c in (first, second)]
    theta = torch.from_numpy(rng.standard_normal((runs, net.n))) * torch.cat(sizes)
    stops, kept = set(np.geomspace(1, steps, 10).astype(int).tolist()), []
    for step in range(1, steps + 1):
        rows = torch.from_numpy(rng.integers(len(net.x), size=BATCH))
        theta = theta - LR * replace(net, x=net.x[rows], y=net.y[rows]).gradients(theta)
        if step in stops:
            kept.append(theta)
    return torch.cat(kept)


def index_net(context: Context, options: Options) -> TwoLayer:
    x, y = of_classes(context, options.data, SIDE, CLASSES, SAMPLES)
    return TwoLayer(x, y, HIDDEN, "tanh", "cross-entropy", True, DECAY)


def searched(net: TwoLayer, options: Options) -> dict[str, Any]:
    """Parameters and |g| where the searches have ended, in the order of ``TwoLayer``."""
    rng = np.random.default_rng(options.seed)
    starts = noisy(trajectories(net, options.runs, options.sgd_steps, rng), -1.5, 0.5, rng)
    thetas, norms = newton(net, starts, options.steps, TOL)
    return {"thetas": thetas.numpy(), "norms": norms.numpy()}


def classified(net: TwoLayer, thetas: Tensor, starts: int) -> hs.CriticalPoints:
    """What the points are at which searches from so many starts have ended."""
    thetas = net.parameters(thetas)
    data = (net.x, net.y.argmax(1))
    ev = hs.Evaluator(net.module(), torch.nn.CrossEntropyLoss(), data, weight_decay=DECAY)
    points = [hs.classify(ev, theta) for theta in thetas]
    about = {"n": ev.n, "starts": starts, "num_samples": len(net.x)}
    return hs.CriticalPoints.of(points, thetas.numpy(), **about)


def spread_of(fisher: tuple[float, float]) -> float:
    """The standard deviation of a Gaussian with that interval of 95 %."""
    return (fisher[1] - fisher[0]) / (2 * Z95)


def judged_index(
    context: Context, net: TwoLayer, thetas: Tensor, found: hs.CriticalPoints
) -> list[Finding]:
    # Copies of a point, by permuted or negated units, have its loss.
    index = found.values["negative"]
    losses, indices = np.unique(np.stack([np.round(found.loss, 8), index]), axis=1)
    findings = [context.check("critical points", len(found), 200, np.inf, source=DAUPHIN)]
    for which, x, y in (
        ("points", index, found.loss),
        ("points that differ in loss or index", indices, losses),
    ):
        if len(x) < LEAST:
            continue
        told = correlation(x, y, rank=True)
        print(f"Spearman's correlation of index and loss of {which}: {told}")
        findings.append(
            context.check(
                f"rank correlation of index and loss, {which}",
                told.value,
                *(0.8, 1.0),
                source=DAUPHIN,
                uncertainty=spread_of(told.fisher),
            )
        )
    expected = torch.linalg.eigvalsh(net.hessians(thetas)).numpy()
    size = np.abs(expected).max(1, keepdims=True)
    findings.append(
        context.check(
            "eigenvalues at all points: largest difference over the largest eigenvalue",
            np.max(np.abs(found.eigenvalues - expected) / size),
            *(0.0, 1e-11),
            source=SOURCES,
            judged_from="test",
        ),
    )
    return findings


# -- the exponent ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ends:
    """Where searches have ended: one entry a search."""

    activation: Activation
    energy: np.ndarray  # loss by output
    alpha: np.ndarray  # share of negative eigenvalues
    gradient: np.ndarray  # |g|
    start: np.ndarray  # |g| at the start

    @property
    def converged(self) -> np.ndarray:
        return self.gradient <= 10 * TOL


def ends_of(context: Context, activation: Activation, options: Options) -> Ends:
    found = context.kept(f"ends-{activation}", options, lambda: energies(activation, options))
    return Ends(activation, *(found[name] for name in ("energy", "alpha", "gradient", "start")))


def energies(activation: Activation, options: Options) -> dict[str, Any]:
    """Of searches from points along gradient descent with noise, for several draws of the data."""
    parts = []
    for seed in range(options.draws):
        rng = np.random.default_rng([options.seed, seed])
        x, y = (torch.from_numpy(rng.standard_normal((options.m, options.width))) for _ in range(2))
        net = TwoLayer(x, y, options.width, activation, "mse", False)
        count = options.searches // options.draws
        theta = torch.from_numpy(rng.standard_normal((count, net.n))) / options.width**0.5
        stop = torch.from_numpy(10 ** rng.uniform(0, 2.5, count))
        for step in range(int(stop.max())):
            going = stop > step
            theta[going] -= LR * net.gradients(theta[going])
        theta = noisy(theta, -2.0, 0.0, rng)
        start = net.gradients(theta).norm(dim=1)
        theta, norms = newton(net, theta, options.energy_steps, 10 * TOL)
        eigenvalues = torch.linalg.eigvalsh(net.hessians(theta))
        alpha = (eigenvalues < -ZERO).double().mean(1)
        energy = net.losses(theta) / options.width
        parts.append({"energy": energy, "alpha": alpha, "gradient": norms, "start": start})
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def fitted(energy: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(scale, e_c, exponent) of alpha = scale max(e - e_c, 0)^exponent, by least squares."""

    def left(p: np.ndarray) -> np.ndarray:
        above = np.maximum(energy - p[1], 1e-12)
        return np.exp(p[0]) * above ** p[2] - alpha

    low, high = energy.min(), energy.max()
    bounds = ([-10.0, low - (high - low), 0.2], [10.0, high, 5.0])
    return least_squares(left, (0.0, low - 0.01 * (high - low), 1.5), bounds=bounds).x


def intervals(ends: Ends, seed: int, resamples: int) -> np.ndarray:
    """(3, 3): value, low and high of each fitted number; 95 %, bootstrap over the searches."""
    rng, count = np.random.default_rng(seed), len(ends.energy)
    drawn = (rng.integers(count, size=count) for _ in range(resamples))
    each = [fitted(ends.energy[i], ends.alpha[i]) for i in drawn]
    low, high = np.quantile(each, [0.025, 0.975], axis=0)
    return np.stack([fitted(ends.energy, ends.alpha), low, high], axis=1)


def critical_energy(phi: float) -> float:
    """The energy from which on the Hessian has negative eigenvalues, as a free sum, 0 < phi < 1.

    Of a Wishart matrix of ratio phi and mean eigenvalue 1, R-transform 1 / (1 - phi z), and a
    Wigner one of variance 2 e, R-transform 2 e z. The lower edge of the sum is at the z < 0 where
    B(z) = 1 / z + 1 / (1 - phi z) + 2 e z is stationary; it is 0 at e_c. B = B' = 0 is a quadratic
    equation for z, and e_c = (1 - 20 phi - 8 phi^2 + (1 + 8 phi)^(3/2)) / 16.
    """
    return (1 - 20 * phi - 8 * phi**2 + (1 + 8 * phi) ** 1.5) / 16


def exponent_of_a_power_law() -> float:
    """What the fit finds where alpha is 0.4 (e - 0.3)^(3/2), from the least energy on."""
    energy = np.linspace(0.3, 1.0, 200)
    return float(fitted(energy, 0.4 * (energy - 0.3) ** 1.5)[2])


def judged_exponent(
    context: Context, ends: Ends, fit: np.ndarray, options: Options
) -> list[Finding]:
    what = f"{ends.activation}, phi = {options.phi:g}"
    told = correlation(ends.energy, ends.alpha, rank=True)
    left = float(np.median(ends.gradient / ends.start))
    half = float(fit[2, 2] - fit[2, 1]) / 2
    print(
        f"{what}: {ends.converged.sum()} of {len(ends.alpha)} searches converge, |g| falls to "
        f"{left:.2g} of the start's (median); exponent {fit[2, 0]:.2f} ({fit[2, 1]:.2f} to "
        f"{fit[2, 2]:.2f}), e_c {fit[1, 0]:.3f} ({fit[1, 1]:.3f} to {fit[1, 2]:.3f}), least energy "
        f"{ends.energy.min():.3f}; that of a free sum "
        f"{critical_energy(options.phi):.3f}; rank correlation {told}"
    )
    return [
        context.check(
            f"{what}: rank correlation of alpha and energy",
            told.value,
            *(0.8, 1.0),
            source=PENNINGTON,
            uncertainty=spread_of(told.fisher),
        ),
        context.check(
            f"{what}: exponent of alpha in e - e_c",
            fit[2, 0],
            *(1.5 - half, 1.5 + half),
            source=PENNINGTON,
            uncertainty=half / Z95,
            why_not=WHY_NOT[ends.activation],
        ),
    ]


def figure(found: hs.CriticalPoints, each: list[tuple[Ends, np.ndarray]]) -> Figure:
    """Index against loss, then alpha against energy with the fit."""
    picture = Figure(figsize=(4.5 * (1 + len(each)), 4), layout="constrained")
    first, *others = picture.subplots(1, 1 + len(each))
    first.plot(found.loss, found.values["negative"], "o", ms=3)
    first.set_title("tanh, cross entropy")
    first.set_xlabel("loss")
    first.set_ylabel("negative eigenvalues")
    for axes, (ends, fit) in zip(others, each):
        done = ends.converged
        for which, marker, label in ((done, "o", "converged"), (~done, "x", "g is not 0")):
            axes.plot(ends.energy[which], ends.alpha[which], marker, ms=3, label=label)
        e = np.linspace(fit[1, 0], ends.energy.max(), 200)
        curve = np.exp(fit[0, 0]) * np.maximum(e - fit[1, 0], 0) ** fit[2, 0]
        axes.plot(e, curve, "k", lw=1, label=f"exponent {fit[2, 0]:.2f}")
        axes.set_title(f"{ends.activation}, squared error")
        axes.set_xlabel("energy: loss by output")
        axes.set_ylabel("share of negative eigenvalues")
        axes.legend(frameon=False, fontsize=8)
    return picture


def values_of(ends: Ends, fit: np.ndarray) -> Mapping[str, Any]:
    names = ("energy", "alpha", "gradient", "start")
    each = {f"{ends.activation}/{name}": getattr(ends, name) for name in names}
    return {**each, f"{ends.activation}/fit": fit}


def run(context: Context, options: Options) -> Outcome:
    net = index_net(context, options)
    kept = context.kept("searches", options, lambda: searched(net, options))
    thetas = torch.from_numpy(kept["thetas"][kept["norms"] <= TOL])
    found = classified(net, thetas, len(kept["norms"]))
    hs.save(context.folder / "critical.h5", found)
    print(f"{len(found)} of {found.about['starts']} searches converge")
    findings = judged_index(context, net, thetas, found)
    values: dict[str, Any] = {"loss": found.loss, "index": found.values["negative"]}
    each = []
    for activation in ACTIVATIONS:
        ends = ends_of(context, activation, options)
        fit = intervals(ends, options.seed, options.resamples)
        each.append((ends, fit))
        findings += judged_exponent(context, ends, fit, options)
        values |= values_of(ends, fit)
    claim = "exponent that the fit finds of a power law of exponent 3/2"
    findings.append(
        context.check(
            claim,
            exponent_of_a_power_law(),
            *(1.5 - 1e-6, 1.5 + 1e-6),
            source="the law",
            judged_from="test",
        )
    )
    notes = (
        f"e_c where the Hessian is the free sum of a Wishart and a Wigner matrix is "
        f"{critical_energy(options.phi):.3f}, for comparison."
    )
    return Outcome(findings, values, figure(found, each), notes)


STUDY = Study(
    title="Does the index of critical points grow with the loss?",
    source="Dauphin et al. 2014, figure 1; Pennington & Bahri 2017",
    run=run,
    scales={
        "test": Options(
            data="digits",
            runs=4,
            sgd_steps=100,
            steps=40,
            width=3,
            m=24,
            searches=12,
            draws=1,
            energy_steps=10,
            resamples=5,
        ),
        "cpu": Options(),
    },
    data=("mnist",),
)
