"""The loss on the straight line from a network's start to its end, and barriers on it.

Goodfellow, Vinyals & Saxe (2015, "Qualitatively characterizing neural network optimization
problems", arXiv:1412.6544) train many networks and find that on the straight line from the first
to the last parameters the loss falls, without obstacles that matter; the line between two solutions
has a barrier, that from another random start to a solution has none. They ask how far training
strays from the line, and show that a random walk in many dimensions strays in the same arc, which
is therefore no sign of obstacles.

Slim forms: fully connected networks with ReLU, sigmoid and maxout units and dropout, a
multi-prediction Boltzmann machine and a convolutional maxout network on MNIST digits, and an LSTM
on the Penn Treebank. Each is trained and
looked at by the package's commands train and interpolate, without dropout, on the samples that it
was trained with: on the whole line, on its first and on its last hundredth. A rise of the loss
counts where it is above the bound on the loss's rounding error. OUT holds the files, findings.json
and one picture; what an earlier run has left there is not computed again.

    python benchmarks/goodfellow_et_al.py --data-root DATA --out goodfellow
    python benchmarks/goodfellow_et_al.py --quick --out goodfellow    # shipped digits, seconds
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from findings import Finding, report, within
from matplotlib.figure import Figure
from torch import Tensor

import hessian_spectrum as hs
from hessian_spectrum.landscape.results.curve import Curve, Rise
from hessian_spectrum.landscape.results.trajectory import Trajectory
from hessian_spectrum.landscape.rounding import rounding

SOURCE = "Goodfellow et al. 2015"
EPS = float(np.finfo(np.float32).eps)  # of the networks' arithmetic
WINDOWS = {"line": (0.0, 1.0), "first 0.01": (0.0, 0.01), "last 0.01": (0.99, 1.0)}
PAIRED = "ReLU"  # the first network, of which two are trained
MATTERS = 0.01  # of the fall from start to end: a smaller barrier is no significant obstacle


@dataclass(frozen=True)
class Network:
    """A network, its samples and how it is trained."""

    name: str
    model: tuple[object, ...]  # options of train and interpolate
    training: tuple[object, ...]  # options of train alone
    samples: int
    epochs: int
    dropout: float | None = None  # of the training; the line has none


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


def networks(args: argparse.Namespace) -> list[Network]:
    def perceptron(name: str, activation: str, lr: float) -> Network:
        sizes = "64-16-10" if args.quick else "784-100-100-10"
        model = ("--model", f"mlp-{sizes}", "--activation", activation)
        samples, epochs = (200, 3) if args.quick else (2000, 20)
        rule = ("--optimizer", "momentum", "--lr", lr, "--batch-size", 50)
        return Network(name, (*model, *digits), rule, samples, epochs, 0.2)

    if args.quick:
        digits: tuple[object, ...] = ("--dataset", "digits")
        return [perceptron("ReLU", "relu", 0.05)]
    digits = ("--dataset", "mnist", "--data-root", args.data_root)
    machine = ("--model", "mpdbm-784-50-50-10", "--loss", "multi-prediction", *digits)
    convolutional = ("--model", "convmaxout-mnist", "--width", 0.125, *digits)
    treebank = ("--dataset", "ptb", "--data-root", args.data_root / "ptb")
    momentum = ("--optimizer", "momentum", "--batch-size")
    return [
        perceptron("ReLU", "relu", 0.05),
        perceptron("sigmoid", "sigmoid", 0.2),
        perceptron("maxout", "maxout", 0.02),
        Network("convolutional maxout", convolutional, (*momentum, 25, "--lr", 0.02), 300, 20, 0.0),
        Network(
            "MP-DBM", machine, ("--optimizer", "adam", "--lr", 0.005, "--batch-size", 25), 300, 20
        ),
        Network(
            "LSTM",
            ("--model", "lstm", "--width", 0.1, *treebank),
            ("--optimizer", "adam", "--lr", 0.01, "--batch-size", 10),
            40,
            20,
        ),
    ]


def command(name: str, *options: object) -> str:
    """One of the package's commands: what it prints; its own message, and the end, if it fails."""
    words = [sys.executable, "-m", "hessian_spectrum", name, *map(str, options)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr}")
    return done.stdout


def train(network: Network, args: argparse.Namespace, seed: int = 0) -> list[Path]:
    """The files of the start and of the end of each epoch."""
    folder = args.out / f"{network.name.replace(' ', '-')}-{seed}"
    dropout = () if network.dropout is None else ("--dropout-rate", network.dropout)
    told = command(
        "train",
        *network.model,
        *network.training,
        *dropout,
        *("--limit", network.samples, "--epochs", network.epochs, "--every", args.every),
        *("--keep-steps", "1:1", "--seed", seed, "--out", folder, "--resume"),
    )
    print(f"{network.name}, seed {seed}: {told.strip().splitlines()[-1].split(': ', 1)[1]}")
    return [folder / "step-000000.pt", *sorted(folder.glob("epoch-*.pt"))]


def line(network: Network, start: Path, end: Path, args: argparse.Namespace, name: str) -> Line:
    """The loss from ``start`` to ``end``, on the part of the line that WINDOWS names."""
    low, high = WINDOWS[name]
    origin = start.parent.name + ("-end" if start.stem.startswith("epoch") else "")
    path = args.out / f"{origin}-{name.replace(' ', '-')}-to-{end.parent.name}.h5"
    dropout = () if network.dropout is None else ("--dropout-rate", network.dropout)
    command(
        "interpolate",
        *network.model,
        *dropout,
        *("--limit", network.samples, "--between", start, end, "--num-points", args.points),
        *("--low", low, "--high", high, *(["--test"] if name == "line" else [])),
        *("--out", path, "--resume"),
    )
    with hs.open(path) as run:
        return Line.of(run["curve"])


def flat(path: Path) -> Tensor:
    state = torch.load(path, weights_only=True)["model"]
    return torch.cat([value.flatten() for value in state.values()])


def measured(network: Network, args: argparse.Namespace) -> Trained:
    files = train(network, args)
    lines = {name: line(network, files[0], files[-1], args, name) for name in WINDOWS}
    for name, found in lines.items():
        print(f"  {name}: {found}", flush=True)
    iterates = torch.stack([flat(path) for path in files])
    walk = hs.random_walk(iterates, seed=1)
    return Trained(network, files[-1], lines, hs.trajectory(iterates), hs.trajectory(walk))


def between_networks(one: Trained, args: argparse.Namespace) -> dict[str, Line]:
    """Lines to the network's solution from another solution, and from that one's start."""
    files = train(one.network, args, seed=1)
    found = {
        "two solutions": line(one.network, files[-1], one.end, args, "line"),
        "another start": line(one.network, files[0], one.end, args, "line"),
    }
    for name, between in found.items():
        print(f"  {name}: {between}", flush=True)
    return found


def deviation(found: Trajectory) -> float:
    """The largest distance from the line, over the line's length."""
    return float(found.beta.max() / found.distance_from_start[-1])


def control(steps: int, dimensions: int) -> Trajectory:
    """A random walk of unit steps."""
    rows = torch.arange(steps + 1.0)[:, None].expand(-1, dimensions) / dimensions**0.5
    return hs.trajectory(hs.random_walk(rows, seed=0))


def findings_of(
    trained: list[Trained], others: dict[str, Line], walks: dict[int, Trajectory], judged: bool
) -> list[Finding]:
    found = []

    def add(claim: str, measured: float, low: float, high: float) -> None:
        found.append(within(claim, SOURCE, measured, low, high, judged=judged))

    for one in trained:
        whole, name = one.lines["line"], one.network.name
        rise = whole.highest_rise
        add(
            f"{name}: the loss on the line from start to end decreases monotonically; largest rise "
            "over the fall",
            rise / whole.fall,
            0.0,
            0.0,
        )
        highest = max(w.highest_barrier for w in one.lines.values())
        add(
            f"{name}: no barrier on the line or its zooms that matters; highest over the fall",
            highest / whole.fall,
            0.0,
            MATTERS,
        )
        for window in list(WINDOWS)[1:]:
            rises = one.lines[window].rises
            add(f"{name}: places in the {window} where the loss rises", len(rises), 0, 0)
    if others:
        add(
            f"between two solutions ({PAIRED}): highest barrier over the fall from a start",
            others["two solutions"].highest_barrier / trained[0].lines["line"].fall,
            MATTERS,
            np.inf,
        )
        add(
            f"from another start to a solution ({PAIRED}): highest barrier over the fall",
            others["another start"].highest_barrier / others["another start"].fall,
            0.0,
            MATTERS,
        )
    most = max(walks)
    add(
        f"a random walk in {most} dimensions: largest distance from its line, over the line",
        deviation(walks[most]),
        0.45,
        0.55,
    )
    for one in trained:
        add(
            f"{one.network.name}: largest distance of training from the line, over that of a "
            "random walk with steps of the same lengths",
            deviation(one.trajectory) / deviation(one.control),
            0.0,
            1.0,
        )
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="folder of MNIST, with ptb in it")
    parser.add_argument("--points", type=int, default=200, help="on each line and zoom")
    parser.add_argument("--every", type=int, default=5, help="epochs between iterates")
    parser.add_argument("--only", nargs="+", help="names of networks, such as LSTM")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("goodfellow"))
    args = parser.parse_args()
    if args.data_root is None and not args.quick:
        parser.error("--data-root is missing: the folder of MNIST and ptb, or use --quick")
    if args.quick:
        args.points, args.every = min(args.points, 20), 1
    args.out.mkdir(exist_ok=True)
    wanted = [n for n in networks(args) if not args.only or n.name in args.only]
    trained = [measured(network, args) for network in wanted]
    is_paired = trained[0].network.name == PAIRED and not args.quick
    others = between_networks(trained[0], args) if is_paired else {}
    walks = {n: control(900, n) for n in (10, 100, 10_000)}
    report(findings_of(trained, others, walks, not args.quick), args.out / "findings.json", args)
    figure(trained, others, walks).savefig(args.out / "goodfellow.png", dpi=80)


if __name__ == "__main__":
    main()
