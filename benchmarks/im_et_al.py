"""Where optimizers end: Im, Tao and Branson (2017) on a slim Network in Network.

"An empirical analysis of deep network loss surfaces" (arXiv:1612.04010) trains networks from one
start by several optimizers, and compares their ends: the loss over the triangle of the start and
two ends, and how far apart the ends are as functions (table 1), the lines between them (figures 5
and 6), what a switch of the optimizer in mid-training does, and networks that start from odd
weights, N(-10, 0.01) and N(-1, 1); each with and without BatchNorm.

Here the commands ``train --grid`` and ``interpolate --pairs`` do the same with CIFAR-10 pictures
of 16 x 16 pixels. Functional distances are of softmax outputs on test pictures. Written into OUT:
a folder of networks, a result file, a table and a picture of lines for each of "batchnorm" and
"plain", and findings.json. Finished trainings are not repeated.

    python benchmarks/im_et_al.py --data-root cifar10.npz --out im
    python benchmarks/im_et_al.py --quick --out im    # shipped digits, seconds: a test
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from findings import Finding, report, within
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader

import hessian_spectrum as hs
from hessian_spectrum.cli import main as cli
from hessian_spectrum.landscape.results import Pairs
from hessian_spectrum.zoo import problem_loader

SOURCE = "Im, Tao & Branson 2017"
OPTIMIZERS = "plain-sgd:0.1,momentum:0.02,adam:0.003,rmsprop:0.001,rk2-heun:0.1"
ODD = ("normal:-10:0.01", "normal:-1:1")
DISTANCE, DISAGREEMENT = 0.16, 0.08  # theirs, between ends of different optimizers
CHANCE = 0.1  # accuracy of a guess among ten classes


@dataclass(frozen=True)
class Study:
    """Where networks and results are, and the options that all commands share."""

    out: Path
    options: dict[str, object]  # of model and data
    test: tuple[str, ...]
    epochs: int
    surface_samples: int
    points: int

    def problem(self, **more: object) -> list[str]:
        """The options as words, with some more or others."""
        options = {**self.options, **more}
        named = ((f"--{name.replace('_', '-')}", str(v)) for name, v in options.items())
        return [word for pair in named for word in pair]

    def train(self, folder: Path, batchnorm: bool, *options: str) -> None:
        run(
            *("train", *self.problem(), *_batchnorm(batchnorm), "--batch-size", "50"),
            *("--epochs", str(self.epochs), "--every", str(self.epochs), "--resume"),
            *("--keep-steps", "1:1", *options, "--out", str(folder)),
            may_fail=True,
        )

    def compare(self, folder: Path, batchnorm: bool) -> Pairs:
        """The table of pairs of a folder's networks, and its two pictures."""
        path = folder.with_suffix(".h5")
        # One minibatch has all samples, so that its statistics are those of all of them.
        statistics = ("--batch-norm", "train") if batchnorm else ()
        run(
            *("interpolate", *self.problem(limit=self.surface_samples), *_batchnorm(batchnorm)),
            *(*statistics, *self.test, "--num-points", str(self.points)),
            *("--pairs", str(folder), "--overwrite", "--out", str(path)),
        )
        for view in ("table", "lines"):
            picture = folder.parent / f"{folder.name}_{view}.png"
            run("plot", str(path), "--view", view, "--overwrite", "--out", str(picture))
        with hs.open(path) as found:
            return Pairs.of(found)


def run(*words: str, may_fail: bool = False) -> None:
    """A command of the package.

    Args:
        may_fail: exit code 1 is an answer, as of a training that diverges.
    """
    code = cli.main(list(words))
    if code and not (may_fail and code == 1):
        raise SystemExit(f"{' '.join(words)}: exit code {code}")


def _batchnorm(is_on: bool) -> tuple[str, ...]:
    return () if is_on else ("--no-batchnorm",)


def small_pictures(source: Path, path: Path, train: int, test: int) -> None:
    """The first pictures of both splits, averaged to 16 x 16 pixels."""
    arrays = {}
    with np.load(source) as found:
        for split, count in (("train", train), ("test", test)):
            pictures = torch.from_numpy(found[f"{split}_images"][:count]).float()
            arrays[f"{split}_images"] = avg_pool2d(pictures, 2).round().to(torch.uint8).numpy()
            arrays[f"{split}_labels"] = found[f"{split}_labels"][:count]
    np.savez(path, **arrays)


def switched(study: Study, nets: Path) -> Pairs:
    """Momentum and Adam alone, and each with a switch to the other in mid-training."""
    folder, half = study.out / "switches", study.epochs // 2
    folder.mkdir(exist_ok=True)
    rates = dict(text.split(":") for text in OPTIMIZERS.split(","))
    for first, then in (("momentum", "adam"), ("adam", "momentum")):
        if not (folder / first).exists():
            shutil.copytree(nets / first, folder / first)
        options = ("--optimizer", first, "--lr", rates[first])
        switch = ("--switch", f"{half}:{then}:{rates[then]}")
        study.train(folder / f"{first}-then-{then}", True, *options, *switch)
    return study.compare(folder, True)


# -- findings ------------------------------------------------------------------------------------


def of_ends(pairs: Pairs, kind: str, judged: bool) -> list[Finding]:
    """Are the ends of five optimizers different functions, in different basins?"""
    upper = np.triu_indices(len(pairs.names), 1)
    distance, labels = pairs.functional.distance[upper], pairs.functional.disagreement[upper]
    rises = np.array([line.barrier(reference="max") for line in pairs.lines.values()])
    heights = [triangle.loss[-1, [0, -1]].max() for triangle in pairs.triangles.values()]
    lowest = np.array([triangle.loss.min() for triangle in pairs.triangles.values()])
    ends = np.array(heights)
    return [
        within(
            f"{kind}: functional distance between ends of two optimizers, mean of pairs "
            f"(theirs: about {DISTANCE})",
            *(SOURCE, distance.mean(), DISTANCE / 2, 2 * DISTANCE, distance.std(), judged),
        ),
        within(
            f"{kind}: share of test pictures whose labels differ, mean of pairs "
            f"(theirs: about {DISAGREEMENT:.0%})",
            *(SOURCE, labels.mean(), DISAGREEMENT / 2, 2 * DISAGREEMENT, labels.std(), judged),
        ),
        within(
            f"{kind}: optimizers end in different basins: share of pairs with a rise above the "
            f"higher end on the line between them (median rise {np.median(rises):.2g})",
            *(SOURCE, (rises > 1e-3).mean(), 0.9, 1.0, None, judged),
        ),
        within(
            f"{kind}: no point of a triangle is below its ends: least loss over that of the "
            "higher end, mean of pairs",
            *(SOURCE, (lowest / ends).mean(), 0.0, 1.0, (lowest / ends).std(), judged),
        ),
    ]


def of_switches(pairs: Pairs, between_optimizers: float, judged: bool) -> list[Finding]:
    """Does a switch of the optimizer lead to another end than going on does?"""
    found = []
    for name in ("momentum-then-adam", "adam-then-momentum"):
        first = name.partition("-")[0]
        pair = (first, name) if (first, name) in pairs.lines else (name, first)
        apart = pairs.functional.between(first, name) / between_optimizers
        found += [
            within(
                f"{name}: functional distance from {first} alone, over the mean distance between "
                "optimizers",
                *(SOURCE, apart, 0.5, 2.0, None, judged),
            ),
            within(
                f"{name}: rise of the loss on the line from {first} alone, above the higher end",
                *(SOURCE, pairs.lines[pair].barrier(reference="max"), 1e-3, np.inf, None, judged),
            ),
        ]
    return found


def of_starts(study: Study, judged: bool) -> list[Finding]:
    """Does training get away from odd weights? Accuracy on the training data."""
    found = []
    for batchnorm, init in ((b, i) for b in (True, False) for i in ODD):
        kind = "batchnorm" if batchnorm else "plain"
        folder = study.out / f"odd-{kind}{init.replace(':', '_')}"
        study.train(folder, batchnorm, "--optimizer", "adam", "--lr", "0.003", "--init", init)
        share = accuracy(study, folder / f"epoch-{study.epochs:04d}.pt", batchnorm)
        low, high = (2 * CHANCE, 1.0) if batchnorm else (0.0, 2 * CHANCE)
        learns = "learns" if batchnorm else "does not learn"
        claim = f"{kind}: Adam {learns} from {init}: training accuracy (a guess: {CHANCE:g})"
        found.append(within(claim, SOURCE, share, low, high, None, judged))
    return found


@torch.no_grad()
def accuracy(study: Study, checkpoint: Path, batchnorm: bool) -> float:
    """Of the training data, with BatchNorm's statistics of all of them; NaN: it diverged.

    Not by an Evaluator, which refuses a network that has no gradient.
    """
    if not checkpoint.exists():
        return float("nan")
    config = hs.InterpolateConfig(**study.options, batchnorm=batchnorm, checkpoint=checkpoint)
    problem = problem_loader.load(config)
    inputs, labels = next(iter(DataLoader(problem.data, len(problem.data))))
    return float((problem.model.train()(inputs).argmax(1) == labels).float().mean())


def studied(args: argparse.Namespace) -> Study:
    """The study that the options describe; its pictures are written."""
    options: dict[str, object] = {"model": "nin", "width": args.width, "dropout_rate": 0.0}
    if args.quick:
        options |= {"width": 0.05, "dataset": "digits", "limit": 60}
        return Study(args.out, options, (), epochs=2, surface_samples=30, points=3)
    path = args.out / "pictures.npz"
    if not path.exists():
        small_pictures(args.data_root, path, args.samples, args.samples)
    options |= {"dataset": "arrays", "data_root": path}
    return Study(args.out, options, ("--test",), args.epochs, args.surface_samples, args.points)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="a .npz file with CIFAR-10 pictures")
    parser.add_argument("--samples", type=int, default=500, help="pictures of each split")
    parser.add_argument("--surface-samples", type=int, default=250, help="of these, on surfaces")
    parser.add_argument("--points", type=int, default=9, help="on lines and sides of triangles")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("im_et_al"))
    args = parser.parse_args()
    if args.data_root is None and not args.quick:
        parser.error("--data-root is missing: a .npz file with CIFAR-10 pictures, or use --quick")
    args.out.mkdir(exist_ok=True)
    study, judged = studied(args), not args.quick
    findings: list[Finding] = []
    for kind, batchnorm in (("batchnorm", True), ("plain", False)):
        nets = args.out / kind
        study.train(nets, batchnorm, "--grid", f"optimizer={OPTIMIZERS}")
        pairs = study.compare(nets, batchnorm)
        findings += of_ends(pairs, kind, judged)
        if batchnorm:
            apart = float(pairs.functional.distance[np.triu_indices(len(pairs.names), 1)].mean())
            findings += of_switches(switched(study, nets), apart, judged)
    findings += of_starts(study, judged)
    report(findings, args.out / "findings.json", args)


if __name__ == "__main__":
    main()
