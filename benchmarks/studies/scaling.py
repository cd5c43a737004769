"""Strong and weak scaling on the available ranks, a breakdown of the time, and a cost model.

Each number of ranks runs in its own processes, several under torchrun
(``suite/scaling_worker.py``). The time of a step of a block recurrence is split into products, the
two large exchanges, the small reductions, orthogonalization and writing. The parameters of the cost
model (``suite/step_model.py``) are measured by themselves, its steps are compared with the measured
ones, and it is extrapolated to 1,024 GPUs, for which the figures of an H100 are assumptions. A
sharded basis is compared with the whole basis on every rank.

The test runs one rank, and checks the model where it is known: a rank alone exchanges nothing, and
the basis is shared out evenly.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.suite import Context, Finding, Outcome, Study, step_model
from benchmarks.suite.scaling_worker import KINDS
from benchmarks.suite.step_model import Cost, Machine, Problem
from benchmarks.suite.timing import Ratio, spread

ROOT = Path(__file__).resolve().parents[2]
CASES = {
    "ResNet-50 on ImageNet": step_model.resnet50(),
    "transformer, 1e9 parameters, 1e7 tokens": step_model.transformer(),
}
MOST = 1024  # GPUs
WORKS = ("strong", "weak")
WORKER = "benchmarks.suite.scaling_worker"


@dataclass(frozen=True)
class Options:
    """
    Args:
        ranks: of the jobs, ascending, beginning with 1.
        samples: for weak scaling, of each rank.
        width, hidden: of the perceptron.
        repeats: of sharded against replicated; 0: not compared.
    """

    ranks: tuple[int, ...] = (1, 2)
    samples: int = 4000
    width: int = 784
    hidden: int = 400
    block: int = 12
    steps: int = 15
    batch_size: int = 500
    repeats: int = 3


def launched(context: Context, options: Options, ranks: int, *more: str) -> dict[str, Any]:
    """The result of the first rank of a job with that many ranks."""
    result = context.folder / "result.json"
    sizes = ("samples", "width", "hidden", "block", "steps", "batch_size")
    words = [w for s in sizes for w in (f"--{s.replace('_', '-')}", str(getattr(options, s)))]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    job = [sys.executable, *(torchrun if ranks > 1 else ()), "-m", WORKER]
    done = subprocess.run(
        [*job, "--result", str(result.resolve()), *words, *more],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(result.read_text())


def modelled(options: Options, found: list[dict[str, Any]], work: str) -> list[Cost]:
    """The model's steps, whose time of a product is that of the first job."""
    product = found[0]["product"] / options.block * found[0]["ranks"]
    costs = []
    for f in found:
        more = f["ranks"] if work == "weak" else 1
        problem = Problem(
            n=f["n"],
            product=product * more,
            samples=options.samples * more,
            block=options.block,
            steps=options.steps,
        )
        costs.append(step_model.step(problem, Machine(**f["machine"]), f["ranks"]))
    return costs


def beside_the_model(
    context: Context, work: str, found: list[dict[str, Any]], costs: list[Cost]
) -> Iterator[Finding]:
    for f, cost in zip(found, costs):
        what = f"{work} scaling, {f['ranks']} ranks"
        yield context.check(
            f"{what}: step by the model over the measured one",
            *(cost.total / f["step"], 0.7, 1.3),
            source="measured 2026-11-22: 0.76 to 0.95",
        )
        yield context.check(
            f"{what}: basis on a rank over its even share",
            *(f["basis"] * f["ranks"] / found[0]["basis"], 1.0, 1.0 + 1e-3),
            source="a rank holds at most one entry of a vector more than another",
            judged_from="test",
        )


def of_the_model(context: Context) -> Iterator[Finding]:
    for name, problem in CASES.items():
        alone = step_model.step(problem, step_model.H100, 1)
        yield context.check(
            f"{name}, by the model: seconds of exchange and reductions of a rank alone",
            *(alone.exchange + alone.reductions, 0.0, 0.0),
            source="it has nobody to exchange with",
            judged_from="test",
        )
        costs = dict(step_model.extrapolated(problem, most=MOST))
        yield context.check(
            f"{name}, by the model: speed of {MOST} GPUs over that of 8, in units of {MOST // 8}",
            *(costs[8].total / costs[MOST].total / (MOST // 8), 0.5, 1.01),
            source="extrapolated, with assumed figures of an H100",
            judged_from="test",
        )


def side_by_side(context: Context, options: Options) -> tuple[list[Finding], dict[str, Any]]:
    """A sharded basis beside one that each rank has whole, on 2 ranks, in turn."""
    runs: dict[str, list[dict[str, Any]]] = {"sharded": [], "replicated": []}
    for _ in range(options.repeats):
        for form, found in runs.items():
            found.append(launched(context, options, 2, "--replicate", form))
    found, values = [], {}
    for quantity, low, high in (("basis", 0.49, 0.51), ("step", 0.0, 1.2)):
        columns = {form: [run[quantity] for run in each] for form, each in runs.items()}
        ratio = Ratio.of(columns["sharded"], columns["replicated"])
        found.append(
            context.check(
                f"2 ranks, {quantity}: sharded over replicated basis",
                *(ratio.median, low, high),
                source="the package's own claims",
                uncertainty=ratio.spread,
            )
        )
        for form, column in columns.items():
            values[f"{form}/{quantity}"] = column
            print(f"{form}, {quantity}: {spread(column)}")
    return found, values


def figure() -> Figure:
    """Seconds a step on 1 to 1,024 GPUs, by the model."""
    picture = Figure(figsize=(9, 3.6), layout="constrained")
    axes = picture.subplots(1, 2, sharey=True)
    for ax, (title, problem) in zip(axes, CASES.items()):
        costs = step_model.extrapolated(problem, most=MOST)
        ranks = [count for count, _ in costs]
        ax.loglog(ranks, [cost.total for _, cost in costs], "k", lw=2, label="step")
        for kind in KINDS[:-1]:
            ax.loglog(ranks, [getattr(c, kind) or math.nan for _, c in costs], label=kind)
        ax.set(title=title, xlabel="GPUs", ylim=(1e-4, None))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("seconds a step")
    axes[1].legend(fontsize=8)
    return picture


def run(context: Context, options: Options) -> Outcome:
    findings = list(of_the_model(context))
    values: dict[str, Any] = {}
    for work in WORKS if len(options.ranks) > 1 else WORKS[:1]:
        more = ("--weak",) if work == "weak" else ()
        found = [launched(context, options, ranks, *more) for ranks in options.ranks]
        costs = modelled(options, found, work)
        findings += beside_the_model(context, work, found, costs)
        for f, cost in zip(found, costs):
            for name in ("step", "basis", *KINDS):
                values[f"{work}/{f['ranks']} ranks/{name}"] = f[name]
            values[f"{work}/{f['ranks']} ranks/model"] = cost.total
    if options.repeats:
        more_findings, more_values = side_by_side(context, options)
        findings += more_findings
        values |= more_values
    return Outcome(findings, values, figure())


STUDY = Study(
    title="How does it scale with the number of ranks?",
    source="the package's own claims, and a cost model",
    run=run,
    scales={
        "test": Options((1,), 100, 20, 10, 2, 3, 50, repeats=0),
        "cpu": Options(),
    },
    group="speed",
)
