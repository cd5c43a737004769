"""A picture in the loss surface of a small network: a plane of parameters whose losses draw it.

Skorokhodov & Burtsev (2019, arXiv:1910.03867) find planes on which the loss of a network looks like
any given picture; Czarnecki et al. (2020, arXiv:1912.07559) prove that large networks have such
sections, and find that they look alike on test data. ``hs.fit_section`` trains the origin and two
directions of a plane for the correlation with a grey picture, here of a bat and of a cow's head,
16 x 16 pixels. The network is an MLP with ReLU on pictures of digits; the correlation is that over
the grid, on the training data and on as many other digits. The first, random plane is beside it,
and a smaller network.

The losses of the plane are formed for many points in one call; at the corners and in the middle of
a picture they must be those of the network there, evaluated alone. The test takes the shipped
digits and few steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.pictures import Digits, pooled
from hessian_spectrum.analyses.fit_section import FittedSection

SIDE = 7  # of the pictures of digits
PLANES, ELSEWHERE = "Skorokhodov & Burtsev 2019", "Czarnecki et al. 2020"
ROUNDING = 1e-5  # relative, of a mean loss in float32
BAT = """
................
................
................
.......#..#.....
.......####.....
..#....####...#.
.##...######..##
####.############
################
################
################
##.##.######.###
#..#...####...##
........##....#.
................
................
"""
COW = """
................
.#............#.
.##..........##.
..###......###..
...##########...
####.######.####
.####.####.####.
...##########...
...#..####..#...
...#..####..#...
...##########...
....########....
....#......#....
....#.#..#.#....
....#......#....
.....######.....
"""


GLYPHS = {"bat": BAT, "cow": COW}
NO_OTHER_DATA = "a plane fitted to few digits is fitted to these digits as well"


@dataclass(frozen=True)
class Options:
    """
    Args:
        samples: of the training data, and as many others.
        hidden: units of the network, which is fitted to each picture.
        small: units of a smaller network, for the bat.
        steps: of the fit.
    """

    data: Digits = "mnist"
    samples: int = 64
    hidden: int = 32
    small: int = 4
    steps: int = 200
    lr: float = 0.02
    seed: int = 0

    @property
    def tasks(self) -> list[tuple[str, int]]:
        """Pictures and hidden units."""
        return [("bat", self.hidden), ("cow", self.hidden), ("bat", self.small)]


@dataclass(frozen=True)
class Section:
    """A plane on which the loss is fitted to a picture, and the network on it."""

    picture: str
    hidden: int
    fit: FittedSection
    ev: hs.Evaluator

    @property
    def label(self) -> str:
        return f"{self.picture}, {self.hidden} hidden units"

    @property
    def error(self) -> float:
        """Largest relative difference of the surface from the loss at single points."""
        a, b, loss = self.fit.surface.a, self.fit.surface.b, self.fit.surface.values["loss"]
        found = []
        for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1), (len(a) // 2, len(b) // 2)):
            point = self.fit.origin + a[i] * self.fit.directions[0] + b[j] * self.fit.directions[1]
            alone = self.ev.loss(point).item()
            found.append(abs(loss[i, j] - alone) / abs(alone))
        return max(found)


def glyph(text: str) -> np.ndarray:
    """(16, 16), 1 where there is ink, slightly blurred: a loss is continuous."""
    ink = np.array([[c == "#" for c in line[:16]] for line in text.split()], dtype=float)
    for axis in (0, 1):
        ink = 0.5 * ink + 0.25 * (np.roll(ink, 1, axis) + np.roll(ink, -1, axis))
    return ink


def evaluators(
    context: Context, options: Options, hidden: int
) -> tuple[hs.Evaluator, hs.Evaluator]:
    """The network on training digits, and on as many others."""
    x, y = pooled(context, options.data, SIDE, 2 * options.samples)
    x = (x - x.mean(0)) / x.std()
    torch.manual_seed(options.seed)
    net = nn.Sequential(nn.Linear(SIDE**2, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    halves = (slice(options.samples), slice(options.samples, None))
    one, two = (hs.Evaluator(net, nn.CrossEntropyLoss(), (x[half], y[half])) for half in halves)
    return one, two


def section(context: Context, picture: str, hidden: int, options: Options) -> Section:
    ev, test = evaluators(context, options, hidden)
    fit = hs.fit_section(
        ev,
        glyph(GLYPHS[picture]),
        test=test,
        num_steps=options.steps,
        lr=options.lr,
        seed=options.seed,
    )
    found = Section(picture, hidden, fit, ev)
    hs.save(context.folder / f"{picture}-{hidden}.h5", fit.surface)
    print(f"{found.label}, {ev.n} parameters: {fit}; first plane {fit.history[0]:.3f}")
    return found


def judged(context: Context, sections: list[Section], options: Options) -> list[Finding]:
    found: list[Finding] = []
    for one in sections:
        assert one.fit.test_correlation is not None  # there is other data
        if one.hidden == options.hidden:
            claim = f"{one.label}: correlation of picture and loss"
            found += [
                context.check(
                    f"{claim}, training data", one.fit.correlation, 0.9, 1.0, source=PLANES
                ),
                context.check(
                    f"{claim}, other data",
                    one.fit.test_correlation,
                    *(0.8, 1.0),
                    source=ELSEWHERE,
                    why_not=NO_OTHER_DATA,
                ),
            ]
        found.append(
            context.check(
                f"{one.label}: losses of the plane over those of single points, minus 1",
                one.error,
                *(0.0, ROUNDING),
                source="the same network",
                judged_from="test",
            )
        )
    bats = {one.hidden: one.fit for one in sections if one.picture == "bat"}
    found.append(
        context.check(
            "bat: correlation of the larger network minus that of the smaller",
            bats[options.hidden].correlation - bats[options.small].correlation,
            *(0.0, 2.0),
            source=ELSEWHERE,
        )
    )
    return found


def figure(sections: list[Section]) -> Figure:
    """The picture, the loss of training data and that of other data; a row a section."""
    picture = Figure(figsize=(9, 3 * len(sections)), layout="constrained")
    for row, one in zip(picture.subplots(len(sections), 3, squeeze=False), sections):
        fit = one.fit
        titles = (
            one.label,
            f"loss: correlation {fit.correlation:.3f}",
            f"other data: {fit.test_correlation:.3f}",
        )
        for axes, key, title in zip(row, ("picture", "loss", "test_loss"), titles):
            axes.imshow(fit.surface.values[key], cmap="gray_r")
            axes.set_title(title, fontsize=9)
            axes.axis("off")
    return picture


def run(context: Context, options: Options) -> Outcome:
    sections = [section(context, *task, options) for task in options.tasks]
    values: dict[str, Any] = {}
    for one in sections:
        values |= {f"{one.label}/{key}": value for key, value in one.fit.surface.values.items()}
        values[f"{one.label}/history"] = one.fit.history
    return Outcome(judged(context, sections, options), values, figure(sections))


STUDY = Study(
    title="Can a plane of parameters show any picture?",
    source=f"{PLANES}; {ELSEWHERE}",
    run=run,
    scales={
        "test": Options(data="digits", samples=16, hidden=8, small=2, steps=3),
        "cpu": Options(),
        "gpu": Options(samples=1000),
    },
    data=("mnist",),
)
