"""How SGD walks on the loss surface: barriers, the valley floor, cosines of updates, alignment.

Xing, Arpit, Tsirigotis & Bengio (2018, "A walk with SGD", arXiv:1802.08770) find that the loss
between two iterates of SGD has a minimum and almost never a barrier; that SGD bounces between the
walls of a valley at a height above its floor, which grows with the learning rate; that the floor
itself has barriers; and that small minibatches go farther from the start. In gradient descent
consecutive gradients come to point against each other, with small minibatches less so. Minibatch
gradients have their share in the sharp directions: the curvature along them is compared.

A ReLU network with two hidden layers is trained on MNIST digits, and a slim VGG-11, whose BatchNorm
has the statistics of all samples, on CIFAR-10 pictures: by SGD without momentum, from one start,
with several batch sizes and with two learning rates. The commands are train --keep-steps, barriers
(of the loss of all samples) and alignment. The test trains on the shipped digits, for which the
paper has no figures; that a step of gradient descent has the length lr |g| is known exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.suite import Context, Finding, Outcome, Study
from hessian_spectrum.analyses.alignment_result import Alignment
from hessian_spectrum.landscape.results import Barriers

SOURCE = "Xing et al. 2018"


@dataclass(frozen=True)
class Network:
    """A network and its data.

    Args:
        data: "digits", "mnist" or "cifar10".
        steps: of each training, rounded up to whole epochs.
        window: number of updates that are looked at, at the start and at the end.
    """

    name: str
    model: tuple[object, ...]
    data: str
    samples: int
    steps: int
    window: int
    has_batchnorm: bool = False

    def problem(self, context: Context) -> list[object]:
        """Options of all commands: the model and the data."""
        source: list[object] = ["--dataset", "arrays" if self.data == "cifar10" else self.data]
        if self.data == "mnist" or self.data == "cifar10":
            source += ["--data-root", context.data(self.data)]
        return [*self.model, *source, "--limit", self.samples]


MLP = ("--model", "mlp-784-100-50-10", "--activation", "relu")
MNIST = Network("mlp", MLP, "mnist", samples=1000, steps=300, window=20)
VGG = ("--model", "vgg11", "--width", 0.125)
CIFAR = Network("vgg11", VGG, "cifar10", 500, steps=75, window=8, has_batchnorm=True)
DIGITS = Network("mlp", ("--model", "mlp-64-16-10"), "digits", samples=200, steps=8, window=3)
LARGE = Network("vgg11", ("--model", "vgg11"), "cifar10", 5000, 500, 20, has_batchnorm=True)


@dataclass(frozen=True)
class Options:
    """
    Args:
        batch_sizes: of the trainings, beside one with all samples; ascending.
        lr: their learning rate; one more training of the smallest batch size has a quarter of it.
        num_batches: minibatch gradients of each size, for the curvature along them.
    """

    networks: tuple[Network, ...] = (MNIST, CIFAR)
    batch_sizes: tuple[int, ...] = (20, 100)
    lr: float = 0.1
    num_batches: int = 10


@dataclass(frozen=True)
class Walk:
    """One training, by its batch size and learning rate."""

    network: Network
    batch_size: int
    lr: float
    distance: float  # |theta - theta(0)| at the end
    start: Path  # its checkpoint
    early: Barriers
    late: Barriers  # of the last steps
    alignment: Alignment

    @property
    def name(self) -> str:
        return f"{self.network.name}-{self.batch_size}-{self.lr:g}"

    @property
    def label(self) -> str:
        return f"{self.network.name}, batch {self.batch_size}, lr {self.lr:g}"

    @property
    def cosine(self) -> float:
        """Of consecutive updates, mean of the last window."""
        return float(np.nanmean(self.late.cosine))


def walk(context: Context, network: Network, batch_size: int, lr: float, options: Options) -> Walk:
    """Train, and look at the first and the last steps."""
    per_epoch = -(-network.samples // batch_size)
    epochs = -(-network.steps // per_epoch)
    last, window = epochs * per_epoch, network.window
    problem = network.problem(context)
    folder = context.network(
        *problem,
        *("--optimizer", "plain-sgd", "--lr", lr, "--batch-size", batch_size),
        *("--epochs", epochs, "--every", epochs),
        *("--keep-steps", f"1:{window}", f"{last - window + 1}:{last}"),
    )
    # One batch of all samples: with BatchNorm its statistics, of the parameters alone.
    looked_at = [*problem, "--batch-size", network.samples]
    name = f"{network.name}-{batch_size}-{lr:g}"
    statistics = ["--batch-norm", "train"] if network.has_batchnorm else []
    found, files = {}, {}
    for when, first in (("early", 0), ("late", last - window)):
        files[when] = [folder / f"step-{s:06d}.pt" for s in range(first, first + window + 1)]
        path = context.folder / f"{name}-{when}.h5"
        along = ("--checkpoints", *files[when])
        with context.computed(path, "barriers", *looked_at, *statistics, *along) as run:
            found[when] = run["barriers"]
    start, end = files["early"][0], files["late"][-1]
    alignment = aligned(context, f"{name}-alignment", network, end, options)
    moved = distance(end, start)
    return Walk(network, batch_size, lr, moved, start, **found, alignment=alignment)


def aligned(
    context: Context, name: str, network: Network, checkpoint: Path, options: Options
) -> Alignment:
    """Curvature along gradients of minibatches of the two smaller sizes, and of all samples."""
    with context.computed(
        context.folder / f"{name}.h5",
        "alignment",
        *(*network.problem(context), "--batch-size", network.samples),
        *(["--batch-norm", "recalibrate"] if network.has_batchnorm else []),
        *("--checkpoint", checkpoint),
        *("--batch-sizes", *options.batch_sizes, "full", "--num-batches", options.num_batches),
        *("--k", 0),
    ) as run:
        return run["alignment"]


def distance(one: Path, other: Path) -> float:
    """Between the parameters of two files of ``train --keep-steps``."""
    a, b = (torch.load(path, weights_only=True)["model"] for path in (one, other))
    trained = [name for name, value in a.items() if "running" not in name and value.ndim]
    return math.sqrt(sum(float((a[n] - b[n]).square().sum()) for n in trained))


def _relative_error(values: np.ndarray) -> float:
    """Standard error of their mean over it."""
    return float(np.nanstd(values, ddof=1) / np.sqrt(len(values)) / np.nanmean(values))


# -- findings ------------------------------------------------------------------------------------

WHY_NOT = {
    "mlp": "gradient descent has not reached the edge of stability after so few steps, and its "
    "consecutive updates point the same way",
    "vgg11": "one start, and a window of a few updates",
}


def judged(context: Context, walks: list[Walk], options: Options) -> list[Finding]:
    """The claims on one network; the last walk has another learning rate, the first few samples."""
    found: list[Finding] = []

    def check(claim: str, measured: float, low: float, high: float, **more: Any) -> None:
        found.append(context.check(claim, measured, low, high, source=SOURCE, **more))

    base, slower = walks[:-1], walks[-1]
    smallest, largest = base[0], base[-1]
    why = WHY_NOT[smallest.network.name]
    for w in base:
        both = [*w.early.is_barrier, *w.late.is_barrier]
        claim = f"{w.label}: share of {len(both)} updates that cross a barrier"
        check(claim, np.mean(both), 0.0, 0.05)
    for w in base:
        claim = f"{w.label}: the valley floor of the last window over that of the first"
        check(claim, w.late.floor.mean() / w.early.floor.mean(), 0.0, 0.95)
    rises = np.diff(smallest.late.floor) > smallest.late.rounding[1:]
    claim = f"{smallest.label}: share of late updates at which the floor rises"
    check(claim, rises.mean(), 0.02, 1.0, why_not=why if smallest.network.has_batchnorm else "")
    check(
        f"distance from the start, {smallest.label} over {largest.label}, as many steps",
        *(smallest.distance / largest.distance, 1.0, np.inf),
    )
    check(
        f"{largest.label} (gradient descent): mean cosine of consecutive updates, late",
        *(largest.cosine, -1.0, 0.0),
        uncertainty=float(np.nanstd(largest.late.cosine)),
        why_not=why,
    )
    check(
        f"{smallest.label}: that cosine minus that of gradient descent",
        *(smallest.cosine - largest.cosine, 0.0, 2.0),
        why_not=why,
    )
    height, low = (np.median(w.late.height_above_floor) for w in (smallest, slower))
    check(
        f"height above the floor, {smallest.label} over lr {slower.lr:g}, late, medians",
        *(height / low, 1.0, np.inf),
        why_not=why if smallest.network.has_batchnorm else "",
    )
    sizes, mean = smallest.alignment.batch_sizes, smallest.alignment.mean()
    error = mean[-1] / mean[0] * _relative_error(smallest.alignment.alignment[0])
    is_clear = abs(mean[-1] / mean[0] - 1) > 2 * error
    check(
        f"{smallest.label}: g^T H g / |g|^2, batch {sizes[-1]} over batch {sizes[0]}",
        *(mean[-1] / mean[0], 1.0, np.inf),
        uncertainty=error,
        why_not="" if is_clear else "it is within two standard errors of 1",
    )
    if not largest.network.has_batchnorm:
        at_start = aligned(
            context, f"{largest.name}-start", largest.network, largest.start, options
        )
        step = largest.lr * at_start.mean("gradient_norm")[-1]
        check(
            f"{largest.label}: length of the first update over lr |g|",
            *(largest.early.step_length[0] / step, 1 - 1e-4, 1 + 1e-4),
            judged_from="test",
        )
    # The same parameters, evaluated as the end of a segment and as the start of the next.
    jumps = [
        np.abs(window.loss[:-1, -1] - window.loss[1:, 0]) / window.rounding[1:]
        for w in walks
        for window in (w.early, w.late)
    ]
    check(
        f"{smallest.network.name}: difference of the loss of one iterate, as an end and as a "
        "start, over the bound on rounding, largest",
        *(np.max(jumps), 0.0, 1.0),
        judged_from="test",
    )
    return found


def figure(walks: list[list[Walk]]) -> Figure:
    """For each walk the loss along the first and the last iterates, and the cosines."""
    picture = Figure(figsize=(3.0 * max(map(len, walks)), 6.6 * len(walks)), layout="constrained")
    for part, found in zip(np.atleast_1d(picture.subfigures(len(walks), 1)), walks):
        axes = part.subplots(3, len(found), squeeze=False)
        for w, column in zip(found, axes.T):
            draw(w, column)
        axes[0, 0].set_ylabel("training loss, first steps")
        axes[1, 0].set_ylabel("last steps (orange: floor)")
        axes[2, 0].set_ylabel("cosine of updates (red: last)")
    return picture


def draw(w: Walk, column: np.ndarray) -> None:
    for window, ax in ((w.early, column[0]), (w.late, column[1])):
        for start, stop, line in zip(window.start, window.stop, window.loss):
            ax.plot(start + window.t * (stop - start), line, color="C0", linewidth=0.8)
        ax.plot(window.start, window.loss[:, 0], ".", color="black", markersize=3)
        ax.plot(window.start + 0.5, window.floor, color="C1", linewidth=0.8)
    column[0].set_title(w.label, fontsize=9)
    for window, color in ((w.early, "C7"), (w.late, "C3")):
        column[2].plot(window.start - window.start[0], window.cosine, ".-", color=color, lw=0.8)
    column[2].axhline(0, color="black", linewidth=0.5)
    column[2].set_ylim(-1, 1)
    column[2].set_xlabel("step of the window")


def run(context: Context, options: Options) -> Outcome:
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    found = []
    for network in options.networks:
        sizes = [*options.batch_sizes, network.samples]
        rates = [(size, options.lr) for size in sizes] + [(sizes[0], options.lr / 4)]
        walks = [walk(context, network, size, lr, options) for size, lr in rates]
        found.append(walks)
        findings += judged(context, walks, options)
        for w in walks:
            for when, window in (("early", w.early), ("late", w.late)):
                for name in ("loss", "floor", "cosine", "step_length", "rise", "rounding"):
                    values[f"{w.name}/{when}/{name}"] = getattr(window, name)
            values[f"{w.name}/batch_size"] = w.alignment.batch_sizes
            values[f"{w.name}/alignment"] = w.alignment.alignment
            values[f"{w.name}/distance"] = w.distance
    return Outcome(findings, values, figure(found))


STUDY = Study(
    title="Does SGD cross barriers, or bounce between the walls of a valley?",
    source="Xing et al. 2018, sections 3 to 5",
    run=run,
    scales={
        "test": Options((DIGITS,), batch_sizes=(50,), num_batches=3),
        "cpu": Options(),
        "gpu": Options((MNIST, LARGE), batch_sizes=(100, 500)),
    },
    data=("mnist", "cifar10"),
)
