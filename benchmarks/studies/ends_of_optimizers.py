"""Where optimizers end, on a slim Network in Network.

Im, Tao & Branson (2017, "An empirical analysis of deep network loss surfaces", arXiv:1612.04010)
train networks from one start by several optimizers, and compare their ends: the loss over the
triangle of the start and two ends, and how far apart the ends are as functions (table 1), the lines
between them (figures 5 and 6), what a switch of the optimizer in mid-training does, and networks
that start from odd weights, N(-10, 0.01) and N(-1, 1); each with and without BatchNorm.

The commands ``train --grid`` and ``interpolate --pairs`` do the same with CIFAR-10 pictures of
16 x 16 pixels. Functional distances are of softmax outputs on test pictures. The test has the
shipped digits and two optimizers, for which the paper has no figures; lines and triangles meet at
the networks, where all have the same loss.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, Dataset, TensorDataset

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.pictures import small_pictures
from hessian_spectrum.landscape.results import Pairs
from hessian_spectrum.zoo import problem_loader

SOURCE = "Im, Tao & Branson 2017"
RATES = {
    "plain-sgd": 0.1,
    "momentum": 0.02,
    "adam": 0.003,
    "rmsprop": 0.001,
    "rk2-heun": 0.1,
}
ODD = ("normal:-10:0.01", "normal:-1:1")
DISTANCE, DISAGREEMENT = 0.16, 0.08  # theirs, between ends of different optimizers
CHANCE = 0.1  # accuracy of a guess among ten classes
SWITCHES = (("momentum", "adam"), ("adam", "momentum"))
RISE = 1e-3  # of the loss, that counts
KINDS = {True: "batchnorm", False: "plain"}
WHY_NOT = (
    "networks of this size, trained with so few pictures, hardly generalize, and their outputs on "
    "test pictures differ more than those of the authors' networks"
)


@dataclass(frozen=True)
class Options:
    """
    Args:
        samples: CIFAR-10 pictures of each split; 0: the first 60 shipped digits, without a test.
        surface_samples: of these, on lines and triangles.
        points: on a line and on each side of a triangle.
        width: of the channels.
        batchnorm: networks with it, without it, or both.
        odd: also starts from odd weights.
    """

    samples: int = 2000
    surface_samples: int = 200
    points: int = 5
    epochs: int = 15
    width: float = 0.125
    optimizers: tuple[str, ...] = tuple(RATES)
    batchnorm: tuple[bool, ...] = (True, False)
    odd: tuple[str, ...] = ODD


@dataclass(frozen=True)
class Networks:
    """How all networks of the study are trained and compared."""

    context: Context
    options: Options
    fields: dict[str, Any]  # of a configuration: model and data

    @staticmethod
    def of(context: Context, options: Options) -> Networks:
        fields: dict[str, Any] = {"model": "nin", "width": options.width, "dropout_rate": 0.0}
        if options.samples:
            fields |= {"dataset": "arrays", "data_root": small_pictures(context, options.samples)}
        else:
            fields |= {"dataset": "digits", "limit": 60}
        return Networks(context, options, fields)

    def problem(self, batchnorm: bool, **more: object) -> list[str]:
        """The fields as options, with some more or others."""
        named = {**self.fields, **more}
        words = [w for k, v in named.items() for w in (f"--{k.replace('_', '-')}", str(v))]
        return words if batchnorm else [*words, "--no-batchnorm"]

    def trained(self, batchnorm: bool, *options: object) -> Path:
        """The folder of one training or of a grid of them; each may diverge."""
        epochs = self.options.epochs
        return self.context.network(
            *self.problem(batchnorm),
            *("--batch-size", 50, "--epochs", epochs, "--every", epochs, "--keep-steps", "1:1"),
            *options,
            codes=(0, 1),
        )

    def compared(self, name: str, folder: Path, batchnorm: bool) -> Pairs:
        """The table of pairs of a folder's networks."""
        # One minibatch has all samples, so that its statistics are those of all of them.
        statistics = ("--batch-norm", "train") if batchnorm else ()
        with self.context.computed(
            self.context.folder / f"{name}.h5",
            "interpolate",
            *self.problem(batchnorm, limit=self.options.surface_samples),
            *(*statistics, *(["--test"] if self.options.samples else [])),
            *("--num-points", self.options.points, "--pairs", folder),
        ) as run:
            return Pairs.of(run)

    def switched(self, nets: Path) -> Pairs:
        """Momentum and Adam alone, and each with a switch to the other in mid-training."""
        folder, half = self.context.folder / "switches", self.options.epochs // 2
        for first, then in SWITCHES:
            options = ("--optimizer", first, "--lr", RATES[first])
            switch = ("--switch", f"{half}:{then}:{RATES[then]}")
            for name, source in (
                (first, nets / first),
                (f"{first}-then-{then}", self.trained(True, *options, *switch)),
            ):
                shutil.copytree(source, folder / name, dirs_exist_ok=True)
        return self.compared("switched", folder, True)

    @torch.no_grad()
    def accuracy(self, folder: Path, batchnorm: bool) -> float:
        """Of the training data, with BatchNorm's statistics of all of them; NaN: it diverged.

        Not by an Evaluator, which refuses a network that has no gradient.
        """
        checkpoint = folder / f"epoch-{self.options.epochs:04d}.pt"
        if not checkpoint.exists():
            return float("nan")
        config = hs.InterpolateConfig(**self.fields, batchnorm=batchnorm, checkpoint=checkpoint)
        problem = problem_loader.load(config)
        data = problem.data
        if not isinstance(data, Dataset):  # arrays: a pair of tensors
            data = TensorDataset(*data)
        inputs, labels = next(iter(DataLoader(data, len(data))))
        return float((problem.model.train()(inputs).argmax(1) == labels).float().mean())


# -- findings ------------------------------------------------------------------------------------


def of_ends(context: Context, pairs: Pairs, kind: str) -> list[Finding]:
    """Are the ends of the optimizers different functions, in different basins?"""
    upper = np.triu_indices(len(pairs.names), 1)
    distance, labels = pairs.functional.distance[upper], pairs.functional.disagreement[upper]
    rises = np.array([line.barrier(reference="max") for line in pairs.lines.values()])
    ends = np.array([triangle.loss[-1, [0, -1]].max() for triangle in pairs.triangles.values()])
    lowest = np.array([triangle.loss.min() for triangle in pairs.triangles.values()]) / ends
    return [
        context.check(
            f"{kind}: functional distance between ends of two optimizers, mean of pairs",
            *(distance.mean(), DISTANCE / 2, 2 * DISTANCE),
            source=f"{SOURCE}: about {DISTANCE}",
            uncertainty=distance.std(),
            why_not=WHY_NOT,
        ),
        context.check(
            f"{kind}: share of test pictures whose labels differ, mean of pairs",
            *(labels.mean(), DISAGREEMENT / 2, 2 * DISAGREEMENT),
            source=f"{SOURCE}: about {DISAGREEMENT:.0%}",
            uncertainty=labels.std(),
            why_not=WHY_NOT,
        ),
        context.check(
            f"{kind}: share of pairs with a rise of the loss on the line between them, above the "
            "higher end",
            *((rises > RISE).mean(), 0.9, 1.0),
            source=SOURCE,
        ),
        context.check(
            f"{kind}: least loss on a triangle over that of the higher end, mean of pairs",
            *(lowest.mean(), 0.0, 1.0),
            source=SOURCE,
            uncertainty=lowest.std(),
        ),
        context.check(
            f"{kind}: loss of one network as an end of lines and a corner of triangles, largest "
            "relative difference",
            *(disagreement_of_corners(pairs), 0.0, 1e-5),
            source="one network",
            judged_from="test",
        ),
    ]


def disagreement_of_corners(pairs: Pairs) -> float:
    losses: dict[str, list[float]] = {name: [] for name in pairs.names}
    for name, loss in corners(pairs):
        losses[name].append(loss)
    return max(max(found) / min(found) - 1 for found in losses.values())


def corners(pairs: Pairs) -> Iterator[tuple[str, float]]:
    """(network, its loss) wherever a line or a triangle touches it."""
    for (first, second), line in pairs.lines.items():
        yield from ((first, line.loss[0]), (second, line.loss[-1]))
    for name, line in pairs.from_start.items():
        yield name, line.loss[-1]
    for pair, triangle in pairs.triangles.items():
        # Of (a, b): the pair is at a = 1; which of both is at b = 0 does not matter to the range.
        losses = sorted(triangle.loss[-1, [0, -1]])
        ends = sorted(pair, key=lambda name: pairs.from_start[name].loss[-1])
        yield from zip(ends, losses)


def of_switches(context: Context, pairs: Pairs, between_optimizers: float) -> list[Finding]:
    """Does a switch of the optimizer lead to another end than going on does?"""
    found = []
    for first, then in SWITCHES:
        name = f"{first}-then-{then}"
        pair = (first, name) if (first, name) in pairs.lines else (name, first)
        apart = pairs.functional.between(first, name) / between_optimizers
        found += [
            context.check(
                f"{name}: functional distance from {first} alone, over the mean distance between "
                "optimizers",
                *(apart, 0.5, 2.0),
                source=SOURCE,
            ),
            context.check(
                f"{name}: rise of the loss on the line from {first} alone, above the higher end",
                *(pairs.lines[pair].barrier(reference="max"), RISE, np.inf),
                source=SOURCE,
            ),
        ]
    return found


def of_starts(context: Context, networks: Networks) -> list[Finding]:
    """Does training get away from odd weights? Accuracy on the training data."""
    found = []
    for batchnorm, init in (
        (b, i) for b in networks.options.batchnorm for i in networks.options.odd
    ):
        rule = ("--optimizer", "adam", "--lr", RATES["adam"])
        folder = networks.trained(batchnorm, *rule, "--init", init)
        low, high = (2 * CHANCE, 1.0) if batchnorm else (0.0, 2 * CHANCE)
        learns = "learns" if batchnorm else "does not learn"
        found.append(
            context.check(
                f"{KINDS[batchnorm]}: Adam {learns} from {init}: training accuracy (a guess: "
                f"{CHANCE:g})",
                *(networks.accuracy(folder, batchnorm), low, high),
                source=SOURCE,
            )
        )
    return found


def figure(found: dict[str, Pairs]) -> Figure:
    """For each kind of networks: the loss between all pairs, and their functional distances."""
    picture = Figure(figsize=(9, 3.4 * len(found)), layout="constrained")
    axes = picture.subplots(len(found), 2, squeeze=False)
    for (kind, pairs), (lines, table) in zip(found.items(), axes):
        for (first, second), line in pairs.lines.items():
            lines.plot(line.t, line.loss, ".-", linewidth=0.8, label=f"{first}, {second}")
        for line in pairs.from_start.values():
            lines.plot(line.t, line.loss, ":", color="C7", linewidth=0.8)
        lines.set(title=f"{kind} (dotted: from the start)", xlabel="t", ylabel="training loss")
        lines.legend(fontsize=5, ncols=2)
        image = table.imshow(pairs.functional.distance, cmap="viridis")
        table.set_xticks(range(len(pairs.names)), pairs.names, fontsize=6, rotation=30)
        table.set_yticks(range(len(pairs.names)), pairs.names, fontsize=6)
        table.set_title("functional distance", fontsize=9)
        picture.colorbar(image, ax=table)
    return picture


def run(context: Context, options: Options) -> Outcome:
    networks = Networks.of(context, options)
    findings: list[Finding] = []
    found: dict[str, Pairs] = {}
    grid = ",".join(f"{name}:{RATES[name]}" for name in options.optimizers)
    for batchnorm in options.batchnorm:
        kind = KINDS[batchnorm]
        nets = networks.trained(batchnorm, "--grid", f"optimizer={grid}")
        pairs = found[kind] = networks.compared(kind, nets, batchnorm)
        findings += of_ends(context, pairs, kind)
        if batchnorm:
            apart = pairs.functional.distance[np.triu_indices(len(pairs.names), 1)].mean()
            found["switched"] = networks.switched(nets)
            findings += of_switches(context, found["switched"], float(apart))
    findings += of_starts(context, networks)
    values: dict[str, Any] = {}
    for kind, pairs in found.items():
        values[f"{kind}/names"] = [name.encode() for name in pairs.names]
        values[f"{kind}/distance"] = pairs.functional.distance
        values[f"{kind}/disagreement"] = pairs.functional.disagreement
        for (first, second), line in pairs.lines.items():
            values[f"{kind}/{first}--{second}/loss"] = line.loss
    return Outcome(findings, values, figure(found))


STUDY = Study(
    title="Do optimizers end in different places?",
    source="Im, Tao & Branson 2017, table 1, figures 5 and 6",
    run=run,
    scales={
        "test": Options(
            *(0, 30, 3, 2, 0.05),
            optimizers=("momentum", "adam"),
            batchnorm=(True,),
            odd=(),
        ),
        "cpu": Options(),
        "gpu": Options(5000, 2000, 25, 60, 1.0),
    },
    data=("cifar10",),
)
