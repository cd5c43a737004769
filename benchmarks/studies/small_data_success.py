"""How often small networks learn XOR, by their hidden units.

After Swirszcz, Czarnecki & Pascanu (2016, "Local minima in training of neural networks",
arXiv:1611.06310): networks of one hidden layer are trained on all points from many starts, and the
share is counted that ends with no point on the wrong side. Their set "Jellyfish" is not part of
this repository; ``Options`` holds the points, so that a study of others is one more of these.

All starts of one size are trained together, as a batch of networks: Glorot's uniform weights,
biases 0, the logistic loss of all points, Adam (lr 0.01) or gradient descent (lr 0.1), in float64.
Of the runs that fail it is counted in how many some ReLU unit is dead, that is 0 on all points.
Shares have Clopper and Pearson's intervals of 95 %.

Two counts are known. With fewer than two ReLU units that are alive, the outputs on the points are a
monotone function of one linear form, whose signs separate no XOR: no such run learns it. Two units
do, as relu(x1 + x2) - 2 relu(x1 + x2 - 1) - 1/2 shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F

from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.xor import LABELS, XOR

SOURCE = "Swirszcz et al. 2016"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "sigmoid": torch.sigmoid}
RATES = {"adam": 0.01, "sgd": 0.1}


@dataclass(frozen=True)
class Options:
    """
    Args:
        units: hidden ones, ascending.
        runs: starts of each network.
        optimizer: "adam" or "sgd".
    """

    units: tuple[int, ...] = (2, 3, 4, 5, 7)
    runs: int = 300
    steps: int = 3000
    optimizer: str = "adam"
    points: tuple[tuple[float, ...], ...] = XOR
    labels: tuple[float, ...] = LABELS
    seed: int = 0

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """(N, d) and (N,), float64."""
        return torch.tensor(self.points).double(), torch.tensor(self.labels).double()


@dataclass(frozen=True)
class Success:
    """The runs of one network."""

    activation: str
    units: int
    is_right: np.ndarray  # (runs,): all points are on the right side
    alive: np.ndarray  # (runs,): units that are not 0 on all points

    @property
    def runs(self) -> int:
        return len(self.is_right)

    @property
    def right(self) -> int:
        return int(self.is_right.sum())

    @property
    def share(self) -> float:
        return self.right / self.runs

    @property
    def variance(self) -> float:
        """Of the share."""
        return self.share * (1 - self.share) / self.runs

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson's, of 95 %."""
        found = binomtest(self.right, self.runs).proportion_ci(0.95, "exact")
        return float(found.low), float(found.high)

    def failed_with_fewer_alive_than(self, units: int) -> int:
        return int((~self.is_right & (self.alive < units)).sum())

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.activation}, {self.units} hidden: {self.right} of {self.runs} runs learn all "
            f"points, [{100 * low:.1f}, {100 * high:.1f}] %; of {self.runs - self.right} that fail "
            f"{self.failed_with_fewer_alive_than(self.units)} have dead units, "
            f"{self.failed_with_fewer_alive_than(2)} fewer than two that are alive"
        )


def starts(runs: int, inputs: int, units: int, seed: int) -> list[Tensor]:
    """W (r, h, d), b (r, h), v (r, h), c (r,): start i is the same however many there are."""
    drawn = [np.random.default_rng([seed, units, i]) for i in range(runs)]
    bounds = math.sqrt(6 / (inputs + units)), math.sqrt(6 / (units + 1))
    w = np.stack([rng.uniform(-bounds[0], bounds[0], (units, inputs)) for rng in drawn])
    v = np.stack([rng.uniform(-bounds[1], bounds[1], units) for rng in drawn])
    zeros = np.zeros((runs, units)), np.zeros(runs)
    return [torch.from_numpy(a).requires_grad_() for a in (w, zeros[0], v, zeros[1])]


def hidden(parameters: Sequence[Tensor], x: Tensor, activation: str) -> Tensor:
    """(r, N, h)."""
    w, b, _, _ = parameters
    return ACTIVATIONS[activation](torch.einsum("nd,rhd->rnh", x, w) + b[:, None])


def outputs(parameters: Sequence[Tensor], x: Tensor, activation: str) -> Tensor:
    """(r, N), logits."""
    _, _, v, c = parameters
    return torch.einsum("rnh,rh->rn", hidden(parameters, x, activation), v) + c[:, None]


def train(activation: str, units: int, options: Options) -> list[Tensor]:
    """The parameters at the end of all runs; the sum of their losses separates by run."""
    x, y = options.data
    parameters = starts(options.runs, x.shape[1], units, options.seed)
    make = torch.optim.Adam if options.optimizer == "adam" else torch.optim.SGD
    optimizer = make(parameters, lr=RATES[options.optimizer])
    for _ in range(options.steps):
        optimizer.zero_grad()
        logits = outputs(parameters, x, activation)
        losses = F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none")
        losses.mean(1).sum().backward()
        optimizer.step()
    return [p.detach() for p in parameters]


def counted(parameters: Sequence[Tensor], activation: str, options: Options) -> dict[str, Any]:
    """Of each run: are all points on the right side, and how many units are alive?"""
    x, y = options.data
    is_right = ((outputs(parameters, x, activation) > 0) == (y > 0.5)).all(1)
    alive = (hidden(parameters, x, activation) > 0).any(1).sum(1)
    return {"is_right": is_right.numpy(), "alive": alive.numpy()}


def success(context: Context, activation: str, units: int, options: Options) -> Success:
    given = (options.points, options.labels, options.runs, options.steps, options.seed)
    found = context.kept(
        f"{activation}-{units}",
        (*given, options.optimizer),
        lambda: counted(train(activation, units, options), activation, options),
    )
    return Success(activation, units, found["is_right"], found["alive"])


def written_down() -> list[Tensor]:
    """Parameters of two ReLU units, of one run, that compute XOR."""
    w, b = torch.ones(1, 2, 2).double(), torch.tensor([[0.0, -1.0]]).double()
    return [w, b, torch.tensor([[1.0, -2.0]]).double(), torch.tensor([-0.5]).double()]


def judged(context: Context, found: Sequence[Success], options: Options) -> list[Finding]:
    all_: list[Finding] = []
    for activation in ACTIVATIONS:
        rows = [one for one in found if one.activation == activation]
        for fewer, more in pairwise(rows):
            # Beyond what chance explains: the intervals' ends.
            least = -((more.share - more.interval[0]) + (fewer.interval[1] - fewer.share))
            all_.append(
                context.check(
                    f"{activation}: share of {more.units} units minus that of {fewer.units}",
                    more.share - fewer.share,
                    *(least, 1.0),
                    source=SOURCE,
                    uncertainty=math.sqrt(more.variance + fewer.variance),
                )
            )
        all_.append(
            context.check(
                f"{activation}: share of runs with {rows[0].units} units that learn all points",
                rows[0].share,
                *(0.0, 0.95),
                source=SOURCE,
                uncertainty=math.sqrt(rows[0].variance),
            )
        )
    if options.points == XOR and options.labels == LABELS:
        relu = [one for one in found if one.activation == "relu"]
        few = sum(int((one.alive < 2).sum()) for one in relu)
        all_.append(
            context.check(
                f"relu: of {few} runs with fewer than two units alive, those that learn XOR",
                sum(int((one.is_right & (one.alive < 2)).sum()) for one in relu),
                *(0, 0),
                source="one linear form separates no XOR",
                judged_from="test",
            )
        )
        all_.append(
            context.check(
                "two ReLU units that compute XOR: points on the right side, all or not (1 or 0)",
                counted(written_down(), "relu", options)["is_right"].sum(),
                *(1, 1),
                source="closed form",
                judged_from="test",
            )
        )
    return all_


def figure(found: Sequence[Success]) -> Figure:
    """Shares by the number of units, with intervals."""
    picture = Figure(figsize=(5, 3.6), layout="constrained")
    axes = picture.subplots()
    for activation in ACTIVATIONS:
        rows = [one for one in found if one.activation == activation]
        share = np.array([one.share for one in rows])
        low, high = np.array([one.interval for one in rows]).T
        axes.errorbar(
            [one.units for one in rows],
            100 * share,
            (100 * (share - low), 100 * (high - share)),
            fmt="o-",
            ms=4,
            label=activation,
        )
    axes.set_xlabel("hidden units")
    axes.set_ylabel("runs that learn all points, %")
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, fontsize=8)
    return picture


def run(context: Context, options: Options) -> Outcome:
    found, values = [], {}
    for activation in ACTIVATIONS:
        for units in options.units:
            one = success(context, activation, units, options)
            print(one)
            found.append(one)
            values[f"{activation}/{units}/is_right"] = one.is_right
            values[f"{activation}/{units}/alive"] = one.alive
    return Outcome(judged(context, found, options), values, figure(found))


STUDY = Study(
    title="How often do small networks learn XOR?",
    source=SOURCE,
    run=run,
    scales={
        "test": Options(units=(2, 5), runs=40, steps=100),
        "cpu": Options(),
        "paper": Options(units=(2, 3, 4, 5, 6, 7), runs=1000, steps=5000),
    },
)
