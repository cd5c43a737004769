"""How often gradient descent ends in a spurious minimum of ReLU units that learn ReLU units.

Safran and Shamir (2018, "Spurious local minima are common in two-layer ReLU neural networks",
arXiv:1712.08968): k units learn the sum of k orthonormal ones on Gaussian inputs. The expected
loss F has local minima above 0 from k = 6 on, and gradient descent from Glorot's start ends in them
more and more often. Here many starts descend at once, with exact gradients; one end of each loss
is then iterated to a critical point and classified (hs.find_critical_point), so that what is
counted is a strict minimum by certified eigenvalues.

Starts are Gaussian of variance 1 / k, Glorot's for k units of k inputs. A descent has ended where
|gradient| <= 1e-8. Shares have Clopper and Pearson's intervals of 95 %.

    python benchmarks/spurious_minima.py --out spurious         # minutes
    python benchmarks/spurious_minima.py --step 0.1 --units 6 7 8 --out slower
    python benchmarks/spurious_minima.py --quick --out quick    # seconds: a test
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from findings import Finding, report, within
from scipy.stats import binomtest
from torch import Tensor

import hessian_spectrum as hs
from hessian_spectrum.zoo.student_teacher import (
    expected_gradient,
    expected_loss,
    student_of_orthonormal_teacher,
)

SOURCE = "Safran & Shamir 2018, table 1"
# Percentages of runs that ended in local minima. Of 1,000 runs each, as we remember: the number
# of runs, the start and the step were not looked up.
THEIRS = {6: 0.3, 7: 5.5, 8: 12.6, 9: 21.8, 10: 34.6}
THEIR_RUNS = 1000
ENDED = 1e-8  # |gradient|
EVERY = 100  # steps after which descents that have ended are taken out
GLOBAL = 1e-6  # a loss below which an end is the teacher, up to the order of its units
SAME = 1e-7  # losses of ends of one minimum differ by no more


@dataclass(frozen=True)
class Shares:
    """What the descents of k units have come to."""

    units: int
    runs: int
    local: int  # ended in a strict local minimum above 0
    not_ended: int
    low: float  # Clopper and Pearson's 95 % interval of local / runs
    high: float
    losses: list[float]  # of the local minima, each once
    counts: list[int]  # how many runs ended in each
    smallest: list[float]  # eigenvalue of each
    steps: int  # of the longest descent
    seconds: float


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


def shares(units: int, runs: int, step: float, most: int, seed: int) -> Shares:
    began = time.perf_counter()
    normal = np.random.default_rng([seed, units]).standard_normal((runs, units, units))
    ends, has_ended, steps = descend(torch.from_numpy(normal / units**0.5), step, most)
    loss = expected_loss(ends, torch.eye(units, dtype=torch.float64))
    above = ends[has_ended & (loss > GLOBAL)]
    found = minima(units, above, loss[has_ended & (loss > GLOBAL)])
    local = sum(count for _, count, _ in found)
    interval = binomtest(local, runs).proportion_ci(0.95, "exact")
    return Shares(
        units,
        runs,
        local,
        int((~has_ended).sum()),
        float(interval.low),
        float(interval.high),
        [point.loss for point, _, _ in found],
        [count for _, count, _ in found],
        [point.smallest for point, _, _ in found],
        steps,
        time.perf_counter() - began,
    )


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


def findings_of(all_: Sequence[Shares], judged: bool) -> list[Finding]:
    found = []
    for one in all_:
        if one.units in THEIRS:
            theirs = round(THEIRS[one.units] / 100 * THEIR_RUNS)
            ci = binomtest(theirs, THEIR_RUNS).proportion_ci(0.95, "exact")
            share = one.local / one.runs
            # Holds where the two intervals of 95 % meet.
            low, high = ci.low - (one.high - share), ci.high + (share - one.low)
            found.append(
                within(
                    f"k = {one.units}: share of {one.runs} runs that end in local minima, of "
                    f"95 % [{one.low:.4f}, {one.high:.4f}]",
                    f"{SOURCE}: {THEIRS[one.units]} %",
                    share,
                    max(0.0, low),
                    high,
                    judged=judged,
                )
            )
    for smaller, larger in pairwise(all_):
        found.append(
            within(
                f"share of k = {larger.units} minus that of k = {smaller.units}",
                SOURCE,
                larger.local / larger.runs - smaller.local / smaller.runs,
                0.0,
                1.0,
                judged=judged,
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, nargs="+", default=[6, 7, 8, 9, 10])
    parser.add_argument("--runs", type=int, default=1000, help="starts of each number of units")
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--most", type=int, default=100_000, help="steps of a descent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("spurious"))
    args = parser.parse_args()
    if args.quick:
        args.units, args.runs, args.most = [5, 8], 20, 10_000
    args.out.mkdir(exist_ok=True)
    all_ = []
    for units in args.units:
        one = shares(units, args.runs, args.step, args.most, args.seed)
        all_.append(one)
        kinds = ", ".join(
            f"{count} at {loss:.5f} (smallest eigenvalue {value:.5f})"
            for loss, count, value in zip(one.losses, one.counts, one.smallest)
        )
        print(
            f"k = {units}: {one.local} of {one.runs} runs end in local minima, "
            f"[{100 * one.low:.2f}, {100 * one.high:.2f}] %; {one.not_ended} had not ended after "
            f"{one.steps} steps; {one.seconds:.0f} s. {kinds or 'none'}",
            flush=True,
        )
        (args.out / "shares.json").write_text(json.dumps([asdict(s) for s in all_], indent=1))
    report(findings_of(all_, not args.quick), args.out / "findings.json", args)


if __name__ == "__main__":
    main()
