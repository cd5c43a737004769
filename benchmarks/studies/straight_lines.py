"""The loss on the straight line from a network's start to its end, and barriers on it.

Goodfellow, Vinyals & Saxe (2015, "Qualitatively characterizing neural network optimization
problems", arXiv:1412.6544) train many networks and find that on the straight line from the first
to the last parameters the loss falls, without obstacles that matter; the line between two solutions
has a barrier, that from another random start to a solution has none. They ask how far training
strays from the line, and show that a random walk in many dimensions strays in the same arc, which
is therefore no sign of obstacles.

Slim forms of their networks: fully connected ones with ReLU, sigmoid and maxout units and dropout,
a multi-prediction Boltzmann machine and a convolutional maxout network on MNIST digits, and an LSTM
on the Penn Treebank. Each is trained and looked at by the commands train and interpolate, without
dropout, on the samples that it was trained with: on the whole line, on its first and on its last
hundredth. A rise of the loss counts where it is above the bound on the loss's rounding error. The
test trains on the shipped digits, for which the paper has no figures; the arc of a random walk, at
most sqrt(t (1 - t)) beside the line in the limit of many dimensions, is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from hessian_spectrum.landscape.results.curve import Curve, Rise
from hessian_spectrum.landscape.results.trajectory import Trajectory
from hessian_spectrum.landscape.rounding import rounding

SOURCE = "Goodfellow et al. 2015"
EPS = float(np.finfo(np.float32).eps)  # of the networks' arithmetic
WINDOWS = {"line": (0.0, 1.0), "first 0.01": (0.0, 0.01), "last 0.01": (0.99, 1.0)}
MATTERS = 0.01  # of the fall from start to end: a smaller barrier is no significant obstacle
DIMENSIONS = (10, 100, 10_000)  # of random walks


@dataclass(frozen=True)
class Network:
    """A network, its data and how it is trained.

    Args:
        model: options of train and interpolate.
        data: "digits", "mnist" or "ptb".
        training: options of train alone.
        dropout: of the training; the line has none.
    """

    name: str
    model: tuple[object, ...]
    data: str
    samples: int
    epochs: int
    training: tuple[object, ...]
    dropout: float | None = None

    def problem(self, context: Context) -> list[object]:
        """Options of both commands: the model, the data and the dropout."""
        words: list[object] = [*self.model, "--dataset", self.data, "--limit", self.samples]
        if self.data == "mnist" or self.data == "ptb":
            words += ["--data-root", context.data(self.data)]
        return words if self.dropout is None else [*words, "--dropout-rate", self.dropout]


def perceptron(name: str, activation: str, lr: float) -> Network:
    model = ("--model", "mlp-784-100-100-10", "--activation", activation)
    return Network(name, model, "mnist", 2000, 20, trained("momentum", lr, 50), 0.2)


def trained(optimizer: str, lr: float, batch_size: int) -> tuple[object, ...]:
    return ("--optimizer", optimizer, "--lr", lr, "--batch-size", batch_size)


MACHINE = ("--model", "mpdbm-784-50-50-10", "--loss", "multi-prediction")
CONVOLUTIONAL = ("--model", "convmaxout-mnist", "--width", 0.125)
LSTM = ("--model", "lstm", "--width", 0.1)
SMALL = ("--model", "mlp-64-16-10", "--activation", "relu")
NETWORKS = (
    perceptron("ReLU", "relu", 0.05),
    perceptron("sigmoid", "sigmoid", 0.2),
    Network(
        "convolutional maxout", CONVOLUTIONAL, "mnist", 300, 20, trained("momentum", 0.02, 25), 0.0
    ),
    Network("MP-DBM", MACHINE, "mnist", 300, 20, trained("adam", 0.005, 25)),
)
ALL = (
    *NETWORKS,
    perceptron("maxout", "maxout", 0.02),
    Network("LSTM", LSTM, "ptb", 40, 20, trained("adam", 0.01, 10)),
)
TEST = Network("ReLU", SMALL, "digits", 200, 2, trained("momentum", 0.05, 50), 0.2)
WHY_NOT = {
    "convolutional maxout": "its loss rises to the end, on less than a tenth of the line and by "
    "less than a hundredth of the fall",
}


@dataclass(frozen=True)
class Options:
    """
    Args:
        networks: of the first one, two are trained.
        points: on each line and zoom.
        every: epochs between the iterates whose distance from the line is measured.
    """

    networks: tuple[Network, ...] = ALL
    points: int = 200
    every: int = 5


@dataclass(frozen=True)
class Line:
    """A curve between two networks, and where its loss rises by more than rounding."""

    curve: Curve
    rounding: float  # bound on the loss's error
    rises: list[Rise]

    @staticmethod
    def of(curve: Curve) -> Line:
        bound = float(rounding(curve.values["loss"][None], EPS)[0])
        return Line(curve, bound, curve.rises(bound))

    @property
    def fall(self) -> float:
        """From the loss of the start to that of the end."""
        return float(self.curve.values["loss"][0] - self.curve.values["loss"][-1])

    @property
    def barriers(self) -> list[Rise]:
        return [rise for rise in self.rises if rise.is_barrier]

    @property
    def highest_rise(self) -> float:
        return max((rise.height for rise in self.rises), default=0.0)

    @property
    def highest_barrier(self) -> float:
        return max((rise.height for rise in self.barriers), default=0.0)

    def __str__(self) -> str:
        found = [
            f"{'barrier' if rise.is_barrier else 'rise to the end'} of {rise.height:.2g} "
            f"from t = {rise.start:.4g} to {rise.stop:.4g}"
            for rise in self.rises
        ]
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return ("; ".join(found[:3]) + more or "falls") + f" (rounding {self.rounding:.1g})"


@dataclass(frozen=True)
class Trained:
    network: Network
    end: Path  # its parameters
    lines: dict[str, Line]  # by the names of WINDOWS
    trajectory: Trajectory  # of the start and the end of each epoch
    control: Trajectory  # a random walk with steps of the same lengths


def train(context: Context, network: Network, options: Options, seed: int = 0) -> list[Path]:
    """The files of the start and of the ends of epochs."""
    folder = context.network(
        *network.problem(context),
        *network.training,
        *("--epochs", network.epochs, "--every", options.every),
        *("--keep-steps", "1:1", "--seed", seed),
    )
    return [folder / "step-000000.pt", *sorted(folder.glob("epoch-*.pt"))]


def line(
    context: Context,
    network: Network,
    start: Path,
    end: Path,
    options: Options,
    name: str,
    window: str = "line",
) -> Line:
    """The loss from ``start`` to ``end``, on the part of the line that WINDOWS names."""
    low, high = WINDOWS[window]
    with context.computed(
        context.folder / f"{network.name} {name}.h5".replace(" ", "-"),
        "interpolate",
        *network.problem(context),
        *("--between", start, end, "--num-points", options.points),
        *("--low", low, "--high", high, *(["--test"] if window == "line" else [])),
    ) as run:
        return Line.of(run["curve"])


def flat(path: Path) -> Tensor:
    state = torch.load(path, weights_only=True)["model"]
    return torch.cat([value.flatten() for value in state.values()])


def measured(context: Context, network: Network, options: Options) -> Trained:
    files = train(context, network, options)
    lines = {
        name: line(context, network, files[0], files[-1], options, name, name) for name in WINDOWS
    }
    for name, found in lines.items():
        print(f"  {name}: {found}")
    iterates = torch.stack([flat(path) for path in files])
    walk = hs.random_walk(iterates, seed=1)
    return Trained(network, files[-1], lines, hs.trajectory(iterates), hs.trajectory(walk))


def between_networks(context: Context, one: Trained, options: Options) -> dict[str, Line]:
    """Lines to the network's solution from another solution, and from that one's start."""
    files = train(context, one.network, options, seed=1)
    starts = {"two solutions": files[-1], "another start": files[0]}
    return {
        name: line(context, one.network, start, one.end, options, name)
        for name, start in starts.items()
    }


def deviation(found: Trajectory) -> float:
    """The largest distance from the line, over the line's length."""
    return float(found.beta.max() / found.distance_from_start[-1])


def control(steps: int, dimensions: int) -> Trajectory:
    """A random walk of unit steps."""
    rows = torch.arange(steps + 1.0)[:, None].expand(-1, dimensions) / dimensions**0.5
    return hs.trajectory(hs.random_walk(rows, seed=0))


def judged(
    context: Context,
    trained: list[Trained],
    others: dict[str, Line],
    walks: dict[int, Trajectory],
) -> list[Finding]:
    found: list[Finding] = []

    def add(claim: str, measured: float, low: float, high: float, **more: Any) -> None:
        found.append(context.check(claim, measured, low, high, **{"source": SOURCE, **more}))

    for one in trained:
        whole, name = one.lines["line"], one.network.name
        why_not = WHY_NOT.get(name, "")
        claim = f"{name}: largest rise of the loss on the line from start to end, over the fall"
        add(claim, whole.highest_rise / whole.fall, 0.0, 0.0, why_not=why_not)
        highest = max(w.highest_barrier for w in one.lines.values())
        claim = f"{name}: highest barrier on the line and its zooms, over the fall"
        add(claim, highest / whole.fall, 0.0, MATTERS)
        for window in list(WINDOWS)[1:]:
            rises = len(one.lines[window].rises)
            claim = f"{name}: places in the {window} where the loss rises"
            add(claim, rises, 0, 0, why_not=why_not if window.startswith("last") else "")
        # A zoom ends at the same parameters as the line does.
        apart = abs(whole.curve.loss[-1] - one.lines["last 0.01"].curve.loss[-1])
        claim = (
            f"{name}: loss of the end, on the line and on the last 0.01: difference over rounding"
        )
        add(claim, apart / whole.rounding, 0.0, 1.0, source="one network", judged_from="test")
    paired = trained[0].network.name
    solutions, start = others["two solutions"], others["another start"]
    claim = f"between two solutions ({paired}): highest barrier over the fall from a start"
    add(claim, solutions.highest_barrier / trained[0].lines["line"].fall, MATTERS, np.inf)
    claim = f"from another start to a solution ({paired}): highest barrier over the fall"
    add(claim, start.highest_barrier / start.fall, 0.0, MATTERS)
    most = max(walks)
    claim = f"a random walk in {most} dimensions: largest distance from its line, over the line"
    add(claim, deviation(walks[most]), 0.49, 0.51, source="1/2", judged_from="test")
    for one in trained:
        claim = (
            f"{one.network.name}: largest distance of training from the line, over that of a "
            "random walk with steps of the same lengths"
        )
        add(claim, deviation(one.trajectory) / deviation(one.control), 0.0, 1.0)
    return found


def draw(ax, one: Line, label: str | None = None) -> None:
    """The loss by t, its rises marked."""
    t, loss = one.curve.t, one.curve.values["loss"]
    ax.plot(t, loss, color="C0", linewidth=1, label=label)
    for rise in one.rises:
        inside = (rise.start <= t) & (t <= rise.stop)
        ax.plot(t[inside], loss[inside], color="C3", linewidth=2)
    ax.ticklabel_format(useOffset=False)
    ax.tick_params(labelsize=7)
    ax.locator_params(nbins=4)


def figure(trained: list[Trained], others: dict[str, Line], walks: dict[int, Trajectory]) -> Figure:
    """A column a network: line, zooms and its way beside the line; the last one for controls."""
    columns = len(trained) + 1
    picture = Figure(figsize=(2.15 * columns, 7.4), layout="constrained")
    axes = picture.subplots(4, columns)
    for one, column in zip(trained, axes.T):
        for found, ax in zip(one.lines.values(), column):
            draw(ax, found)
        test = one.lines["line"].curve
        column[0].plot(test.t, test.values["test_loss"], "--", color="C7", linewidth=0.8)
        column[0].set_title(one.network.name, fontsize=9)
        for way, color in ((one.control, "C7"), (one.trajectory, "C0")):
            length = way.distance_from_start[-1]
            column[3].plot(way.alpha, way.beta / length, ".-", color=color, lw=0.8, ms=3)
        column[3].set_ylim(0, None)
        column[3].tick_params(labelsize=7)
    for (name, found), ax in zip(others.items(), axes[:, -1]):
        draw(ax, found)
        ax.set_title(f"{trained[0].network.name}:\n{name}", fontsize=8)
    for ax in axes[len(others) : 3, -1]:
        ax.axis("off")
    for dimensions, way in walks.items():
        length = way.distance_from_start[-1]
        axes[3, -1].plot(way.alpha, way.beta / length, lw=0.8, label=f"{dimensions}")
    axes[3, -1].legend(fontsize=6, title="dimensions", title_fontsize=6)
    axes[3, -1].set_title("random walks", fontsize=8)
    axes[3, -1].tick_params(labelsize=7)
    for ax, text in zip(axes[:, 0], ("loss (dashed: test)", "t up to 0.01", "t from 0.99", "")):
        ax.set_ylabel(text, fontsize=8)
    axes[3, 0].set_ylabel("distance from the line\n(grey: random walk)", fontsize=8)
    for ax in axes[3]:
        ax.set_xlabel("along the line", fontsize=8)
    return picture


def run(context: Context, options: Options) -> Outcome:
    trained = [measured(context, network, options) for network in options.networks]
    others = between_networks(context, trained[0], options)
    walks = {n: control(900, n) for n in DIMENSIONS}
    values: dict[str, Any] = {}
    for one in trained:
        for name, found in one.lines.items():
            values |= curve(f"{one.network.name}/{name}", found)
        for name, way in (("training", one.trajectory), ("random walk", one.control)):
            values[f"{one.network.name}/{name}/along"] = way.alpha
            values[f"{one.network.name}/{name}/beside"] = way.beta
    for name, found in others.items():
        values |= curve(name, found)
    findings = judged(context, trained, others, walks)
    return Outcome(findings, values, figure(trained, others, walks))


def curve(name: str, found: Line) -> dict[str, Any]:
    """Its values, by names in the HDF5 file."""
    return {f"{name}/t": found.curve.t, **{f"{name}/{k}": v for k, v in found.curve.values.items()}}


STUDY = Study(
    title="Are there barriers on the line from start to end?",
    source="Goodfellow, Vinyals & Saxe 2015, sections 3 to 6",
    run=run,
    scales={
        "test": Options((TEST,), points=20, every=1),
        "cpu": Options(),
        "gpu": Options(every=1),
    },
    data=("mnist", "ptb"),
)
