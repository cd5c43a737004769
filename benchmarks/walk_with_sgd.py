"""How SGD walks on the loss surface: barriers, the valley floor, cosines of updates, alignment.

Xing, Arpit, Tsirigotis & Bengio (2018, "A walk with SGD", arXiv:1802.08770) find that the loss
between two iterates of SGD has a minimum and almost never a barrier; that SGD bounces between the
walls of a valley at a height above its floor, which grows with the learning rate; that the floor
itself has barriers; and that small minibatches go farther from the start. In gradient descent
consecutive gradients come to point against each other, with small minibatches less so. Minibatch
gradients have their share in the sharp directions: the curvature along them is compared.

VGG-11 (slimmed by --width) on CIFAR-10 pictures, its BatchNorm with the statistics of all samples,
or an MLP on MNIST digits, is trained by SGD without momentum from the same start with several batch
sizes, and with two learning rates. Each step is one of the package's commands: train --keep-steps,
barriers, alignment. OUT holds their files, findings.json and one picture; a study that was
interrupted goes on where it was.

    python benchmarks/walk_with_sgd.py --network vgg11 --data-root cifar10.npz --out walk-vgg
    python benchmarks/walk_with_sgd.py --network mlp --data-root DATA --out walk-mlp
    python benchmarks/walk_with_sgd.py --quick --out walk    # shipped digits, seconds: a test
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from findings import Finding, report, within
from matplotlib.figure import Figure

import hessian_spectrum as hs
from hessian_spectrum.analyses.alignment_result import Alignment
from hessian_spectrum.landscape.results import Barriers

SOURCE = "Xing et al. 2018"


@dataclass(frozen=True)
class Walk:
    """One training, by its batch size and learning rate."""

    batch_size: int
    lr: float
    distance: float  # |theta - theta(0)| at the end
    early: Barriers
    late: Barriers  # of the last steps
    alignment: Alignment

    @property
    def label(self) -> str:
        return f"batch {self.batch_size}, lr {self.lr:g}"


def command(name: str, *options: object) -> None:
    """One of the package's commands; its own message, and the end, where it fails."""
    words = [sys.executable, "-m", "hessian_spectrum", name, *map(str, options)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr}")


def computed(path: Path, name: str, *options: object) -> None:
    """``command`` with that result file, unless an earlier start has finished it."""
    if path.exists():
        with hs.open(path) as run:
            if run.finished:
                return
    command(name, *options, "--resume", "--out", path)


def claim(args: argparse.Namespace) -> None:
    """Make OUT the folder of a study with these options, or exit."""
    args.out.mkdir(exist_ok=True)
    said = json.dumps({k: str(v) for k, v in vars(args).items() if k != "out"}, indent=1)
    options = args.out / "options.json"
    if options.exists() and options.read_text() != said:
        sys.exit(f"{args.out} holds a study with other options; choose another --out")
    options.write_text(said)


def problem(args: argparse.Namespace) -> list[object]:
    if args.quick:
        return ["--model", "mlp-64-16-10", "--dataset", "digits", "--limit", 200]
    if args.network == "mlp":
        model = ["--model", "mlp-784-100-50-10", "--activation", "relu", "--dataset", "mnist"]
    else:
        model = ["--model", "vgg11", "--width", args.width, "--dataset", "arrays"]
    return [*model, "--data-root", args.data_root, "--limit", args.samples]


def walk(args: argparse.Namespace, batch_size: int, lr: float) -> Walk:
    """Train, and look at the first and the last steps."""
    samples = 200 if args.quick else args.samples
    per_epoch = -(-samples // batch_size)
    last = -(-args.steps // per_epoch) * per_epoch  # whole epochs
    folder = args.out / f"batch-{batch_size}-lr-{lr:g}"
    windows = [f"1:{args.window}", f"{last - args.window + 1}:{last}"]
    options = problem(args)
    command(
        "train",
        *options,
        *("--optimizer", "plain-sgd", "--lr", lr, "--batch-size", batch_size),
        *("--epochs", last // per_epoch, "--every", last // per_epoch),
        *("--keep-steps", *windows, "--out", folder, "--resume"),
    )
    # One batch of all samples: with BatchNorm its statistics, of the parameters alone.
    looked_at = [*options, "--batch-size", samples]
    has_batchnorm = args.network == "vgg11" and not args.quick
    statistics = ["--batch-norm", "train"] if has_batchnorm else []
    found = []
    for name, first in (("early", 0), ("late", last - args.window)):
        files = [folder / f"step-{step:06d}.pt" for step in range(first, first + args.window + 1)]
        path = args.out / f"{folder.name}-{name}.h5"
        computed(path, "barriers", *looked_at, *statistics, "--checkpoints", *files)
        with hs.open(path) as run:
            found.append(run["barriers"])
    path = args.out / f"{folder.name}-alignment.h5"
    computed(
        path,
        "alignment",
        *looked_at,
        *(["--batch-norm", "recalibrate"] if has_batchnorm else []),
        *("--checkpoint", files[-1]),
        *("--batch-sizes", *args.alignment_sizes, "full", "--num-batches", 20),
    )
    with hs.open(path) as run:
        return Walk(batch_size, lr, distance(files[-1], folder), *found, run["alignment"])


def distance(last: Path, folder: Path) -> float:
    """Between the parameters of two files of ``train --keep-steps``."""
    one, two = (
        torch.load(path, weights_only=True)["model"] for path in (last, folder / "step-000000.pt")
    )
    trained = [name for name, value in one.items() if "running" not in name and value.ndim]
    return math.sqrt(sum(float((one[n] - two[n]).square().sum()) for n in trained))


def findings_of(walks: list[Walk], args: argparse.Namespace) -> list[Finding]:
    """The claims, judged on walks at the same learning rate, small batches first."""
    judged = not args.quick
    base = [w for w in walks if w.lr == args.lr]
    smallest, largest = base[0], base[-1]
    found = []
    for w in base:
        both = [*w.early.is_barrier, *w.late.is_barrier]
        found.append(
            within(
                f"{w.label}: share of {len(both)} updates that cross a barrier",
                SOURCE,
                float(np.mean(both)),
                0.0,
                0.05,
                judged=judged,
            )
        )
    for w in base:
        fall = w.late.floor.mean() / w.early.floor.mean()
        found.append(
            within(
                f"{w.label}: the valley floor of the last window over that of the first",
                SOURCE,
                fall,
                0.0,
                0.95,
                judged=judged,
            )
        )

    rises = np.diff(smallest.late.floor) > smallest.late.rounding[1:]
    found.append(
        within(
            f"share of late updates from which on the floor rises: barriers ({smallest.label})",
            SOURCE,
            float(rises.mean()),
            0.02,
            1.0,
            judged=judged,
        )
    )
    found.append(
        within(
            f"distance from the start, {smallest.label} over {largest.label}, as many steps",
            SOURCE,
            smallest.distance / largest.distance,
            1.0,
            np.inf,
            judged=judged,
        )
    )

    def mean_cosine(w: Walk) -> float:
        return float(np.nanmean(w.late.cosine))

    found.append(
        within(
            f"mean cosine of consecutive updates, late, gradient descent ({largest.label})",
            SOURCE,
            mean_cosine(largest),
            -1.0,
            0.0,
            float(np.nanstd(largest.late.cosine)),
            judged,
        )
    )
    found.append(
        within(
            f"that cosine, {smallest.label}, minus that of gradient descent",
            SOURCE,
            mean_cosine(smallest) - mean_cosine(largest),
            0.0,
            2.0,
            judged=judged,
        )
    )
    slower = next(w for w in walks if w.lr != args.lr)
    same = next(w for w in base if w.batch_size == slower.batch_size)
    ratio = np.median(same.late.height_above_floor) / np.median(slower.late.height_above_floor)
    found.append(
        within(
            f"height above the floor, {same.label} over lr {slower.lr:g}, late, medians",
            SOURCE,
            float(ratio),
            1.0,
            np.inf,
            judged=judged,
        )
    )
    sizes, mean = smallest.alignment.batch_sizes, np.nanmean(smallest.alignment.alignment, axis=1)
    found.append(
        within(
            f"g^T H g / |g|^2, batch {sizes[-1]} over batch {sizes[0]} ({smallest.label})",
            SOURCE,
            float(mean[-1] / mean[0]),
            1.0,
            np.inf,
            judged=judged,
        )
    )
    return found


def figure(walks: list[Walk]) -> Figure:
    """For each walk the loss along the first and the last iterates, and the cosines."""
    picture = Figure(figsize=(3.0 * len(walks), 6.6), layout="constrained")
    axes = picture.subplots(3, len(walks), squeeze=False)
    for w, column in zip(walks, axes.T):
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
    axes[0, 0].set_ylabel("training loss, first steps")
    axes[1, 0].set_ylabel("last steps (orange: floor)")
    axes[2, 0].set_ylabel("cosine of updates (red: last)")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=("vgg11", "mlp"), default="vgg11")
    parser.add_argument("--data-root", type=Path, help="CIFAR-10 as .npz, or MNIST's folder")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="the last: all samples")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--window", type=int, default=20, help="updates that are looked at")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("walk"))
    args = parser.parse_args()
    if args.data_root is None and not args.quick:
        parser.error("--data-root is missing: the data of the network, or use --quick")
    if args.quick:
        args.steps, args.window, args.batch_sizes = 20, 4, args.batch_sizes or [50, 200]
    args.batch_sizes = args.batch_sizes or [20, 100, args.samples]
    args.alignment_sizes = sorted({min(args.batch_sizes), 100})
    claim(args)
    walks = []
    runs = [(size, args.lr) for size in args.batch_sizes]
    for batch_size, lr in [*runs, (args.batch_sizes[0], args.lr / 4)]:
        walks.append(walk(args, batch_size, lr))
        w = walks[-1]
        along = np.round(np.nanmean(w.alignment.alignment, axis=1), 3).tolist()
        print(
            f"{w.label}: {w.early.count().barriers} + {w.late.count().barriers} barriers in "
            f"2 x {args.window} updates; loss {w.early.loss[0, 0]:.3f} to "
            f"{w.late.loss[-1, -1]:.3f}; cosine {np.nanmean(w.early.cosine):.2f}, then "
            f"{np.nanmean(w.late.cosine):.2f}; curvature along gradients of "
            f"{w.alignment.batch_sizes.tolist()} samples: {along}",
            flush=True,
        )
    report(findings_of(walks, args), args.out / "findings.json", args)
    figure(walks).savefig(args.out / "walk.png", dpi=110)


if __name__ == "__main__":
    main()
