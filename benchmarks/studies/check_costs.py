"""What the checks of derivatives cost, in gradients of all the data.

CPU seconds of this process on one thread, in each round in turn:

- construction: ``hs.Evaluator`` as it is, and what ``gradient_check.check_gradient`` takes of it;
- operator: ``hs.Hessian(ev)``, whose check compares H u with differences on a few samples;
- run: ``check_on_all_data``, once a run;
- product: one vector by reverse over reverse, its graph formed anew.

Networks are as they are initialized: a perceptron on MNIST in float32 and float64, ResNet-20 on
CIFAR-10 pictures and, at scale "gpu", the tagger of ``jobs/problems``. That a gradient and a
product each take one pass over the data is counted, which the test checks on the shipped digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.problems import Problem
from benchmarks.suite.timing import Ratio, seconds, spread
from hessian_spectrum.loss import gradient_check
from hessian_spectrum.operators.run_check import check_on_all_data
from hessian_spectrum.zoo import problem_loader

ROOT = Path(__file__).resolve().parents[2]
TAGGER = f"{ROOT / 'jobs' / 'problems' / 'tagger.py'}:make"
SOURCE = "measured 2026-11-28: "
# By what is timed: the most gradients, and what was measured on three networks.
MOST = {
    "product": (5.0, "2.0 to 3.3"),
    "construction": (6.0, "3.0 to 3.6"),
    "the gradient's check": (4.0, "0.2 to 2.1"),
    "operator": (3.0, "0.3 to 1.3"),
    "run": (30.0, "4.4 to 21"),
}


def load(problem: Problem, context: Context) -> Any:
    torch.manual_seed(0)  # the tagger draws its data
    out = context.folder / "none.h5"
    options = problem.options(context)
    return problem_loader.load(hs.DensityConfig(out=out, device="cpu", **options))


MLP = {"model": "mlp-784-20-10", "limit": 10_000}
PROBLEMS = (
    Problem.of("mlp-784-20-10, 10,000 digits, float32", "mnist", **MLP),
    Problem.of("the same in float64", "mnist", **MLP, dtype="float64"),
    Problem.of("resnet20, 256 pictures", "cifar10", model="resnet20", limit=256, batch_size=64),
)
SENTENCES = Problem.of("tagger, 64 sentences", "", problem=TAGGER)
TEST = Problem.of("mlp-64-16-10, 200 digits", "digits", model="mlp-64-16-10", limit=200)


@dataclass(frozen=True)
class Options:
    problems: tuple[Problem, ...] = PROBLEMS
    rounds: int = 3


@dataclass(frozen=True)
class Round:
    """CPU seconds by what is timed, and passes over the data that were counted."""

    gradient: float
    times: dict[str, float]
    gradient_passes: float
    product_passes: float


def measured(context: Context, problem: Problem) -> Round:
    loaded = load(problem, context)
    check, inside = gradient_check.check_gradient, [0.0]

    def timed(*args: Any) -> Any:
        result = []
        inside[0] += seconds(lambda: result.append(check(*args)))
        return result[0]

    made: list[Any] = []
    gradient_check.check_gradient = timed  # type: ignore[assignment]
    try:
        construction = seconds(lambda: made.append(loaded.evaluator()))
    finally:
        gradient_check.check_gradient = check
    (ev,) = made
    before = ev.counts.passes
    ev.gradient()
    gradient_passes = ev.counts.passes - before
    gradient = min(seconds(ev.gradient) for _ in range(3))
    operator = seconds(lambda: made.append(hs.Hessian(ev, plan=hs.ProductPlan())))
    v = torch.ones(ev.n, dtype=ev.dtype)
    before = ev.counts.passes
    made[1] @ v
    product_passes = ev.counts.passes - before
    product = min(seconds(lambda: made[1] @ v) for _ in range(3))
    run = seconds(lambda: check_on_all_data(made[1]))
    times = dict(zip(MOST, (product, construction, inside[0], operator, run)))
    return Round(gradient, times, gradient_passes, product_passes)


def judged(context: Context, name: str, rounds: list[Round]) -> list[Finding]:
    unit = np.median([r.gradient for r in rounds])
    found = []
    for what, (most, measured_then) in MOST.items():
        ratio = Ratio.of([r.times[what] for r in rounds], unit)
        found.append(
            context.check(
                f"{name}, {what}: gradients of all the data",
                *(ratio.median, 0.0, most),
                source=SOURCE + measured_then,
                uncertainty=ratio.spread,
            )
        )
    for what in ("gradient", "product"):
        passes = [getattr(r, f"{what}_passes") for r in rounds]
        found.append(
            context.check(
                f"{name}: passes over the data of one {what}, the most",
                *(max(passes), 1.0, 1.0),
                source="counted",
                judged_from="test",
            )
        )
    return found


def run(context: Context, options: Options) -> Outcome:
    torch.set_num_threads(1)
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    notes = []
    for problem in options.problems:
        rounds = [measured(context, problem) for _ in range(options.rounds)]
        findings += judged(context, problem.name, rounds)
        gradients = [r.gradient for r in rounds]
        notes.append(f"{problem.name}: a gradient takes {spread(gradients)} s")
        values[f"{problem.name}/gradient"] = gradients
        for what in MOST:
            values[f"{problem.name}/{what}"] = [r.times[what] for r in rounds]
    return Outcome(findings, values, notes="; ".join(notes))


STUDY = Study(
    title="What do the checks of derivatives cost?",
    source="the package's own claims",
    run=run,
    scales={
        "test": Options((TEST,), rounds=1),
        "cpu": Options(),
        "gpu": Options((*PROBLEMS, SENTENCES), rounds=10),
    },
    group="speed",
    data=("mnist", "cifar10"),
)
