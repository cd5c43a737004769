"""How much of the barrier between two trained networks is due to the order of their hidden units.

Ainsworth, Hayase & Srinivasa (2023, "Git Re-Basin: merging models modulo permutation symmetries",
ICLR) train networks from different seeds, permute the hidden units of one so that they match those
of the other, and find that the barrier of the loss on the straight line between them almost
vanishes for wide MLPs on MNIST, while slim ResNets on CIFAR-10 keep one: width decides. Their
figures are quoted here from memory, in words: near zero for MLPs with hidden layers of 512 units,
and for ResNet-20 at 32 times its width, not at its own.

Two networks of different seeds, of each of several widths: 784-512-512-10 with ReLU on MNIST digits
(and an eighth of its width), or ResNet-20 slimmed by --widths on CIFAR-10 pictures, whose BatchNorm
has the statistics of the samples at every point (Jordan et al. 2022, "REPAIR"). All in float64.
Each step is one of the package's commands: train, interpolate --match weights and --match
activations. OUT holds their files, findings.json and one picture; a study that was interrupted goes
on where it was.

    python benchmarks/matching.py --network mlp --data-root DATA --out matching-mlp
    python benchmarks/matching.py --network resnet20 --data-root cifar10.npz --out matching-resnet
    python benchmarks/matching.py --quick --out matching    # shipped digits, seconds: a test
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from findings import Finding, report, within
from matplotlib.figure import Figure
from walk_with_sgd import claim

import hessian_spectrum as hs
from hessian_spectrum.cli import main as cli
from hessian_spectrum.landscape.results import Curve, MatchedLines

SOURCE = "Ainsworth et al. 2023"
METHODS = ("weights", "activations")
WIDTHS = {"mlp": (0.125, 1.0), "resnet20": (0.25, 0.5)}
SAMPLES = {"mlp": 10_000, "resnet20": 2_000}
EPOCHS = {"mlp": 20, "resnet20": 30}


@dataclass(frozen=True)
class Pair:
    """Two networks of one width, and the lines between them by method of matching."""

    width: float
    lines: dict[str, MatchedLines]

    def barrier(self, method: str | None, value: str = "loss") -> float:
        """Above the line between the ends; None: before matching."""
        if method is None:
            return self.lines[METHODS[0]].before.barrier(value)
        return self.lines[method].after.barrier(value)

    @property
    def best(self) -> str:
        """The method with the smaller barrier of the training loss."""
        return min(METHODS, key=self.barrier)


def command(name: str, *options: object) -> None:
    """One of the package's commands, in this process; the end where it fails."""
    words = [name, *map(str, options)]
    if code := cli.main(words):
        sys.exit(f"{' '.join(words)}: exit code {code}")


def computed(path: Path, name: str, *options: object) -> None:
    """``command`` with that result file, unless an earlier start has finished it."""
    if path.exists():
        with hs.open(path) as run:
            if run.finished:
                return
    command(name, *options, "--resume", "--out", path)


def problem(args: argparse.Namespace, width: float) -> list[object]:
    if args.quick:
        model = ["--model", "mlp-64-64-64-10", "--activation", "relu", "--dataset", "digits"]
    elif args.network == "mlp":
        model = ["--model", "mlp-784-512-512-10", "--activation", "relu", "--dataset", "mnist"]
    else:
        model = ["--model", "resnet20", "--dataset", "arrays"]
    where = [] if args.quick else ["--data-root", args.data_root]
    given = ["--width", width, "--limit", args.samples, "--dtype", "float64"]
    return [*model, *where, *given]


def pair(args: argparse.Namespace, width: float) -> Pair:
    """Train two networks, and look at the lines between them."""
    options, ends = problem(args, width), []
    for seed in (1, 2):
        folder = args.out / f"width-{width:g}-seed-{seed}"
        command(
            "train",
            *options,
            *("--seed", seed, "--optimizer", "adam", "--lr", args.lr, "--batch-size", 100),
            *("--epochs", args.epochs, "--every", args.epochs, "--out", folder, "--resume"),
        )
        ends.append(folder / f"epoch-{args.epochs:04d}.pt")
    has_batchnorm = args.network == "resnet20" and not args.quick
    statistics = ["--batch-norm", "recalibrate"] if has_batchnorm else []
    lines = {}
    for method in METHODS:
        path = args.out / f"width-{width:g}-{method}.h5"
        given = ["--between", *ends, "--match", method, "--num-points", args.points, "--test"]
        computed(path, "interpolate", *options, *statistics, *given)
        with hs.open(path) as run:
            lines[method] = MatchedLines.of(run)
    return Pair(width, lines)


def findings_of(pairs: list[Pair], args: argparse.Namespace) -> list[Finding]:
    """The claims, judged on pairs in the order of their widths."""
    judged, found = not args.quick, []
    wide = pairs[-1]
    for value in ("loss", "test_loss"):
        for one in pairs:
            before = one.barrier(None, value)
            for method in METHODS:
                after = one.barrier(method, value)
                told = f"before {before:.4g}, after {after:.4g}"
                found.append(
                    within(
                        f"width {one.width:g}, barrier of the {value} matched by {method} over the "
                        f"one before ({told})",
                        SOURCE,
                        after / before,
                        0.0,
                        0.9,
                        judged=judged,
                    )
                )
    if args.network == "mlp":
        for value, most in (("loss", 0.05), ("test_loss", 0.05)):
            found.append(
                within(
                    f"width {wide.width:g}, barrier of the {value} matched by {wide.best}",
                    SOURCE,
                    wide.barrier(wide.best, value),
                    0.0,
                    most,
                    judged=judged and wide.width >= 1,  # the claim is about wide networks
                )
            )
    slim = pairs[0]
    if slim.width == wide.width:
        return found
    found.append(
        within(
            f"barrier of the loss after matching, width {wide.width:g} over width {slim.width:g}",
            SOURCE,
            wide.barrier(wide.best) / slim.barrier(slim.best),
            0.0,
            1.0,
            judged=judged,
        )
    )
    return found


def figure(pairs: list[Pair]) -> Figure:
    """A column for each width: training loss above, test loss below."""
    picture = Figure(figsize=(4.2 * len(pairs), 6.4), layout="constrained")
    axes = picture.subplots(2, len(pairs), squeeze=False, sharex=True)
    for one, column in zip(pairs, axes.T):
        curves: dict[str, Curve] = {"before": one.lines[METHODS[0]].before}
        curves |= {f"matched by {method}": one.lines[method].after for method in METHODS}
        for ax, value in zip(column, ("loss", "test_loss")):
            for i, (label, curve) in enumerate(curves.items()):
                ax.plot(curve.t, curve.values[value], color=f"C{i}", label=label)
            ax.spines[["top", "right"]].set_visible(False)
        column[0].set_title(f"width {one.width:g}", fontsize=10)
        column[1].set_xlabel("alpha")
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("test loss")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=tuple(WIDTHS), default="mlp")
    parser.add_argument("--data-root", type=Path, help="MNIST's folder, or CIFAR-10 as .npz")
    parser.add_argument("--widths", type=float, nargs="+", help="ascending")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--points", type=int, default=21)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("matching"))
    args = parser.parse_args()
    if args.data_root is None and not args.quick:
        parser.error("--data-root is missing: the data of the network, or use --quick")
    if args.quick:
        args.widths, args.samples, args.epochs, args.points = [0.25, 1.0], 400, 10, 7
    args.widths = sorted(args.widths or WIDTHS[args.network])
    args.samples = args.samples or SAMPLES[args.network]
    args.epochs = args.epochs or EPOCHS[args.network]
    claim(args)
    pairs = []
    for width in args.widths:
        pairs.append(pair(args, width))
        one = pairs[-1]
        for value in ("loss", "test_loss"):
            after = ", ".join(f"{one.barrier(m, value):.4g} by {m}" for m in METHODS)
            name = value.replace("_", " ")
            print(
                f"width {width:g}: barrier of the {name} {one.barrier(None, value):.4g}, matched "
                f"{after}",
                flush=True,
            )
    report(findings_of(pairs, args), args.out / "findings.json", args)
    figure(pairs).savefig(args.out / "matching.png", dpi=110)


if __name__ == "__main__":
    main()
