"""Asymmetric valleys: slopes on both sides of minima, BatchNorm, and the bias of weight averages.

He, Huang & Yuan (2019, "Asymmetric valleys: beyond sharp and flat local minima", NeurIPS): at
minima there are directions along which the loss rises fast on one side and slowly on the other;
directions of BatchNorm's parameters are the most asymmetric; a solution on the flat side has the
lower expected loss if the test loss is the training loss, shifted at random; and the average of
SGD's iterates is such a solution.

A slim residual network is trained on CIFAR-10 pictures of 16 x 16 pixels, with BatchNorm and
without, by SGD with a constant learning rate, whose iterates of the last epochs are averaged
(``train --swa``). Gradient descent from the average a leads to the minimum m. All training data are
one minibatch, so that the loss with BatchNorm's statistics of that minibatch is a function of the
parameters alone, which descent minimizes; test losses have the statistics of the test data.

- Random directions from m: Gaussian along all parameters, along those of BatchNorm, and along the
  others; and the absolute values of these, along which all parameters of a group grow, since the
  asymmetries of many parameters with random signs cancel. Each has a distance of its own, l, at
  which the mean loss on both sides is by 0.5 above that at m, so that all groups are compared at
  the same height. Their ratio of slopes is that of the steeper side over the flatter side, both at
  l. By the paper's definition u is (r, p, c, zeta)-asymmetric if the slope on the steep side is
  above c p everywhere in (zeta, r), and that on the flat side below p; here at l / 2 and l. A
  paraboloid has c = 1/2 there, and the ratio 1.
- The direction that ``hs.find_asymmetric`` finds at the distance |a - m|, the part of its squared
  length that is along BatchNorm's parameters, and the coordinates of SGD's iterates along it
  (``hs.averaging_bias``), positive on the flat side.
- Lines through m and a, and through SGD's end and a, on training and test data.
- Expected losses under shifts by +s and -s with s = |a - m|, along the line from m to a, and along
  the direction that the search finds, there at the mean coordinate of SGD's iterates; and of the
  test loss under the shifts +l u and -l u of the random directions.

In one dimension, with slope b for x > 0 and slope -a for x < 0, a > b, all of it is known: c = a/b;
under shifts by +s or -s the expected loss at 0 <= x <= s is (a - b) x / 2 below that at 0, and
least at s; under shifts uniform in [-s, s] it is least at s (a - b) / (a + b). SGD with the step h
and noise of variance v becomes a diffusion with density exp(-2 L / (h v)) as a^2 / v goes to 0, and
the mean of its iterates is h v (a - b) / (2 a b).

The test has the shipped digits and a tiny network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import TensorDataset

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.pictures import small_pictures
from hessian_spectrum import zoo

SOURCE = "He, Huang & Yuan 2019"
FRACTIONS = np.array([0.5, 1.0])  # of a distance, at which slopes are compared
WITHIN = {"r": 1.01, "zeta": 0.49}  # both fractions
AT_END = {"r": 1.01, "zeta": 0.99}  # the distance alone
WINDOW = (-1.0, 2.0)  # of lines; their ends are at 0 and 1
RISE = 0.5  # of the loss at the distance of a random direction
ALL, NORM, OTHERS = "all parameters", "BatchNorm's", "all but BatchNorm's"
NORM_GROWS, OTHERS_GROW = "BatchNorm's grow", "all others grow"
KINDS = {True: "BatchNorm", False: "without BatchNorm"}
COLORS = {True: "#0072B2", False: "#D55E00"}
STEEP, FLAT, SHIFT = 4.0, 1.0, 1.0  # of the valley in one dimension
ROUNDING = 1e-12
APART = 100  # steps between iterates that are kept, of SGD in one dimension
WHY_NOT_ALONG = (
    "by the definition the line is not an asymmetric direction, c = {:.2g}; the wall behind the "
    "minimum is farther than |a - m|"
)
WHY_NOT_ALL = (
    "without BatchNorm outputs grow on the steeper side; with it they shrink on both sides"
)


@dataclass(frozen=True)
class Options:
    """
    Args:
        samples: CIFAR-10 pictures of each split; 0: the first 60 shipped digits of each.
        models: residual networks of the zoo.
        width: of their 16, 32 and 64 channels.
        epochs: of SGD with the rate ``lr`` and minibatches of 50.
        averaged: of these, the last ones, whose ends are averaged.
        stride: every so many steps of these epochs is one of the iterates that are looked at.
        descent: steps of gradient descent from the average to the minimum.
        count: random directions of each group.
        search: steps of the search of an asymmetric direction.
        points: on a line.
        walk: iterates of SGD in one dimension, and valleys side by side.
    """

    samples: int = 2000
    models: tuple[str, ...] = ("resnet8",)
    width: float = 0.25
    epochs: int = 30
    averaged: int = 10
    lr: float = 0.05
    stride: int = 4
    descent: int = 100
    count: int = 8
    search: int = 15
    points: int = 25
    walk: tuple[int, int] = (2000, 200)
    seed: int = 0


# -- networks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One network, its losses on training and test data, and its training."""

    model: nn.Module
    data: TensorDataset
    ev: hs.Evaluator
    test: hs.Evaluator
    folder: Path  # of the training
    options: Options

    @staticmethod
    def of(context: Context, name: str, batchnorm: bool, options: Options) -> Problem:
        source: dict[str, Any] = {"name": "digits", "limit": 60}
        if options.samples:
            root = small_pictures(context, options.samples)
            source = {"name": "arrays", "data_root": root, "limit": options.samples}
        data, held_out = (zoo.load_dataset(**source, split=s) for s in ("train", "test"))
        parts = {"width": options.width, "batchnorm": batchnorm}
        model = zoo.model_for(data, name, "relu", options.seed, **parts)
        where = ("--data-root", source["data_root"]) if options.samples else ()
        device = ("--device", "cuda") if torch.cuda.is_available() else ()
        first = options.epochs - options.averaged
        folder = context.network(
            *("--model", name, "--width", options.width, "--seed", options.seed),
            *(() if batchnorm else ("--no-batchnorm",)),
            *("--dataset", source["name"], "--limit", source["limit"], *where, *device),
            *("--batch-size", 50, "--lr", options.lr),
            *("--epochs", options.epochs, "--every", options.epochs, "--swa", first),
            *("--keep-epochs", *range(first + 1, options.epochs + 1)),
        )
        losses = (
            hs.Evaluator(
                model,
                nn.CrossEntropyLoss(),
                found,
                batch_size=len(found),
                batch_norm="train" if batchnorm else "eval",
            )
            for found in (data, held_out)
        )
        return Problem(model, data, *losses, folder, options)

    def stored(self, name: str) -> Tensor:
        """The parameters in a file of the training."""
        zoo.load_checkpoint(self.model, self.folder / name)
        return self._parameters()

    def average(self) -> Tensor:
        return self.stored(f"swa-{self.options.epochs:04d}.pt")

    def end(self) -> Tensor:
        return self.stored(f"epoch-{self.options.epochs:04d}.pt")

    def iterates(self, stride: int) -> Tensor:
        """SGD's parameters after every so many steps of the averaged epochs, up to the last."""
        files = sorted(self.folder.glob("step-*.pt"))[1:]  # the first is where the epochs start
        return torch.stack([self.stored(path.name) for path in files[::-stride][::-1]])

    def steps_in_epoch(self) -> int:
        return -(-len(self.data) // 50)

    def descended(self, theta: Tensor) -> Tensor:
        """Where gradient descent of the training loss leads to."""
        at_start = theta.to(self._parameters(), copy=True)
        vector_to_parameters(at_start, self.model.parameters())
        zoo.train(
            self.model,
            self.data,
            epochs=self.options.descent,
            batch_size=len(self.data),
            lr=self.options.lr / 2,
            device=self.ev.device,
        )
        return self._parameters()

    def _parameters(self) -> Tensor:
        """The model's own, a copy."""
        return parameters_to_vector(self.model.parameters()).detach().clone()


def groups(ev: hs.Evaluator, minimum: Tensor, batchnorm: bool, options: Options) -> dict[str, Any]:
    """Gaussian directions along all parameters; of the same numbers, those along parts of them."""
    drawn = {"count": options.count, "seed": options.seed, "normalize": "none"}
    whole = hs.directions.random(ev, minimum, ignore=(), **drawn)
    if not batchnorm:
        return {ALL: whole}
    others = hs.directions.random(ev, minimum, ignore=("norm",), **drawn)
    norm = whole.vectors - others.vectors
    rows = {NORM: norm, OTHERS: others.vectors}
    rows |= {NORM_GROWS: norm.abs(), OTHERS_GROW: others.vectors.abs()}
    parts = {name: hs.directions.of_vectors(ev, vectors, minimum) for name, vectors in rows.items()}
    return {ALL: whole, **parts}


def units(directions: hs.Directions) -> Tensor:
    return nn.functional.normalize(directions.vectors.double(), dim=1).to(directions.vectors)


def distances(ev: hs.Evaluator, minimum: Tensor, rows: Tensor) -> np.ndarray:
    """For each unit vector, where the mean loss on both sides is by RISE above that at the minimum.

    From losses at distances in steps of a factor of two, between which the logarithm of the rise is
    a line over that of the distance, at most twice the parameters' length; (k,).
    """
    lengths = minimum.norm().item() * 2.0 ** np.arange(-6.0, 2.0)
    sides = torch.cat([rows, -rows])
    found, start = [], ev.loss(minimum).item()
    for length in lengths:
        losses = ev.loss(minimum + length * sides).cpu().numpy().reshape(2, -1)
        found.append(np.nan_to_num(losses.mean(axis=0) - start, nan=np.inf))
        if (found[-1] > RISE).all():
            break
    rises = np.maximum.accumulate(np.maximum(found, 1e-12), axis=0)
    return np.exp(
        [np.interp(math.log(RISE), np.log(rise), np.log(lengths[: len(rise)])) for rise in rises.T]
    )


def sampled(ev: hs.Evaluator, directions: hs.Directions) -> dict[str, np.ndarray]:
    """Slopes on both sides along random directions, each at its own distance."""
    minimum, rows = directions.origin, units(directions)
    lengths = distances(ev, minimum, rows)
    found = [
        hs.asymmetry(ev, hs.directions.of_vectors(ev, row, minimum), length * FRACTIONS)
        for row, length in zip(rows, lengths)
    ]
    return {
        "length": lengths,
        "forward": np.concatenate([one.forward for one in found]),
        "backward": np.concatenate([one.backward for one in found]),
    }


def searched(
    ev: hs.Evaluator, minimum: Tensor, length: float, options: Options
) -> dict[str, np.ndarray]:
    """The direction that the search finds, slopes on both its sides, and losses along it."""
    lengths, minimum = length * FRACTIONS, ev.checked(minimum)
    found = hs.find_asymmetric(
        ev, minimum, distance=lengths, num_steps=options.search, seed=options.seed
    )
    slopes = hs.asymmetry(ev, found, lengths)
    line = hs.interpolate(
        ev, minimum, minimum + length * found.vectors[0], options.points, window=(-2.0, 2.0)
    )
    return {
        "vector": found.vectors[0].cpu().numpy(),
        "forward": slopes.forward,
        "backward": slopes.backward,
        "t": line.t,
        "loss": line.loss,
    }


def of_line(problem: Problem, first: Tensor, second: Tensor) -> dict[str, np.ndarray]:
    """Losses on the line through two networks, at 0 and 1; slopes on both sides of the first."""
    ev, points = problem.ev, problem.options.points
    line = hs.interpolate(ev, first, second, points, window=WINDOW, test=problem.test)
    ahead = hs.directions.differences(ev, [second], first)
    slopes = hs.asymmetry(ev, ahead, ahead.vectors[0].norm().item() * FRACTIONS)
    return {
        "t": line.t,
        "loss": line.loss,
        "test_loss": line.values["test_loss"],
        "forward": slopes.forward,
        "backward": slopes.backward,
    }


def shifted(
    problem: Problem, ends: Sequence[Tensor], directions: hs.Directions, lengths: np.ndarray
) -> dict[str, np.ndarray]:
    """Test losses at each network, moved by +l u and -l u; (networks, 2 k)."""
    moves = units(directions) * torch.as_tensor(lengths)[:, None].to(directions.vectors)
    moves = torch.cat([moves, -moves])
    ends = [end.to(moves) for end in ends]
    return {"test_loss": np.array([problem.test.loss(end + moves).cpu().numpy() for end in ends])}


@dataclass(frozen=True)
class Valley:
    """What was measured around the minimum of one network."""

    name: str
    batchnorm: bool
    size: int  # parameters
    norm_size: int  # of these, BatchNorm's
    norm_share: float  # of the squared length of the direction that is found, along these
    swa_error: float  # of the stored average, against the mean of the iterates it is of
    apart: float  # |a - m|
    walk: Mapping[str, np.ndarray]
    search: Mapping[str, np.ndarray]
    line: Mapping[str, np.ndarray]  # from the minimum to the average
    end_line: Mapping[str, np.ndarray]  # from SGD's end to the average
    shifts: Mapping[str, np.ndarray]
    random: Mapping[str, Mapping[str, np.ndarray]]  # by group

    @property
    def label(self) -> str:
        return f"{self.name}, {KINDS[self.batchnorm]}"

    def parts(self) -> dict[str, np.ndarray]:
        found = {"walk": self.walk, "search": self.search, "shifts": self.shifts}
        found |= {"line": self.line, "end_line": self.end_line, **self.random}
        return {
            f"{self.label}/{part}/{name}": value
            for part, values in found.items()
            for name, value in values.items()
        }


def slopes_of(found: Mapping[str, np.ndarray]) -> hs.Asymmetry:
    """With the unit of distance that of each direction."""
    return hs.Asymmetry(FRACTIONS, found["forward"], found["backward"])


def larger_side(found: Mapping[str, np.ndarray], where: Mapping[str, float]) -> np.ndarray:
    """c of each direction or of the opposite one, the larger of both."""
    slopes = slopes_of(found)
    opposite = replace(slopes, forward=slopes.backward, backward=slopes.forward)
    return np.maximum(slopes.ratio(**where), opposite.ratio(**where))


def rise_at(found: Mapping[str, np.ndarray], t: float, start: float) -> float:
    """Of the training loss on a line, from t = start to t."""
    return float(np.interp(t, found["t"], found["loss"]) - at(found, start))


def at(found: Mapping[str, np.ndarray], t: float, name: str = "loss") -> float:
    return float(np.interp(t, found["t"], found[name]))


def valley(context: Context, name: str, batchnorm: bool, options: Options) -> Valley:
    problem = Problem.of(context, name, batchnorm, options)
    ev, label = problem.ev, f"{name}-{'batchnorm' if batchnorm else 'plain'}"

    def kept(part: str, make: Any) -> dict[str, np.ndarray]:
        return context.kept(f"{label}-{part}", options, make)

    average, end = problem.average(), problem.end()
    means = problem.iterates(problem.steps_in_epoch()).mean(0)
    made = kept("minimum", lambda: {"theta": problem.descended(average).cpu().numpy()})
    minimum = torch.from_numpy(made["theta"]).to(average)
    apart = (average - minimum).norm().item()
    search = kept("search", lambda: searched(ev, minimum, apart, options))

    def walked() -> dict[str, np.ndarray]:
        along = torch.from_numpy(search["vector"])[None]
        found = hs.averaging_bias(ev, problem.iterates(options.stride), minimum, along)
        return {
            "coordinates": found.coordinates[:, 0],
            "standard_error": found.standard_error,
            "losses": found.losses,
            "loss_at_average": np.array(found.loss_at_average),
        }

    directions = groups(ev, minimum, batchnorm, options)
    is_norm = directions[NORM].vectors[0].cpu().numpy() != 0 if batchnorm else np.zeros(ev.n, bool)
    random = {
        group: kept(f"random-{i}", lambda drawn=drawn: sampled(ev, drawn))
        for i, (group, drawn) in enumerate(directions.items())
    }
    return Valley(
        name,
        batchnorm,
        ev.n,
        int(is_norm.sum()),
        float(np.square(search["vector"])[is_norm].sum()),
        ((average - means).norm() / means.norm()).item(),
        apart,
        kept("walk", walked),
        search,
        kept("line", lambda: of_line(problem, minimum, average)),
        kept("end-line", lambda: of_line(problem, end, average)),
        kept(
            "shifts",
            lambda: shifted(problem, [minimum, average], directions[ALL], random[ALL]["length"]),
        ),
        random,
    )


# -- one dimension -------------------------------------------------------------------------------


class Broken(nn.Module):
    """Slopes FLAT and -STEEP on the two sides of 0, summed over coordinates."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.x = nn.Parameter(x)

    def forward(self, inputs: Tensor) -> Tensor:
        return broken(self.x).sum().expand(len(inputs))


def broken(x: Any) -> Any:
    where = torch.where if isinstance(x, Tensor) else np.where
    return where(x > 0, FLAT * x, -STEEP * x)


def valleys_in_one_dimension(number: int) -> hs.Evaluator:
    """So many of them, side by side, at their minimum."""
    data = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    start = torch.zeros(number, dtype=torch.float64)
    return hs.Evaluator(Broken(start), lambda out, _: out.mean(), data)


def sgd_in_one_dimension(number: int, valleys: int, seed: int) -> tuple[float, float]:
    """The mean of so many of SGD's iterates over its limit, and its standard error.

    The noise is large against the slopes, so that the density of the limit spans many steps. SGD
    forgets in about 2 v / b^2 steps; five times as many are left out, and iterates are APART steps
    from each other, so that the batches of the standard error are longer than that.
    """
    rng, rate, deviation = np.random.default_rng(seed), 1e-3, 8 * STEEP
    x, rows, skip = np.zeros(valleys), [], int(10 * deviation**2 / FLAT**2)
    for step in range(1, skip + APART * number + 1):
        slope = np.where(x > 0, FLAT, -STEEP)
        x = x - rate * (slope + deviation * rng.standard_normal(valleys))
        if step > skip and (step - skip) % APART == 0:
            rows.append(x)
    ev = valleys_in_one_dimension(valleys)
    found = hs.averaging_bias(
        ev, torch.from_numpy(np.array(rows)), ev.theta, torch.ones(1, valleys, dtype=torch.float64)
    )
    limit = rate * deviation**2 * (STEEP - FLAT) / (2 * STEEP * FLAT) * math.sqrt(valleys)
    return float(found.bias[0] / limit), float(found.standard_error[0] / limit)


def of_one_dimension(context: Context, options: Options) -> list[Finding]:
    ev = valleys_in_one_dimension(1)
    distance = SHIFT * np.array([0.1, 0.5, 1.0, 2.0])
    c = hs.asymmetry(ev, torch.ones(1, 1), distance).ratio(r=3 * SHIFT, zeta=0.05 * SHIFT)[0]
    x = np.linspace(-2 * SHIFT, 3 * SHIFT, 501)
    both = ev.loss(torch.from_numpy(x[:, None] + SHIFT)) + ev.loss(
        torch.from_numpy(x[:, None] - SHIFT)
    )
    expected = both.numpy() / 2
    inside = (x > 0.005) & (x < SHIFT + 0.005)
    gain = np.interp(0.0, x, expected) - expected[inside]
    exact = (STEEP - FLAT) * x[inside] / 2
    shifts = SHIFT * ((np.arange(2000) + 0.5) / 1000 - 1)  # the middles of equal parts
    uniform = broken(x[:, None] + shifts).mean(axis=1)
    bias, error = sgd_in_one_dimension(*options.walk, options.seed)

    def check(claim: str, measured: float, low: float, high: float, **more: Any) -> Finding:
        return context.check(f"one dimension: {claim}", measured, low, high, **more)

    theorem = {"source": f"{SOURCE}, theorem 1, with its sum worked out", "judged_from": "test"}
    grid = (x[1] - x[0]) / 2 + 1e-9
    best = SHIFT * (STEEP - FLAT) / (STEEP + FLAT)
    return [
        check(
            "largest c with which the valley is asymmetric, over a / b, minus 1",
            *(c / (STEEP / FLAT) - 1, -ROUNDING, ROUNDING),
            **{**theorem, "source": "the definition"},
        ),
        check(
            "expected loss under shifts +s and -s: what it gains at x over (a - b) x / 2, minus 1, "
            "largest over 0 < x <= s",
            *(np.abs(gain / exact - 1).max(), 0.0, ROUNDING),
            **theorem,
        ),
        check(
            "where the expected loss under shifts +s and -s is least, over s",
            *(x[expected.argmin()] / SHIFT, 1 - grid, 1 + grid),
            **theorem,
        ),
        check(
            "where that under shifts uniform in [-s, s] is least",
            *(x[uniform.argmin()], best - grid, best + grid),
            **theorem,
        ),
        check(
            "mean of SGD's iterates over its limit for small slopes",
            *(bias, 0.9, 1.1),
            source="the diffusion's density",
            uncertainty=error,
        ),
    ]


# -- findings ------------------------------------------------------------------------------------


def of_valley(context: Context, found: Valley) -> list[Finding]:
    """Asymmetry at the minimum, and on which side SGD's iterates and their average are."""
    line, end_line, walk, shifts = found.line, found.end_line, found.walk, found.shifts
    gain = shifts["test_loss"][1] - shifts["test_loss"][0]
    search, mean = found.search, walk["coordinates"].mean() / found.apart
    apart = at(line, 0, "test_loss")

    def check(claim: str, measured: float, low: float, high: float, **more: Any) -> Finding:
        return context.check(
            f"{found.label}: {claim}", measured, low, high, **{"source": SOURCE, **more}
        )

    return [
        check(
            "the stored average against the mean of the epochs' ends, relative",
            *(found.swa_error, 0.0, 1e-5),
            source="the same mean",
            judged_from="test",
        ),
        check(
            "largest c of the direction that the search finds",
            *(slopes_of(found.search).ratio(**WITHIN)[0], 2.0, math.inf),
        ),
        check(
            "line to the average: slope behind the minimum, at the distance |a - m|, over that at "
            "the average",
            *(slopes_of(line).ratio(**AT_END)[0], 1.0, math.inf),
        ),
        check(
            "training loss at the average over that at the minimum",
            *(at(line, 1) / at(line, 0), 1.0, 1.5),
        ),
        check(
            "test loss at the average over that at the minimum",
            *(at(line, 1, "test_loss") / apart, 0.0, 1.0),
        ),
        check(
            "training loss at the average over the mean of SGD's iterates",
            *(at(line, 1) / walk["losses"].mean(), 0.0, 1.0),
        ),
        check(
            "training loss at the average over that at SGD's end",
            *(at(end_line, 1) / at(end_line, 0), 0.9, math.inf),
        ),
        check(
            "test loss at the average over that at SGD's end",
            *(at(end_line, 1, "test_loss") / at(end_line, 0, "test_loss"), 0.0, 1.0),
        ),
        check(
            "rise of the loss beyond SGD's end over that beyond the average, on their line",
            *(rise_at(end_line, -1, 0) / rise_at(end_line, 2, 1), 1.0, math.inf),
        ),
        check(
            "mean coordinate of SGD's iterates along the direction that was found, towards the "
            "flat side, in standard errors",
            *(walk["coordinates"].mean() / walk["standard_error"][0], 2.0, math.inf),
            uncertainty=1.0,
        ),
        check(
            "mean training loss under shifts along the direction that was found, at the mean "
            "coordinate of SGD's iterates over that at the minimum",
            *(
                (at(search, mean - 1) + at(search, mean + 1)) / (at(search, -1) + at(search, 1)),
                0,
                1,
            ),
        ),
        check(
            "mean training loss under shifts along the line, at the average over that at the "
            "minimum",
            *((at(line, 0) + at(line, 2)) / (at(line, -1) + at(line, 1)), 0.0, 1.0),
            why_not=WHY_NOT_ALONG.format(slopes_of(line).ratio(**WITHIN)[0]),
        ),
        check(
            "mean test loss under random shifts, at the average minus that at the minimum",
            *(gain.mean(), -math.inf, 0.0),
            uncertainty=gain.std(ddof=1) / math.sqrt(len(gain)),
        ),
    ]


def of_medians(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """The ratio of two medians, and its standard error by resampling both."""
    rng = np.random.default_rng(0)
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        return float(np.median(above) / np.median(below)), math.nan
    drawn = [np.median(rng.choice(one, (1000, len(one))), axis=1) for one in (above, below)]
    return float(np.median(above) / np.median(below)), float((drawn[0] / drawn[1]).std(ddof=1))


def of_batchnorm(context: Context, having: Valley, without: Valley) -> list[Finding]:
    """Is it BatchNorm that makes valleys asymmetric?"""

    def check(claim: str, measured: float, low: float, high: float, **more: Any) -> Finding:
        return context.check(f"{having.name}: {claim}", measured, low, high, source=SOURCE, **more)

    slopes = {group: larger_side(one, AT_END) for group, one in having.random.items()}
    plain = larger_side(without.random[ALL], AT_END)
    searched = [slopes_of(one.search).ratio(**WITHIN)[0] for one in (having, without)]
    shares = {group: (larger_side(one, WITHIN) > 1).mean() for group, one in having.random.items()}
    return [
        check(
            "share of random directions of BatchNorm's parameters that are asymmetric, c > 1",
            *(shares[NORM], 0.1, 1.0),
            why_not="signs are random, and the asymmetries of many parameters cancel",
        ),
        check(
            "the same of directions along which BatchNorm's parameters grow",
            *(shares[NORM_GROWS], 0.1, 1.0),
        ),
        check(
            "median ratio of slopes, random directions of BatchNorm's parameters over the others",
            *(of_medians(slopes[NORM], slopes[OTHERS])[0], 1.0, math.inf),
            uncertainty=of_medians(slopes[NORM], slopes[OTHERS])[1],
        ),
        check(
            "the same of directions along which they grow",
            *(of_medians(slopes[NORM_GROWS], slopes[OTHERS_GROW])[0], 1.0, math.inf),
            uncertainty=of_medians(slopes[NORM_GROWS], slopes[OTHERS_GROW])[1],
        ),
        check(
            "median ratio of slopes, random directions of all parameters, with BatchNorm over "
            "without",
            *(of_medians(slopes[ALL], plain)[0], 1.0, math.inf),
            uncertainty=of_medians(slopes[ALL], plain)[1],
            why_not=WHY_NOT_ALL,
        ),
        check(
            "largest c of the directions that searches find, with BatchNorm over without",
            *(
                searched[0] / searched[1] if np.isfinite(searched).any() else math.nan,
                1.0,
                math.inf,
            ),
            why_not="without BatchNorm nothing bounds the outputs on the steep side",
        ),
        check(
            "share of BatchNorm's parameters in the squared length of the direction that the "
            "search finds, over their share of all parameters",
            *(having.norm_share * having.size / having.norm_size, 2.0, math.inf),
        ),
    ]


def figure(found: list[Valley]) -> Figure:
    """By architecture: lines from minimum to average, asymmetric directions, ratios of slopes."""
    names = list(dict.fromkeys(one.name for one in found))
    picture = Figure(figsize=(11, 3.4 * len(names)), layout="constrained")
    for name, row in zip(names, picture.subplots(len(names), 3, squeeze=False)):
        line, search, ratios = row
        labels: list[str] = []
        for one in (one for one in found if one.name == name):
            color, label = COLORS[one.batchnorm], KINDS[one.batchnorm]
            for values, style, data in (
                (one.line["loss"], "-", "training"),
                (one.line["test_loss"], ":", "test"),
            ):
                zero = np.interp(0, one.line["t"], values)
                line.plot(
                    one.line["t"], values - zero, style, color=color, label=f"{label}, {data}"
                )
            search.plot(one.search["t"], one.search["loss"], color=color, label=label)
            for group, sampled_there in one.random.items():
                ratio = larger_side(sampled_there, AT_END)
                ratios.plot(ratio, np.full(len(ratio), len(labels)), "o", color=color, alpha=0.5)
                ratios.plot([np.median(ratio)] * 2, [len(labels) - 0.3, len(labels) + 0.3], "k-")
                labels.append(group if one.batchnorm else f"{group},\nno BatchNorm")
        line.set(xlabel="t: minimum at 0, average at 1", ylabel="loss minus that at the minimum")
        line.set_title(name)
        search.set(xlabel="t along the direction found; 1: |a - m|", ylabel="training loss")
        search.set_yscale("log")
        ratios.set_yticks(range(len(labels)), labels, fontsize=8)
        ratios.invert_yaxis()
        ratios.set_xlabel("steeper slope over the flatter one")
        line.legend(frameon=False, fontsize=8)
        for axes in row:
            axes.grid(True, color="#DDDDDD", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
    return picture


def told(one: Valley) -> str:
    medians = ", ".join(
        f"{group} {np.median(larger_side(values, AT_END)):.2f} "
        f"(c {np.median(larger_side(values, WITHIN)):.2f})"
        for group, values in one.random.items()
    )
    return (
        f"{one.label}: {one.size:,} parameters, |a - m| {one.apart:.3g}, loss at m "
        f"{at(one.line, 0):.4f} (test {at(one.line, 0, 'test_loss'):.4f}), at a "
        f"{at(one.line, 1):.4f} (test {at(one.line, 1, 'test_loss'):.4f}), SGD's end "
        f"{at(one.end_line, 0):.4f} (test {at(one.end_line, 0, 'test_loss'):.4f}); median ratio "
        f"of slopes: {medians}; iterates' mean coordinate over |a - m| "
        f"{one.walk['coordinates'].mean() / one.apart:.3g}; share of BatchNorm in the direction "
        f"found {one.norm_share:.3g} ({one.norm_size} of its parameters)"
    )


def run(context: Context, options: Options) -> Outcome:
    findings = of_one_dimension(context, options)
    found: list[Valley] = []
    for name in options.models:
        having, without = (valley(context, name, b, options) for b in (True, False))
        for one in (having, without):
            print(told(one), flush=True)
            findings += of_valley(context, one)
        findings += of_batchnorm(context, having, without)
        found += [having, without]
    values = {name: value for one in found for name, value in one.parts().items()}
    return Outcome(findings, values, figure(found))


STUDY = Study(
    title="Are valleys steep on one side, and are averages on the flat side?",
    source=f"{SOURCE}, sections 3 to 5",
    run=run,
    scales={
        "test": Options(
            *(0, ("resnet8",), 0.125, 4, 2),
            stride=1,
            descent=5,
            count=2,
            search=2,
            points=5,
            walk=(9, 20),
        ),
        "cpu": Options(),
        "gpu": Options(10_000, ("resnet20",), 1.0, 60, 5, stride=20, descent=500, count=32),
    },
    data=("cifar10",),
)
