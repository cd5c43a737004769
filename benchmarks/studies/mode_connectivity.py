"""Loss and error between trained networks: at the ends, on the line, and on a fitted curve.

Garipov et al. (2018, arXiv:1802.10026): the straight line between two independently trained
networks crosses a high barrier, and a curve with a single free vertex, fitted for a low mean loss,
has none. As in their tables, for each pair and path the loss on the training data and the error on
test data: at the ends, the mean and the largest over the path. Two MLPs of different width on MNIST
pictures of 7 x 7 pixels, two starts each, trained by Adam on all samples; Bezier curves and
polygons with one free vertex.

A path ends at the two networks, whatever it does between them, and a Bezier curve whose search
takes no step is the line. The test takes the shipped digits and small networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.pictures import Digits, pooled

SIDE = 7  # of the pictures of digits
SOURCE = "Garipov et al. 2018"
KINDS = ("line", "bezier", "polygon")
POINTS = 41
ROUNDING = 1e-5  # relative, of a mean loss in float32


@dataclass(frozen=True)
class Options:
    """
    Args:
        samples: of each split.
        epochs: steps of Adam of a training.
        steps: of the search of a curve, and ``lr`` its rate.
    """

    data: Digits = "mnist"
    samples: int = 1000
    hidden: tuple[int, ...] = (16, 128)
    weight_decay: float = 1e-3
    epochs: int = 500
    steps: int = 300
    lr: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Way:
    """Values along one path between two trained networks."""

    kind: str
    curve: hs.Curve

    @property
    def error(self) -> np.ndarray:
        """Share of wrong labels on test data, in per cent."""
        return 100 * (1 - self.curve.values["test_accuracy"])

    def row(self) -> str:
        loss, error = self.curve.loss, self.error
        return (
            f"| {self.kind} | {loss[0]:.4f}, {loss[-1]:.4f} | {loss.mean():.4f} | {loss.max():.4f} "
            f"| {error[0]:.1f}, {error[-1]:.1f} | {error.mean():.1f} | {error.max():.1f} |"
        )


def evaluators(
    context: Context, options: Options, hidden: int
) -> tuple[hs.Evaluator, hs.Evaluator]:
    """The network on training digits, and on test digits."""
    sides = [
        pooled(context, options.data, SIDE, options.samples, split) for split in ("train", "test")
    ]
    mean, scale = sides[0][0].mean(0), sides[0][0].std()
    net = nn.Sequential(nn.Linear(SIDE**2, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    made = [
        hs.Evaluator(
            net,
            nn.CrossEntropyLoss(),
            ((x - mean) / scale, y),
            weight_decay=options.weight_decay,
            batch_size=options.samples,
        )
        for x, y in sides
    ]
    return made[0], made[1]


def trained(ev: hs.Evaluator, seed: int, options: Options) -> Tensor:
    """Adam on the whole loss, from a start of its own."""
    torch.manual_seed(seed)
    for layer in ev.model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    theta = ev.theta.requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.01)
    for _ in range(options.epochs):
        theta.grad = ev.gradient(theta.detach())
        optimizer.step()
    return theta.detach()


def searched(
    ev: hs.Evaluator,
    ends: list[Tensor],
    kind: str,
    test: hs.Evaluator,
    options: Options,
    steps: int,
) -> Way:
    """The curve that a search of so many steps leads to."""
    fit = hs.connect(
        *(ev, ends[0], ends[1]),
        kind=kind,
        num_steps=steps,
        lr=options.lr,
        seed=options.seed,
        num_points=POINTS,
        test=test,
    )
    return Way(kind, fit.curve)


def ways_of(context: Context, options: Options, hidden: int) -> tuple[list[Way], Way]:
    """Line and curves between two trained networks, and a curve whose search takes no step."""
    ev, test = evaluators(context, options, hidden)
    kept = context.kept(
        f"ends-{hidden}",
        options,
        lambda: {f"end{i}": trained(ev, options.seed + i, options).numpy() for i in range(2)},
    )
    ends = [torch.from_numpy(kept[f"end{i}"]) for i in range(2)]
    line = Way("line", hs.interpolate(ev, *ends, POINTS, test=test))
    curves = [searched(ev, ends, kind, test, options, options.steps) for kind in KINDS[1:]]
    return [line, *curves], searched(ev, ends, KINDS[1], test, options, 0)


def judged(context: Context, hidden: int, found: list[Way], unmoved: Way) -> list[Finding]:
    line, name = found[0].curve, f"{hidden} hidden units"
    over_ends = line.barrier() / line.loss[[0, -1]].mean()
    claim = f"{name}, line: barrier over the mean loss of the ends"
    claims = [context.check(claim, over_ends, 1.0, np.inf, source=SOURCE)]
    for way in found[1:]:
        apart = np.abs(way.curve.loss[[0, -1]] / line.loss[[0, -1]] - 1).max()
        claims += [
            context.check(
                f"{name}, {way.kind}: barrier over that of the line",
                way.curve.barrier() / line.barrier(),
                *(0.0, 0.1),
                source=SOURCE,
            ),
            context.check(
                f"{name}, {way.kind}: largest test error minus that of the ends, %",
                way.error.max() - way.error[[0, -1]].max(),
                *(-np.inf, 1.0),
                source=SOURCE,
            ),
            context.check(
                f"{name}, {way.kind}: losses of its ends over those of the line, minus 1",
                apart,
                *(0.0, ROUNDING),
                source="the same networks",
                judged_from="test",
            ),
        ]
    claims.append(
        context.check(
            f"{name}: losses of an unmoved Bezier curve over those of the line, minus 1",
            np.abs(unmoved.curve.loss / line.loss - 1).max(),
            *(0.0, ROUNDING),
            source="the vertex is the middle",
            judged_from="test",
        )
    )
    return claims


def figure(by_width: dict[int, list[Way]]) -> Figure:
    picture = Figure(figsize=(5 * len(by_width), 6), layout="constrained")
    axes = picture.subplots(2, len(by_width), squeeze=False)
    for column, (hidden, found) in zip(axes.T, by_width.items()):
        for way, style in zip(found, ("-", "--", ":")):
            column[0].plot(way.curve.t, way.curve.loss, style, label=way.kind)
            column[1].plot(way.curve.t, way.error, style)
        column[0].set_yscale("log")
        column[0].set_title(f"{hidden} hidden units")
        column[0].legend(frameon=False, fontsize=8)
        column[1].set_xlabel("t")
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("test error, %")
    return picture


def run(context: Context, options: Options) -> Outcome:
    by_width: dict[int, list[Way]] = {}
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    for hidden in options.hidden:
        found, unmoved = ways_of(context, options, hidden)
        by_width[hidden] = found
        print(f"\n{hidden} hidden units; loss of training data, test error in %")
        print("| path | loss at the ends | mean | largest | error at the ends | mean | largest |")
        print("|---|---|---|---|---|---|---|")
        for way in found:
            print(way.row())
            values[f"{hidden}/{way.kind}/t"] = way.curve.t
            values[f"{hidden}/{way.kind}/loss"] = way.curve.loss
            values[f"{hidden}/{way.kind}/error"] = way.error
        curves = {f"curve/{way.kind}": way.curve for way in found}
        hs.save(context.folder / f"{hidden}.h5", **curves)
        findings += judged(context, hidden, found, unmoved)
    return Outcome(findings, values, figure(by_width))


STUDY = Study(
    title="Is there a curve of low loss between two networks?",
    source=f"{SOURCE}, tables 1 and 2",
    run=run,
    scales={
        "test": Options(data="digits", samples=100, hidden=(8,), epochs=40, steps=5),
        "cpu": Options(),
    },
    data=("mnist",),
)
