"""How much of the barrier between two trained networks is due to the order of their hidden units.

Ainsworth, Hayase & Srinivasa (2023, "Git Re-Basin: merging models modulo permutation symmetries",
ICLR) train networks from different seeds, permute the hidden units of one so that they match those
of the other, and find that the barrier of the loss on the straight line between them almost
vanishes for wide MLPs on MNIST, while slim ResNets on CIFAR-10 keep one: width decides. Their
figures are quoted here from memory, in words: near zero for MLPs with hidden layers of 512 units,
and for ResNet-20 at 32 times its width, not at its own.

Pairs of networks of different seeds, of each of several widths: 784-512-512-10 with ReLU on MNIST
digits (and an eighth and a quarter of its width), or slimmed ResNet-20 on CIFAR-10 pictures, whose
BatchNorm has the statistics of the samples at every point (Jordan et al. 2022, "REPAIR"). All in
float64. Each step is one of the package's commands: train, interpolate --match weights and --match
activations. A barrier is the height above the line between the losses of the ends.

Two answers are known: matching changes no function, and so no loss of an end; and between a network
and a copy whose hidden units are permuted at random it leaves no distance and no barrier. The test
trains on the shipped digits, for which the paper has no figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.pictures import small_pictures
from hessian_spectrum.landscape.results import Curve, MatchedLines

SOURCE = "Ainsworth et al. 2023"
METHODS = ("weights", "activations")
VALUES = ("loss", "test_loss")
NARROW = "a narrow residual network, trained briefly; theirs need many times the width"


@dataclass(frozen=True)
class Network:
    """A network of several widths, its data and how long it is trained.

    Args:
        model: options of train and interpolate.
        data: "digits", "mnist" or "cifar10".
        widths: ascending; of the whole network's.
        almost_vanishes: at width 1 and more the paper's barrier is near zero.
        has_small_pictures: of 16 x 16 pixels, and as many of them for the test.
    """

    name: str
    model: tuple[object, ...]
    data: Literal["digits", "mnist", "cifar10"]
    widths: tuple[float, ...]
    samples: int
    epochs: int
    almost_vanishes: bool = True
    has_batchnorm: bool = False
    has_small_pictures: bool = False

    def problem(self, context: Context, width: float) -> list[object]:
        """Options of both commands."""
        name = "arrays" if self.data == "cifar10" else self.data
        words: list[object] = [*self.model, "--dataset", name, "--width", width]
        if self.has_small_pictures:
            words += ["--data-root", small_pictures(context, self.samples)]
        elif self.data == "mnist" or self.data == "cifar10":
            words += ["--data-root", context.data(self.data)]
        return [*words, "--limit", self.samples, "--dtype", "float64"]


RELU = ("--activation", "relu")
PERCEPTRON = ("--model", "mlp-784-512-512-10", *RELU)
SMALL = ("--model", "mlp-64-64-64-10", *RELU)
WIDE = Network("MLP", PERCEPTRON, "mnist", (0.125, 1.0), 10_000, 20)
RESNET = Network(
    *("ResNet-20", ("--model", "resnet20"), "cifar10", (0.25, 0.5), 2000, 30),
    almost_vanishes=False,
    has_batchnorm=True,
)
SLIM_RESNET = Network(
    *("ResNet-20", ("--model", "resnet20"), "cifar10", (0.25,), 1000, 20),
    almost_vanishes=False,
    has_batchnorm=True,
    has_small_pictures=True,
)
TEST = Network("MLP", SMALL, "digits", (0.25,), 200, 20)


@dataclass(frozen=True)
class Options:
    """
    Args:
        networks: the hidden units of the first, a perceptron, are also permuted at random.
        pairs: of seeds, for each width.
        points: on each line.
    """

    networks: tuple[Network, ...] = (WIDE,)
    pairs: int = 3
    points: int = 11
    lr: float = 1e-3


@dataclass(frozen=True)
class Pairs:
    """The pairs of one width; the lines between the networks of each by method of matching."""

    network: Network
    width: float
    lines: tuple[dict[str, MatchedLines], ...]

    @property
    def name(self) -> str:
        return f"{self.network.name}, width {self.width:g}"

    def barriers(self, method: str | None, value: str = "loss") -> np.ndarray:
        """(pairs,), above the line between the ends; None: before matching."""
        if method is None:
            return np.array([line[METHODS[0]].before.barrier(value) for line in self.lines])
        return np.array([line[method].after.barrier(value) for line in self.lines])

    @property
    def best(self) -> str:
        """The method with the smaller barrier of the training loss."""
        return min(METHODS, key=lambda method: float(self.barriers(method).mean()))

    @property
    def changed_ends(self) -> float:
        """The largest relative change of an end's loss by matching."""
        lines = [line for pair in self.lines for line in pair.values()]
        return max(abs(one.after.loss[-1] / one.before.loss[-1] - 1) for one in lines)


def train(
    context: Context, network: Network, width: float, options: Options, seed: int
) -> tuple[Path, list[object]]:
    """The trained parameters, and the options of the problem."""
    words = network.problem(context, width)
    folder = context.network(
        *words,
        *("--seed", seed, "--optimizer", "adam", "--lr", options.lr, "--batch-size", 100),
        *("--epochs", network.epochs, "--every", network.epochs),
    )
    return folder / f"epoch-{network.epochs:04d}.pt", words


def matched(
    context: Context, words: Sequence[object], ends: Sequence[Path], name: str, *more: object
) -> MatchedLines:
    path = context.folder / f"{name}.h5".replace(" ", "-").replace(",", "")
    given = (*words, "--between", *ends, "--test", *more)
    with context.computed(path, "interpolate", *given) as run:
        return MatchedLines.of(run)


def pairs(context: Context, network: Network, width: float, options: Options) -> Pairs:
    """Train two networks of each pair, and look at the lines between them."""
    statistics = ("--batch-norm", "recalibrate") if network.has_batchnorm else ()
    found = []
    for pair in range(options.pairs):
        seeds = (2 * pair + 1, 2 * pair + 2)
        trained = [train(context, network, width, options, seed) for seed in seeds]
        ends, words = [path for path, _ in trained], trained[0][1]
        lines = {}
        for method in METHODS:
            more = (*statistics, "--match", method, "--num-points", options.points)
            name = f"{network.name} {width:g} {method} {pair}"
            lines[method] = matched(context, words, ends, name, *more)
        found.append(lines)
    return Pairs(network, width, tuple(found))


def permuted(path: Path, out: Path) -> Path:
    """A copy of a trained perceptron whose hidden units have other places."""
    state = torch.load(path, weights_only=True)
    model, rng = state["model"], torch.Generator().manual_seed(0)
    layers = [name.removesuffix(".weight") for name in model if name.endswith(".weight")]
    for one, two in pairwise(layers):
        order = torch.randperm(len(model[f"{one}.bias"]), generator=rng)
        for name in (f"{one}.weight", f"{one}.bias"):
            model[name] = model[name][order]
        model[f"{two}.weight"] = model[f"{two}.weight"][:, order]
    torch.save(state, out)
    return out


def planted(context: Context, options: Options) -> MatchedLines:
    """Lines from a trained network to its permuted copy."""
    network = options.networks[0]
    end, words = train(context, network, network.widths[0], options, 1)
    copy = permuted(end, context.folder / "permuted.pt")
    more = ("--match", "weights", "--num-points", options.points)
    return matched(context, words, (end, copy), "permuted", *more)


def mean(values: np.ndarray) -> dict[str, float | None]:
    """The mean and its standard error, None of one value, by ``check``'s names."""
    spread = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return {"measured": float(values.mean()), "uncertainty": spread}


def judged(context: Context, all_: Sequence[Pairs], copy: MatchedLines) -> list[Finding]:
    found: list[Finding] = []

    def add(claim: str, values: np.ndarray | float, low: float, high: float, **more: Any) -> None:
        number = mean(np.atleast_1d(values))
        found.append(
            context.check(claim, low=low, high=high, **{"source": SOURCE, **number, **more})
        )

    for one in all_:
        for value in VALUES:
            before = one.barriers(None, value)
            for method in METHODS:
                claim = f"{one.name}: barrier of the {value} matched by {method} over that before"
                with np.errstate(invalid="ignore"):  # without a barrier there is nothing to judge
                    ratio = one.barriers(method, value) / before
                why_not = NARROW if one.network.has_batchnorm else ""
                add(claim, ratio, 0.0, 0.9, why_not=why_not)
        if one.width >= 1 and one.network.almost_vanishes:
            for value in VALUES:
                claim = f"{one.name}: barrier of the {value} matched by {one.best}"
                add(claim, one.barriers(one.best, value), 0.0, 0.05)
        claim = f"{one.name}: largest relative change of an end's loss by matching"
        add(claim, one.changed_ends, 0.0, 1e-12, source="the same function", judged_from="test")
    for name in dict.fromkeys(one.network.name for one in all_):
        slim, *_, wide = [one for one in all_ if one.network.name == name] * 2
        if slim.width < wide.width:
            claim = (
                f"{name}: barrier of the loss after matching, width {wide.width:g} over width "
                f"{slim.width:g}"
            )
            add(claim, wide.barriers(wide.best).mean() / slim.barriers(slim.best).mean(), 0.0, 1.0)
    known = {"source": "a copy with permuted units", "judged_from": "test"}
    distance = copy.matching["distance"] / copy.matching["distance_before"]
    add("permuted copy: distance after matching over that before", distance, 0.0, 0.0, **known)
    barrier = copy.after.barrier() / copy.before.barrier()
    add("permuted copy: barrier after matching over that before", barrier, 0.0, 1e-12, **known)
    return found


def figure(all_: Sequence[Pairs]) -> Figure:
    """A column for each width, of its first pair: training loss above, test loss below."""
    picture = Figure(figsize=(4.2 * len(all_), 6.4), layout="constrained")
    axes = picture.subplots(2, len(all_), squeeze=False, sharex=True)
    for one, column in zip(all_, axes.T):
        lines = one.lines[0]
        curves: dict[str, Curve] = {"before": lines[METHODS[0]].before}
        curves |= {f"matched by {method}": lines[method].after for method in METHODS}
        for ax, value in zip(column, VALUES):
            for i, (label, curve) in enumerate(curves.items()):
                ax.plot(curve.t, curve.values[value], color=f"C{i}", label=label)
            ax.spines[["top", "right"]].set_visible(False)
        column[0].set_title(one.name, fontsize=10)
        column[1].set_xlabel("alpha")
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("test loss")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return picture


def run(context: Context, options: Options) -> Outcome:
    all_, values = [], {}
    for network in options.networks:
        for width in network.widths:
            one = pairs(context, network, width, options)
            all_.append(one)
            for value in VALUES:
                barriers = {m or "before": one.barriers(m, value) for m in (None, *METHODS)}
                print(f"{one.name}: barriers of the {value}: {barriers}")
                for method, found in barriers.items():
                    values[f"{one.name}/{value}/{method}"] = found
            for method, lines in one.lines[0].items():
                for label, curve in lines.curves.items():
                    values[f"{one.name}/curve/{method}/{label}"] = curve.loss
    copy = planted(context, options)
    for label, curve in copy.curves.items():
        values[f"permuted copy/{label}"] = curve.loss
    return Outcome(judged(context, all_, copy), values, figure(all_))


STUDY = Study(
    title="How much of a barrier is due to the order of hidden units?",
    source=SOURCE,
    run=run,
    scales={
        "test": Options((TEST,), pairs=1, points=5, lr=0.01),
        "cpu": Options((WIDE, SLIM_RESNET)),
        "gpu": Options((WIDE, RESNET), points=21),
    },
    data=("mnist", "cifar10"),
)
