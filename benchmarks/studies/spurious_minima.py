"""How often gradient descent ends in a spurious minimum of ReLU units that learn ReLU units.

Safran and Shamir (2018, "Spurious local minima are common in two-layer ReLU neural networks",
arXiv:1712.08968): k units learn the sum of k orthonormal ones on Gaussian inputs. The expected
loss F has local minima above 0 from k = 6 on, and gradient descent from Glorot's start ends in them
more and more often. Here many starts descend at once, with exact gradients; one end of each loss
is then iterated to a critical point and classified (hs.find_critical_point), so that what is
counted is a strict minimum by certified eigenvalues.

Starts are Gaussian of variance 1 / k, Glorot's for k units of k inputs. A descent has ended where
|gradient| <= 1e-8. Shares have Clopper and Pearson's intervals of 95 %; a share agrees with the
paper's where the two intervals meet. The number of their runs, 1,000, is taken from memory; their
start and their step were not looked up.

At the teacher the Hessian is known. With rows of a matrix M as units, it maps M to

    M / 4 + (column sums of M) / 4 + (M^T off the diagonal, (tr M) I - diag M on it) / (2 pi),

so that 1/4 - 1/(2 pi) belongs to all M of column sums 0 that are skew off the diagonal and of trace
0: k (k - 1) / 2 dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from hessian_spectrum.zoo.student_teacher import (
    expected_gradient,
    expected_loss,
    student_of_orthonormal_teacher,
)

SOURCE = "Safran & Shamir 2018, table 1"
THEIRS = {6: 0.3, 7: 5.5, 8: 12.6, 9: 21.8, 10: 34.6}  # per cent of runs that end in local minima
THEIR_RUNS = 1000
ENDED = 1e-8  # |gradient|
EVERY = 100  # steps after which descents that have ended are taken out
GLOBAL = 1e-6  # a loss below which an end is the teacher, up to the order of its units
SAME = 1e-7  # losses of ends of one minimum differ by no more
AT_TEACHER = 0.25 - 1 / (2 * math.pi)  # the smallest eigenvalue of the Hessian
OF_SEVEN = 0.0232027149  # the loss of the minimum of 7 units, whose eigenvalues are published


@dataclass(frozen=True)
class Case:
    """Descents of ``units`` units, with that step."""

    units: int
    runs: int = 1000
    step: float = 0.5

    @property
    def name(self) -> str:
        return f"k = {self.units}, step {self.step:g}"


@dataclass(frozen=True)
class Options:
    """
    Args:
        most: steps of a descent.
    """

    cases: tuple[Case, ...] = tuple(Case(units) for units in THEIRS)
    most: int = 100_000
    seed: int = 0


@dataclass(frozen=True)
class Shares:
    """What the descents of a case have come to."""

    case: Case
    losses: NDArray[np.float64]  # of the strict local minima above 0, each once
    counts: NDArray[np.int64]  # how many runs ended in each
    smallest: NDArray[np.float64]  # eigenvalue of each
    not_ended: int
    at_teacher: int
    steps: int  # of the longest descent

    @property
    def local(self) -> int:
        """Runs that ended in a strict local minimum above 0."""
        return int(self.counts.sum())

    @property
    def share(self) -> float:
        return self.local / self.case.runs

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.local, self.case.runs)

    def __str__(self) -> str:
        kinds = ", ".join(
            f"{count} at {loss:.5f} (smallest eigenvalue {value:.5f})"
            for loss, count, value in zip(self.losses, self.counts, self.smallest)
        )
        low, high = self.interval
        return (
            f"{self.case.name}: {self.local} of {self.case.runs} runs end in local minima, "
            f"[{100 * low:.2f}, {100 * high:.2f}] %; {self.not_ended} had not ended after "
            f"{self.steps} steps. {kinds or 'none'}"
        )


def interval(count: int, runs: int) -> tuple[float, float]:
    """Clopper and Pearson's, of 95 %."""
    found = binomtest(count, runs).proportion_ci(0.95, "exact")
    return float(found.low), float(found.high)


def descend(starts: Tensor, step: float, most: int) -> tuple[Tensor, Tensor, int]:
    """Gradient descent from each start, (r, k, k), to |gradient| <= ENDED.

    Returns (ends, which have ended, steps of the longest).
    """
    teacher = torch.eye(starts.shape[-1], dtype=starts.dtype)
    ends, moving, steps = starts.clone(), torch.arange(len(starts)), 0
    w = starts.clone()
    while len(moving) and steps < most:
        for _ in range(EVERY):
            gradient = expected_gradient(w, teacher)
            w -= step * gradient
        steps += EVERY
        ends[moving] = w
        open_ = gradient.flatten(1).norm(dim=1) > ENDED
        w, moving = w[open_], moving[open_]
    has_ended = torch.ones(len(starts), dtype=torch.bool)
    has_ended[moving] = False
    return ends, has_ended, steps


def minima(units: int, ends: Tensor, losses: Tensor) -> list[tuple[hs.CriticalPoint, int, Tensor]]:
    """(what it is, how many ends, parameters) of each loss at which a strict minimum is."""
    ev, found, order = student_of_orthonormal_teacher(units).evaluator(), [], losses.argsort()
    breaks = torch.nonzero(losses[order].diff() > SAME).flatten() + 1
    for group in torch.tensor_split(order, breaks.tolist()):
        if not len(group):
            continue
        end = hs.find_critical_point(ev, ends[group[0]].flatten())
        if end.converged and end.point.kind == "minimum":
            found.append((end.point, len(group), end.theta))
    return found


def descents(case: Case, options: Options) -> dict[str, Any]:
    """The fields of ``Shares`` beside the case."""
    rng = np.random.default_rng([options.seed, case.units])
    normal = rng.standard_normal((case.runs, case.units, case.units))
    starts = torch.from_numpy(normal / case.units**0.5)
    ends, has_ended, steps = descend(starts, case.step, options.most)
    loss = expected_loss(ends, torch.eye(case.units, dtype=torch.float64))
    above = has_ended & (loss > GLOBAL)
    found = minima(case.units, ends[above], loss[above])
    return {
        "losses": np.array([point.loss for point, _, _ in found], dtype=np.float64),
        "counts": np.array([count for _, count, _ in found], dtype=np.int64),
        "smallest": np.array([point.smallest for point, _, _ in found], dtype=np.float64),
        "not_ended": int((~has_ended).sum()),
        "at_teacher": int((has_ended & ~above).sum()),
        "steps": steps,
    }


def shares(context: Context, case: Case, options: Options) -> Shares:
    given = (case, options.most, options.seed)
    kept = context.kept(
        f"descents-{case.units}-{case.step:g}", given, lambda: descents(case, options)
    )
    numbers = {name: int(kept[name]) for name in ("not_ended", "at_teacher", "steps")}
    return Shares(case, kept["losses"], kept["counts"], kept["smallest"], **numbers)


def of_teacher(units: int) -> int:
    """How many eigenvalues of the package's Hessian at the teacher are AT_TEACHER."""
    ev = student_of_orthonormal_teacher(units).evaluator()
    teacher = torch.eye(units, dtype=torch.float64).flatten()
    matrix = hs.Hessian(ev, teacher) @ torch.eye(ev.n, dtype=torch.float64)
    return int(((torch.linalg.eigvalsh(matrix) - AT_TEACHER).abs() < 1e-12).sum())


def judged(context: Context, all_: Sequence[Shares]) -> list[Finding]:
    found: list[Finding] = []
    for one in all_:
        share, name = one.share, one.case.name
        spread = math.sqrt(share * (1 - share) / one.case.runs)
        if one.case.units in THEIRS:
            percent = THEIRS[one.case.units]
            theirs = interval(round(percent / 100 * THEIR_RUNS), THEIR_RUNS)
            low, high = one.interval
            found.append(
                context.check(
                    f"{name}: share of runs that end in local minima",
                    share,
                    max(0.0, theirs[0] - (high - share)),
                    theirs[1] + (share - low),
                    source=f"{SOURCE}: {percent} %",
                    uncertainty=spread,
                )
            )
        found.append(
            context.check(
                f"{name}: ends that are neither the teacher nor a strict local minimum",
                one.case.runs - one.local - one.at_teacher,
                *(0, 0),
                source="certified eigenvalues",
            )
        )
        if one.case.units == 7:
            distance = np.abs(one.losses - OF_SEVEN).min(initial=np.inf)
            claim = f"{name}: loss of a local minimum: distance from {OF_SEVEN}"
            source = "Safran & Shamir 2018, its eigenvalues"
            found.append(
                context.check(claim, distance, 0.0, 5e-11, source=source, judged_from="test")
            )
    for step in dict.fromkeys(one.case.step for one in all_):
        same = sorted((s for s in all_ if s.case.step == step), key=lambda s: s.case.units)
        for fewer, more in pairwise(same):
            spread = math.hypot(
                *(math.sqrt(s.share * (1 - s.share) / s.case.runs) for s in (fewer, more))
            )
            claim = f"{more.case.name}: share minus that of k = {fewer.case.units}"
            difference = more.share - fewer.share
            found.append(
                context.check(claim, difference, 0.0, 1.0, source=SOURCE, uncertainty=spread)
            )
    for units in sorted({one.case.units for one in all_}):
        claim = f"k = {units}: eigenvalues 1/4 - 1/(2 pi) of the Hessian at the teacher"
        expected = units * (units - 1) // 2
        found.append(
            context.check(
                claim,
                of_teacher(units),
                *(expected, expected),
                source="k (k - 1) / 2",
                judged_from="test",
            )
        )
    return found


def figure(all_: Sequence[Shares]) -> Figure:
    """Shares by the number of units, with intervals, beside those of the paper."""
    picture = Figure(figsize=(5, 3.6), layout="constrained")
    axes = picture.subplots()
    for i, step in enumerate(dict.fromkeys(one.case.step for one in all_)):
        same = [one for one in all_ if one.case.step == step]
        share = np.array([one.share for one in same])
        ends = np.array([one.interval for one in same]).T
        low, high = share - ends[0], ends[1] - share
        units = [one.case.units + 0.1 * i for one in same]
        label = f"step {step:g}, 95 %"
        axes.errorbar(units, 100 * share, (100 * low, 100 * high), fmt="o", ms=4, label=label)
    axes.plot(list(THEIRS), list(THEIRS.values()), "_k", ms=14, label="Safran & Shamir")
    axes.set_xlabel("units")
    axes.set_ylabel("runs that end in local minima, %")
    axes.legend(frameon=False, fontsize=8)
    return picture


def run(context: Context, options: Options) -> Outcome:
    all_ = []
    for case in options.cases:
        all_.append(shares(context, case, options))
        print(all_[-1])
    values: dict[str, Any] = {}
    for one in all_:
        for name in ("losses", "counts", "smallest", "not_ended", "at_teacher", "steps"):
            values[f"{one.case.name}/{name}"] = getattr(one, name)
        values[f"{one.case.name}/interval"] = one.interval
        values[f"{one.case.name}/runs"] = one.case.runs
    return Outcome(judged(context, all_), values, figure(all_))


MORE = (
    Case(6, runs=5000),
    *(Case(units) for units in (7, 8, 9, 10)),
    *(Case(units, step=0.1) for units in (7, 8, 10)),
)

STUDY = Study(
    title="How often does descent end in a spurious minimum of ReLU units?",
    source=SOURCE,
    run=run,
    scales={
        # Of these starts two end in the minimum of seven units.
        "test": Options((Case(3, runs=4), Case(7, runs=8)), seed=9),
        "cpu": Options(),
        "paper": Options(MORE),
    },
)
