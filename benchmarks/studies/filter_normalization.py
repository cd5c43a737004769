"""Surfaces in filter-normalized directions: rescaled, small-batch, deep and wide networks.

Li, Xu, Taylor, Studer & Goldstein (2018, "Visualizing the loss landscape of neural nets",
arXiv:1712.09913) scale each filter of a random direction to the norm of the network's own filter.

- Exact: a ReLU network whose first layer is multiplied by c, and whose second one is divided by it,
  computes the same function. Its filter-normalized surface is the same; the one in plain Gaussian
  directions is not.
- Their figures 2 and 3: networks are trained with small and with large batches for the same number
  of epochs, with and without weight decay. On the line between two of them the one with the smaller
  weights looks sharper; in filter-normalized directions the one with the larger test error is.
  Sharpness is the mean rise of the loss on both sides of a network: a quarter of the line away, and
  at |a| = 0.5. BatchNorm has the statistics of all the data on the line, running ones elsewhere.
- Their figures 5 to 7: surfaces of slim ResNets with and without shortcuts, the shallowest also of
  twice the width, and of a DenseNet. Chaos is the share of the plane's inner points at which the
  matrix of the grid's second differences has a negative eigenvalue; flatness, the share of the
  plane with a loss below that of a guess. At one depth also |smallest / largest eigenvalue| of the
  Hessian, at the end of training and on average over the plane.

CIFAR-10 pictures have 16 x 16 pixels. A claim on two networks is judged where both are trained: to
half of the loss of a guess at most. One that ranks two test errors is judged where they differ by
two standard errors. The test has the shipped digits and tiny networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.pictures import small_pictures
from hessian_spectrum.zoo import problem_loader

SOURCE = "Li et al. 2018"
SCALE = 10.0  # c, of the rescaled network
GUESS = math.log(10.0)  # the loss of one among ten classes
ASIDE = 0.25  # of a line, from its ends
HALF = 0.5  # |a| at which profiles are compared
ROUNDING = 1e-6  # of a loss in float32, relative
FEW_STEPS = (
    "the large batch leaves few steps: its network is not at a minimum, and after 200 epochs both "
    "have the same test error"
)
SHORT_DECAY = (
    "in so few steps decay alone would shrink the weights by a factor of 0.4 at most, while "
    "training makes them grow by more"
)
WEAK = (
    "theirs is read off contours, which show strong curvature alone: in ResNets with shortcuts the "
    "negative eigenvalue is above a quarter of the positive one at 7 % of the points on average"
)


@dataclass(frozen=True)
class Options:
    """
    Args:
        samples: CIFAR-10 pictures that residual networks are trained with; 0: 60 shipped digits.
        surface_samples: of these, for surfaces; ``map_samples`` for eigenvalues.
        depths: of residual networks; the map is that of ``map_depth``.
        width: of their channels; ``wider``: also the shallowest.
        epochs: of residual networks; ``batch`` and ``decay`` are theirs, too.
        points: of a side of a plane, and ``planes`` through each network.
        pair_samples: pictures that the convolutional network is trained with, by both ``batches``.
        line_points: from half of the line in front of the first of them to half of it behind the
            second.
        directions: through each of these networks.
    """

    samples: int = 1000
    surface_samples: int = 200
    depths: tuple[int, ...] = (20, 32, 56)
    width: float = 0.25
    wider: float = 0.5
    dense: str = "densenet-22-6"
    epochs: int = 30
    batch: int = 50
    lr: float = 0.05
    decay: float = 5e-4
    points: int = 11
    planes: int = 2
    map_depth: int = 32
    map_points: int = 5
    map_samples: int = 64
    map_tol: float = 1e-2
    pair_model: str = "cnn"
    pair_samples: int = 2000
    pair_epochs: int = 60
    batches: tuple[int, int] = (32, 512)
    decays: tuple[float, ...] = (0.0, 5e-4)
    line_points: int = 25
    directions: int = 5


# -- the exact claim ------------------------------------------------------------------------------


def rescaled(context: Context) -> tuple[float, float]:
    """A dense ReLU network and its copy, the first layer times c and the second one over c.

    Returns:
        the largest relative difference of losses in the filter-normalized plane, and the ratio of
        the mean rises of the loss in the plane of plain Gaussian directions, which are as long as
        the network's weights.
    """
    problem = ("--model", "mlp-64-32-32-10", "--activation", "relu", "--dataset", "digits")
    folder = context.network(*problem, "--epochs", 4, "--every", 4, "--lr", 0.05)
    fields = {"model": problem[1], "activation": "relu", "dataset": "digits", "dtype": "float64"}
    config = hs.SurfaceConfig(**fields, limit=300, checkpoint=folder / "epoch-0004.pt")
    loaded = problem_loader.load(config)
    ev = loaded.evaluator()
    units = [torch.full((32,), c, dtype=torch.float64) for c in (SCALE, 1.0)]
    other = hs.Rescalings.of(loaded.model).apply(units, ev.theta)
    filtered = [plane_at(ev, theta, "filter", 1.0) for theta in (ev.theta, other)]
    length = float(ev.theta.norm()) / math.sqrt(ev.n)
    plain = [plane_at(ev, theta, "none", length) for theta in (ev.theta, other)]
    rises = [found.loss.mean() - found.loss[3, 3] for found in plain]
    apart = np.abs(filtered[1].loss / filtered[0].loss - 1).max()
    return float(apart), float(rises[1] / rises[0])


def plane_at(ev: hs.Evaluator, theta: torch.Tensor, normalize: str, reach: float) -> hs.Surface:
    directions = hs.directions.random(ev, theta, normalize=normalize)
    axis = np.linspace(-reach, reach, 7)
    return hs.surface(ev, directions, (axis, axis))


def of_rescaled(context: Context, apart: float, plain: float) -> list[Finding]:
    said = {"source": f"{SOURCE}, section 4", "judged_from": "test"}
    claim = "first layer times 10, second over 10"
    return [
        context.check(
            f"{claim}: losses in the filter-normalized plane, largest relative difference",
            *(apart, 0.0, 1e-10),
            **said,
        ),
        context.check(
            f"{claim}: mean rise of the loss in the plane without normalization, over that before",
            *(plain, 10.0, math.inf),
            **said,
        ),
    ]


# -- small and large batches ----------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """One network of a pair: small or large batches."""

    norm: float  # of the weights of convolutions and dense layers
    error: float  # share of wrong labels on test data
    num_test: int
    profiles: Sequence[hs.Curve]  # along the directions

    @property
    def rises(self) -> NDArray[np.float64]:
        return np.array([rise(profile, 0.0, HALF) for profile in self.profiles])

    @property
    def error_variance(self) -> float:
        return self.error * (1 - self.error) / self.num_test


@dataclass(frozen=True)
class PairOfBatches:
    decay: float
    line: hs.Curve  # from small batches to large ones
    ends: tuple[Trained, Trained]

    @property
    def name(self) -> str:
        return f"weight decay {self.decay:g}" if self.decay else "no weight decay"


def rise(curve: hs.Curve, t: float, aside: float) -> float:
    """The mean loss at both sides of t, minus that at t."""
    return float((curve.at(t - aside) + curve.at(t + aside)) / 2 - curve.at(t))


def weights_norm(checkpoint: Path) -> float:
    """Of all tensors but those of BatchNorm and biases."""
    state = torch.load(checkpoint, weights_only=True)["model"]
    return math.sqrt(sum(float(v.square().sum()) for v in state.values() if v.ndim > 1))


def pair(context: Context, options: Options, decay: float) -> PairOfBatches:
    problem = (
        *problem_of(context, options.pair_samples),
        *("--model", options.pair_model, "--activation", "relu"),
    )
    epochs = options.pair_epochs
    checkpoints = [
        context.network(
            *(*problem, "--batch-size", batch, "--weight-decay", decay, "--lr", options.lr),
            *training(epochs),
        )
        / f"epoch-{epochs:04d}.pt"
        for batch in options.batches
    ]
    ends = [trained(context, options, problem, decay, *made) for made in enumerate(checkpoints)]
    with context.computed(
        context.folder / f"line-{decay:g}.h5",
        "interpolate",
        *(*problem, "--between", *checkpoints, "--batch-norm", "recalibrate"),
        *("--low", -0.5, "--high", 1.5, "--num-points", options.line_points),
    ) as run:
        return PairOfBatches(decay, run["curve"], (ends[0], ends[1]))


def trained(
    context: Context,
    options: Options,
    problem: Sequence[object],
    decay: float,
    which: int,
    checkpoint: Path,
) -> Trained:
    profiles = []
    for seed in range(options.directions):
        with context.computed(
            context.folder / f"profile-{decay:g}-{options.batches[which]}-{seed}.h5",
            "surface",
            *(*problem, "--checkpoint", checkpoint, "--directions", "random", "--seed", seed),
            *("--x-points", 13, "--test"),
        ) as run:
            profiles.append(run["surface"].row())
    error = 1 - float(profiles[0].at(0.0, "test_accuracy"))
    num_test = len(test_labels(context, options))
    return Trained(weights_norm(checkpoint), error, num_test, profiles)


def test_labels(context: Context, options: Options) -> NDArray[np.int64]:
    """Those of the pictures that ``--test`` evaluates."""
    fields = {"dataset": "digits", "limit": 60}
    if options.pair_samples:
        fields = {"dataset": "arrays", "data_root": small_pictures(context, options.pair_samples)}
    config = hs.SurfaceConfig(model=options.pair_model, split="test", **fields)
    return np.asarray(problem_loader.load(config).data[1])


def of_pairs(context: Context, pairs: Sequence[PairOfBatches]) -> list[Finding]:
    found: list[Finding] = []
    for each in pairs:
        small, large = each.ends
        at_ends = [rise(each.line, t, ASIDE) for t in (0.0, 1.0)]
        light, heavy = (0, 1) if small.norm < large.norm else (1, 0)
        worse, better = (small, large) if small.error > large.error else (large, small)
        differ = worse.error - better.error
        is_clear = differ >= 2 * math.sqrt(small.error_variance + large.error_variance)
        ratio = worse.rises.mean() / better.rises.mean()
        spread = (worse.rises / better.rises).std(ddof=1) / math.sqrt(len(worse.rises))
        by_error = context.check(
            f"{each.name}: filter-normalized, rise of the loss at |a| = {HALF:g} around the "
            "network of the larger test error, over that around the other",
            *(ratio, 1.0, math.inf),
            source=f"{SOURCE}, figure 3",
            uncertainty=spread,
            why_not=FEW_STEPS,
        )
        found += [
            context.check(
                f"{each.name}: norm of the small-batch network's weights over that of the "
                "large-batch one's",
                *(small.norm / large.norm, *((0.0, 1.0) if each.decay else (1.0, math.inf))),
                source=f"{SOURCE}, figure 2",
                why_not=SHORT_DECAY if each.decay else "",
            ),
            context.check(
                f"{each.name}: on the line, rise of the loss beside the network of the smaller "
                "weights, over that beside the other",
                *(at_ends[light] / at_ends[heavy], 1.0, math.inf),
                source=f"{SOURCE}, figure 2",
            ),
            replace(by_error, is_judged=by_error.is_judged and is_clear),
        ]
    return found


# -- depth, shortcuts, width ----------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A residual or dense network."""

    model: str
    width: float
    shortcut: bool = True

    @property
    def name(self) -> str:
        kind = "" if self.shortcut else ", no shortcuts"
        return f"{self.model}, width {self.width:g}{kind}"

    def problem(self, context: Context, options: Options, limit: int = 0) -> list[object]:
        words = [*problem_of(context, options.samples, limit), "--model", self.model]
        words += ["--activation", "relu", "--width", self.width]
        return words if self.shortcut else [*words, "--no-shortcut"]


@dataclass(frozen=True)
class Measured:
    case: Case
    planes: Sequence[hs.Surface]

    @property
    def loss(self) -> float:
        """Of the trained network."""
        return float(self.planes[0].at(0.0, 0.0))

    @property
    def is_trained(self) -> bool:
        return self.loss <= GUESS / 2

    @property
    def chaos(self) -> NDArray[np.float64]:
        """(plane,)."""
        return np.array([share_not_convex(plane) for plane in self.planes])

    @property
    def flat(self) -> NDArray[np.float64]:
        """(plane,): the share of it with a loss below that of a guess."""
        return np.array([plane.share_below(GUESS) for plane in self.planes])


def share_not_convex(plane: hs.Surface) -> float:
    """Of the inner points of an even grid, those at which second differences say: not convex.

    That is, the matrix of them has a negative eigenvalue, beyond the rounding of the losses. A
    point beside a loss that is not finite does not count.
    """
    f = plane.loss
    with np.errstate(invalid="ignore"):  # inf - inf
        by_a = f[2:, 1:-1] - 2 * f[1:-1, 1:-1] + f[:-2, 1:-1]
        by_b = f[1:-1, 2:] - 2 * f[1:-1, 1:-1] + f[1:-1, :-2]
        mixed = (f[2:, 2:] - f[2:, :-2] - f[:-2, 2:] + f[:-2, :-2]) / 4
        smallest = (by_a + by_b) / 2 - np.hypot((by_a - by_b) / 2, mixed)
    around = np.lib.stride_tricks.sliding_window_view(np.abs(f), (3, 3)).max((2, 3))
    counted = np.isfinite(smallest)
    return float((smallest < -4 * ROUNDING * around)[counted].mean()) if counted.any() else math.nan


def network_of(context: Context, options: Options, case: Case) -> Path:
    """Its last checkpoint."""
    folder = context.network(
        *case.problem(context, options),
        *("--batch-size", options.batch, "--lr", options.lr, "--weight-decay", options.decay),
        *("--lr-drop", f"{2 * options.epochs // 3}:0.1"),
        *training(options.epochs),
    )
    return folder / f"epoch-{options.epochs:04d}.pt"


def measured(context: Context, options: Options, case: Case) -> Measured:
    checkpoint = network_of(context, options, case)
    problem = case.problem(context, options, options.surface_samples)
    planes = []
    for seed in range(options.planes):
        with context.computed(
            context.folder / f"{case.name}-{seed}.h5".replace(", ", "-").replace(" ", "-"),
            "surface",
            *(*problem, "--checkpoint", checkpoint, "--seed", seed, "--x-points", options.points),
        ) as run:
            planes.append(run["surface"])
    return Measured(case, planes)


def ratios(context: Context, options: Options, case: Case) -> hs.Surface:
    """|smallest / largest eigenvalue| over the first of its planes."""
    with context.computed(
        context.folder / f"map-{case.name}.h5".replace(", ", "-").replace(" ", "-"),
        "map",
        *case.problem(context, options, options.map_samples),
        *("--checkpoint", network_of(context, options, case), "--x-points", options.map_points),
        *("--tol", options.map_tol, "--hvp", "reverse"),
    ) as run:
        return run["surface"]


def of_surfaces(context: Context, found: dict[Case, Measured], options: Options) -> list[Finding]:
    shallow, deepest = options.depths[0], options.depths[-1]

    def of(depth: int, shortcut: bool, width: float = options.width) -> Measured:
        return found[Case(f"resnet{depth}", width, shortcut)]

    def more(
        claim: str,
        quantity: str,
        a: Measured,
        b: Measured,
        low: float,
        high: float,
        why_not: str = "",
    ) -> Finding:
        """That of a minus that of b, from low to high."""
        x, y = getattr(a, quantity), getattr(b, quantity)
        spread = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / len(x)) if len(x) > 1 else None
        finding = context.check(
            *(claim, x.mean() - y.mean(), low, high),
            source=f"{SOURCE}, figures 5 and 6",
            uncertainty=spread,
            why_not=why_not,
        )
        is_judged = finding.is_judged and a.is_trained and b.is_trained
        return replace(finding, is_judged=is_judged)

    part = "share of the plane that is not convex"
    claims = []
    for deep in options.depths[1:]:
        claims += [
            more(
                f"{part}: without shortcuts, depth {deep} minus {shallow}",
                *("chaos", of(deep, False), of(shallow, False), 0.0, 1.0),
            ),
            more(
                f"{part}: with shortcuts, depth {deep} minus {shallow}",
                *("chaos", of(deep, True), of(shallow, True), -1.0, 0.1, WEAK),
            ),
            more(
                f"{part}: depth {deep}, without shortcuts minus with them",
                *("chaos", of(deep, False), of(deep, True), 0.0, 1.0),
            ),
        ]
    losses = {s: of(deepest, s).loss - of(shallow, s).loss for s in (True, False)}
    claims.append(
        context.check(
            f"training fails with depth: training loss without shortcuts, depth {deepest} minus "
            f"{shallow}, minus the same with shortcuts",
            *(losses[False] - losses[True], 0.0, math.inf),
            source=f"{SOURCE}, section 1",
        )
    )
    for shortcut in (True, False):
        kind = f"depth {shallow} {'with' if shortcut else 'without'} shortcuts"
        pair_of = of(shallow, shortcut), of(shallow, shortcut, options.wider)
        claims += [
            more(f"{part}: {kind}, narrow minus wide", "chaos", *pair_of, 0.0, 1.0),
            more(
                f"share of the plane with a loss below a guess: {kind}, wide minus narrow",
                *("flat", *pair_of[::-1], 0.0, 1.0),
            ),
        ]
    dense = found[Case(options.dense, options.width)]
    claims.append(
        more(
            f"{part}: depth {deepest} without shortcuts minus {options.dense}",
            *("chaos", of(deepest, False), dense, 0.0, 1.0),
        )
    )
    return claims


def of_maps(context: Context, maps: dict[Case, hs.Surface], is_trained: bool) -> list[Finding]:
    """Of one depth, with shortcuts and without."""
    with_, without = (found.values["ratio"] for found in maps.values())
    centre = len(with_) // 2
    found = [
        context.check(
            "|smallest / largest eigenvalue|, without shortcuts over with them: at the end of "
            "training",
            *(without[centre, centre] / with_[centre, centre], 1.0, math.inf),
            source=f"{SOURCE}, figure 7",
        ),
        context.check(
            "|smallest / largest eigenvalue|, without shortcuts over with them: mean of the plane",
            *(np.nanmean(without) / np.nanmean(with_), 1.0, math.inf),
            source=f"{SOURCE}, figure 7",
        ),
    ]
    return [replace(each, is_judged=each.is_judged and is_trained) for each in found]


# -- all of it ------------------------------------------------------------------------------------


def training(epochs: int) -> list[object]:
    """Options of a training that keeps its end alone."""
    device = ("--device", "cuda") if torch.cuda.is_available() else ()
    return ["--epochs", epochs, "--every", epochs, *device]


def problem_of(context: Context, samples: int, limit: int = 0) -> list[object]:
    """Options that name the data."""
    if not samples:
        return ["--dataset", "digits", "--limit", 60]
    words = ["--dataset", "arrays", "--data-root", small_pictures(context, samples)]
    return [*words, "--limit", limit] if limit else words


def cases(options: Options) -> list[Case]:
    sizes = [(depth, options.width) for depth in options.depths]
    sizes.append((options.depths[0], options.wider))
    found = [Case(f"resnet{depth}", width, s) for depth, width in sizes for s in (True, False)]
    return [*found, Case(options.dense, options.width)]


def figure(pairs: Sequence[PairOfBatches], found: dict[Case, Measured]) -> Figure:
    """Lines and profiles of small and large batches; chaos and planes of the other networks."""
    rows = 1 + math.ceil(len(found) / 5)
    picture = Figure(figsize=(13, 2.9 * rows), layout="constrained")
    axes = picture.subplots(rows, 5)
    for index, each in enumerate(pairs[:2]):
        line, around = axes[0, index], axes[0, 2 + index]
        for axis in (line, around):
            axis.set_yscale("log")
            axis.set_title(each.name, fontsize=9)
        line.plot(each.line.t, each.line.loss, color="#444444")
        line.set_xlabel("small batches at 0, large batches at 1", fontsize=8)
        for end, color, label in zip(each.ends, ("#0072B2", "#D55E00"), ("small", "large")):
            for number, profile in enumerate(end.profiles):
                text = f"{label}: test error {end.error:.1%}" if number == 0 else None
                around.plot(profile.t, profile.loss, color=color, linewidth=0.8, label=text)
        around.legend(frameon=False, fontsize=7, loc="upper center")
        around.set_ylim(top=20 * max(p.loss.max() for end in each.ends for p in end.profiles))
        around.set_xlabel("filter-normalized a", fontsize=8)
    axes[0, 0].set_ylabel("training loss")
    by_depth(axes[0, 4], found)
    levels = np.linspace(-1, 4, 11)
    rest = axes[1:].ravel()
    for axis, each in zip(rest, found.values()):
        plane = each.planes[0]
        axis.contour(plane.a, plane.b, np.log10(plane.loss.T), levels, cmap="viridis", linewidths=1)
        axis.set_title(f"{each.case.name}\nloss {each.loss:.2f}", fontsize=8)
        axis.set_aspect("equal")
        axis.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    for axis in rest[len(found) :]:
        axis.set_axis_off()
    return picture


def by_depth(axis: Any, found: dict[Case, Measured]) -> None:
    """Chaos of the residual networks, hollow where they are not trained."""
    for each in found.values():
        if each.case.model.startswith("resnet"):
            color = "#0072B2" if each.case.shortcut else "#D55E00"
            depth = [int(each.case.model.removeprefix("resnet"))] * len(each.planes)
            marker = "o" if each.case.width == min(case.width for case in found) else "s"
            face = color if each.is_trained else "none"
            axis.plot(depth, each.chaos, marker, color=color, markerfacecolor=face)
    axis.set_title(
        "not convex: shortcuts (blue), none (red)\nsquares: wider; hollow: not trained", fontsize=8
    )
    axis.set_xlabel("depth", fontsize=8)
    axis.set_ylim(0, 1)


def print_pairs(pairs: Sequence[PairOfBatches], options: Options) -> None:
    print(
        "\n| weight decay | batch | weights | test error | rise on the line | filter-normalized |"
    )
    print("|---|---|---|---|---|---|")
    for each in pairs:
        for t, (end, batch) in enumerate(zip(each.ends, options.batches)):
            beside = rise(each.line, float(t), ASIDE)
            print(
                f"| {each.decay:g} | {batch} | {end.norm:.2f} | {end.error:.1%} | {beside:.3g} "
                f"| {end.rises.mean():.3g} ({end.rises.std():.2g}) |"
            )


def print_surfaces(found: dict[Case, Measured], maps: dict[Case, hs.Surface]) -> None:
    print("\n| network | loss | not convex | below a guess | ratio at the end, mean |")
    print("|---|---|---|---|---|")
    for case, each in found.items():
        ratio = ""
        if case in maps:
            table = maps[case].values["ratio"]
            ratio = f"{table[len(table) // 2, len(table) // 2]:.3g}, {np.nanmean(table):.3g}"
        print(
            f"| {case.name} | {each.loss:.3f} | {each.chaos.round(2).tolist()} "
            f"| {each.flat.round(2).tolist()} | {ratio} |"
        )


def values_of(
    pairs: Sequence[PairOfBatches],
    found: dict[Case, Measured],
    maps: dict[Case, hs.Surface],
    options: Options,
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for each in pairs:
        values[f"{each.name}/line"] = each.line.loss
        for end, batch in zip(each.ends, options.batches):
            values[f"{each.name}/{batch}/norm"] = end.norm
            values[f"{each.name}/{batch}/error"] = end.error
            values[f"{each.name}/{batch}/rises"] = end.rises
    for case, network in found.items():
        values[f"{case.name}/loss"] = np.stack([plane.loss for plane in network.planes])
        values[f"{case.name}/not convex"] = network.chaos
        values[f"{case.name}/below a guess"] = network.flat
    for case, plane in maps.items():
        values[f"{case.name}/ratio"] = plane.values["ratio"]
    return values


def run(context: Context, options: Options) -> Outcome:
    exact = rescaled(context)
    pairs = [pair(context, options, decay) for decay in options.decays]
    print_pairs(pairs, options)
    found = {case: measured(context, options, case) for case in cases(options)}
    mapped = [Case(f"resnet{options.map_depth}", options.width, s) for s in (True, False)]
    maps = {case: ratios(context, options, case) for case in mapped}
    print_surfaces(found, maps)
    findings = [
        *of_rescaled(context, *exact),
        *of_pairs(context, pairs),
        *of_surfaces(context, found, options),
        *of_maps(context, maps, all(found[case].is_trained for case in mapped)),
    ]
    values = values_of(pairs, found, maps, options)
    return Outcome(findings, values, figure(pairs, found))


STUDY = Study(
    title="Does filter normalization show what generalizes, and what trains?",
    source=f"{SOURCE}, figures 2, 3 and 5 to 7",
    run=run,
    scales={
        "test": Options(
            samples=0,
            depths=(8, 14),
            dense="densenet-7-4",
            epochs=2,
            batch=30,
            points=5,
            planes=1,
            map_depth=8,
            map_points=3,
            map_tol=0.3,
            pair_samples=0,
            pair_epochs=2,
            batches=(10, 60),
            decays=(5e-4,),
            line_points=9,
            directions=2,
        ),
        "cpu": Options(),
        "gpu": Options(
            *(10_000, 1000, (20, 56, 110), 1.0, 2.0, "densenet-40-12", 100),
            batch=128,
            points=25,
            map_depth=56,
            map_points=9,
            map_samples=256,
            pair_samples=10_000,
            pair_epochs=150,
            batches=(128, 2048),
        ),
    },
    data=("cifar10",),
)
