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

OUT holds critical.h5 (query, plot), findings.json and two pictures.

    python benchmarks/critical_index.py --data-root DATA --out index    # DATA: MNIST's folder
    python benchmarks/critical_index.py --quick --out index             # shipped digits, seconds
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from findings import Finding, report, within
from matplotlib.figure import Figure
from scipy.optimize import least_squares
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from two_layer import TwoLayer, newton

import hessian_spectrum as hs
from hessian_spectrum.landscape.results.correlation import correlation
from hessian_spectrum.plotting.critical_views import critical_figure

CLASSES, SIDE, HIDDEN, DECAY = 3, 4, 3, 1e-2
SAMPLES, BATCH, LR = 100, 20, 0.3
TOL = 1e-10
ZERO = 1e-7  # eigenvalues of at most this magnitude are not counted as negative
RESAMPLES = 200
DAUPHIN, PENNINGTON = "Dauphin et al. 2014", "Pennington & Bahri 2017"


# -- index against loss ----------------------------------------------------------------------------


def pictures(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """(samples, pixels), centred and of variance 1, and one-hot labels."""
    name = "digits" if args.quick else "mnist"
    x, y = hs.zoo.load_dataset(name, data_root=args.data_root, limit=10 * SAMPLES).tensors
    x, y = x[y < CLASSES][:SAMPLES], y[y < CLASSES][:SAMPLES]
    x = adaptive_avg_pool2d(x.double(), SIDE).flatten(1)
    return (x - x.mean(0)) / x.std(), torch.eye(CLASSES).double()[y]


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


def index_and_loss(args: argparse.Namespace) -> hs.CriticalPoints:
    x, y = pictures(args)
    net = TwoLayer(x, y, HIDDEN, "tanh", "cross-entropy", True, DECAY)
    rng = np.random.default_rng(args.seed)
    starts = noisy(trajectories(net, args.runs, args.sgd_steps, rng), -1.5, 0.5, rng)
    found, norms = newton(net, starts, args.steps, TOL)
    thetas = net.parameters(found[norms <= TOL])
    data = (x, y.argmax(1))
    ev = hs.Evaluator(net.module(), torch.nn.CrossEntropyLoss(), data, weight_decay=DECAY)
    points = [hs.classify(ev, theta) for theta in thetas]
    about = {"n": ev.n, "starts": len(starts), "num_samples": len(x)}
    return hs.CriticalPoints.of(points, thetas.numpy(), **about)


def findings_of_index(found: hs.CriticalPoints, args: argparse.Namespace) -> list[Finding]:
    judged = not args.quick
    told = found.rank_correlation()
    print(f"Spearman's correlation of index and loss: {told}")
    # Copies of a point, by permuted or negated units, have its loss.
    alike = [(round(loss, 8), k) for loss, k in zip(found.loss, found.values["negative"])]
    loss, index = np.array(sorted(set(alike))).T
    distinct = correlation(index, loss, rank=True)
    print(f"of points that differ in loss or index: {distinct}")
    half = (told.fisher[1] - told.fisher[0]) / 2
    of_distinct = (distinct.fisher[1] - distinct.fisher[0]) / 2
    return [
        within("critical points", DAUPHIN, len(found), 200, np.inf, judged=judged),
        within(
            f"rank correlation of index and loss, {told.count} points",
            DAUPHIN,
            told.value,
            0.8,
            1.0,
            half,
            judged,
        ),
        within(
            f"that correlation, {distinct.count} points that differ in loss or index",
            DAUPHIN,
            distinct.value,
            0.8,
            1.0,
            of_distinct,
            judged,
        ),
    ]


# -- the exponent ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ends:
    """Where searches have ended: one entry a search."""

    activation: str
    energy: np.ndarray  # loss by output
    alpha: np.ndarray  # share of negative eigenvalues
    gradient: np.ndarray  # |g|
    start: np.ndarray  # |g| at the start

    @property
    def converged(self) -> np.ndarray:
        return self.gradient <= 10 * TOL


def ends_of(activation: str, args: argparse.Namespace) -> Ends:
    """Of searches from points along gradient descent with noise, for several draws of the data."""
    parts = []
    for seed in range(args.draws):
        rng = np.random.default_rng([args.seed, seed])
        x, y = (torch.from_numpy(rng.standard_normal((args.m, args.width))) for _ in range(2))
        net = TwoLayer(x, y, args.width, activation, "mse", False)
        count = args.searches // args.draws
        theta = torch.from_numpy(rng.standard_normal((count, net.n))) / args.width**0.5
        stop = torch.from_numpy(10 ** rng.uniform(0, 2.5, count))
        for step in range(int(stop.max())):
            going = stop > step
            theta[going] -= LR * net.gradients(theta[going])
        theta = noisy(theta, -2.0, 0.0, rng)
        start = net.gradients(theta).norm(dim=1)
        theta, norms = newton(net, theta, args.energy_steps, 10 * TOL)
        eigenvalues = torch.linalg.eigvalsh(net.hessians(theta))
        alpha = (eigenvalues < -ZERO).double().mean(1)
        energy = net.losses(theta) / args.width
        parts.append([energy.numpy(), alpha.numpy(), norms.numpy(), start.numpy()])
    return Ends(activation, *(np.concatenate(column) for column in zip(*parts)))


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


def findings_of_exponent(ends: Ends, fit: np.ndarray, args: argparse.Namespace) -> list[Finding]:
    judged = not args.quick
    phi, what = 2 * args.width / args.m, f"{ends.activation}, phi = {2 * args.width / args.m:g}"
    told = correlation(ends.energy, ends.alpha, rank=True)
    left = float(np.median(ends.gradient / ends.start))
    half = (fit[:, 2] - fit[:, 1]) / 2
    print(
        f"{what}: {ends.converged.sum()} of {len(ends.alpha)} searches converge, |g| falls to "
        f"{left:.2g} of the start's (median); exponent {fit[2, 0]:.2f} ({fit[2, 1]:.2f} to "
        f"{fit[2, 2]:.2f}), e_c {fit[1, 0]:.3f} ({fit[1, 1]:.3f} to {fit[1, 2]:.3f}), least energy "
        f"{ends.energy.min():.3f}; that of a free sum "
        f"{critical_energy(phi):.3f}; rank correlation {told}"
    )
    return [
        within(
            f"{what}: rank correlation of alpha and energy",
            PENNINGTON,
            told.value,
            0.8,
            1.0,
            (told.fisher[1] - told.fisher[0]) / 2,
            judged,
        ),
        within(
            f"{what}: exponent of alpha in e - e_c",
            PENNINGTON,
            float(fit[2, 0]),
            1.5 - float(half[2]),
            1.5 + float(half[2]),
            float(half[2]),
            judged,
        ),
    ]


def figure(each: list[tuple[Ends, np.ndarray]]) -> Figure:
    picture = Figure(figsize=(5 * len(each), 4), layout="constrained")
    for axes, (ends, fit) in zip(picture.subplots(1, len(each), squeeze=False)[0], each):
        done = ends.converged
        for which, marker, label in ((done, "o", "converged"), (~done, "x", "g is not 0")):
            axes.plot(ends.energy[which], ends.alpha[which], marker, ms=3, label=label)
        e = np.linspace(fit[1, 0], ends.energy.max(), 200)
        curve = np.exp(fit[0, 0]) * np.maximum(e - fit[1, 0], 0) ** fit[2, 0]
        axes.plot(e, curve, "k", lw=1, label=f"exponent {fit[2, 0]:.2f}")
        axes.set_title(ends.activation)
        axes.set_xlabel("energy: loss by output")
        axes.set_ylabel("share of negative eigenvalues")
        axes.legend(frameon=False, fontsize=8)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="MNIST's folder")
    parser.add_argument("--runs", type=int, default=100, help="of SGD, ten starts each")
    parser.add_argument("--sgd-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50, help="Newton steps of a search")
    parser.add_argument("--width", type=int, default=8, help="inputs, hidden units and outputs")
    parser.add_argument("--m", type=int, default=64, help="Gaussian samples")
    parser.add_argument("--searches", type=int, default=240)
    parser.add_argument("--draws", type=int, default=6, help="of the Gaussian data")
    parser.add_argument("--energy-steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("index"))
    args = parser.parse_args()
    if args.data_root is None and not args.quick:
        parser.error("--data-root is missing: MNIST's folder, or use --quick")
    if args.quick:
        args.runs, args.sgd_steps, args.steps = 4, 100, 30
        args.width, args.m, args.searches, args.draws, args.energy_steps = 3, 24, 40, 2, 15
    args.out.mkdir(exist_ok=True)
    begin = time.perf_counter()
    found = index_and_loss(args)
    hs.save(args.out / "critical.h5", found)
    critical_figure(found, "tanh, cross entropy").savefig(args.out / "critical.png", dpi=110)
    seconds = time.perf_counter() - begin
    print(f"{len(found)} of {found.about['starts']} searches converge, {seconds:.0f} s", flush=True)
    findings = findings_of_index(found, args)
    each = []
    for activation in ("relu", "tanh"):
        ends = ends_of(activation, args)
        each.append((ends, intervals(ends, args.seed, 20 if args.quick else RESAMPLES)))
        findings += findings_of_exponent(*each[-1], args)
    print(f"{time.perf_counter() - begin:.0f} s")
    report(findings, args.out / "findings.json", args)
    figure(each).savefig(args.out / "exponent.png", dpi=110)


if __name__ == "__main__":
    main()
