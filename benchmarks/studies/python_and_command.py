"""Does Python plan as the command line does? CPU seconds of the same work by both.

Every run is a process of its own with one thread; the three ways take turns:

- command: as the runner carries out ``density`` or ``eigenpairs``, from a loaded problem to a
  written file;
- Python: ``hs.spectral_density(hs.Hessian(ev))`` or ``hs.eigenpairs``, from the same problem;
- Python, reverse: the same with ``plan=hs.ProductPlan()``, one vector at a time by reverse over
  reverse, as Python did before it planned.

Times are CPU seconds of the process, which other processes disturb least. The command adds the
gradient, two products that are compared, and the file. That both make the same plan, and that the
products of a density do not depend on it, is exact; the test checks it on the shipped digits, in
one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.problems import Problem
from benchmarks.suite.timing import Ratio

ROOT = Path(__file__).resolve().parents[2]
TAGGER = f"{ROOT / 'jobs' / 'problems' / 'tagger.py'}:make"
COMMAND, PYTHON, REVERSE = WAYS = ("command", "Python", "Python, reverse")
SIZES: dict[str, dict[str, Any]] = {
    "density": {"num_probes": 8, "num_steps": 12},
    "eigenpairs": {"k": 2, "tol": 1e-3},
}
FEWER: dict[str, dict[str, Any]] = {  # of a model whose products take seconds
    "density": {"num_probes": 2, "num_steps": 10},
    "eigenpairs": {"k": 1, "which": "largest", "tol": 1e-2, "max_products": 20},
}


MNIST = (("model", "mlp-784-20-10"), ("limit", 3000))
PROBLEMS = (
    Problem("mlp-784-20-10, 3,000 digits", "mnist", MNIST),
    Problem("tagger, 64 sentences", "", (("problem", TAGGER),)),
)
PICTURES = Problem("resnet20, 64 pictures", "cifar10", (("model", "resnet20"), ("limit", 64)))
TEST = Problem("mlp-64-16-10, 200 digits", "digits", (("model", "mlp-64-16-10"), ("limit", 200)))


@dataclass(frozen=True)
class Options:
    """
    Args:
        apart: each run in a process of its own, so that no run profits from an earlier one.
    """

    problems: tuple[Problem, ...] = PROBLEMS
    analyses: tuple[str, ...] = ("density", "eigenpairs")
    rounds: int = 3
    apart: bool = True


def child(work: dict[str, Any], cache: str) -> dict[str, Any]:
    """``one`` in a process of its own; all share what was calibrated."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache}
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, json.dumps(work)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def here(work: dict[str, Any], cache: str) -> dict[str, Any]:
    """``one`` in this process, with a cache of its own for what is calibrated."""
    with patch.dict(os.environ, XDG_CACHE_HOME=cache):
        return one(**work)


def one(problem: dict[str, Any], analysis: str, way: str, out: str) -> dict[str, Any]:
    """CPU seconds, products and the plan of one run."""
    import torch

    import hessian_spectrum as hs
    from hessian_spectrum.commands import registry, runner
    from hessian_spectrum.config import DensityConfig, EigenpairsConfig
    from hessian_spectrum.operators.linearization import Linearization
    from hessian_spectrum.zoo import problem_loader

    plans, make = [], Linearization.__init__

    def noted(self: Any, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        if self.plan.precision is None:
            plans.append(self.plan)

    options = (FEWER if problem.get("model") == "resnet20" else SIZES)[analysis]
    kind = DensityConfig if analysis == "density" else EigenpairsConfig
    config = kind(**problem, **options, out=Path(out), overwrite=True, device="cpu")
    torch.manual_seed(0)  # the tagger draws its data
    loaded = problem_loader.load(config)
    Linearization.__init__ = noted  # type: ignore[method-assign]
    start = time.process_time()
    try:
        if way == COMMAND:
            computation = registry.command_of(config).implementation()
            runner.run(computation, problem_loader.settled(config, loaded), loaded, hs.World())
            seconds = time.process_time() - start
            with hs.open(out) as stored:
                products = int(stored.provenance["products"])
        else:
            ev = loaded.evaluator()
            hessian = hs.Hessian(ev, plan=hs.ProductPlan() if way == REVERSE else None)
            before = ev.counts.products
            analyze = hs.spectral_density if analysis == "density" else hs.eigenpairs
            analyze(hessian, **options)
            seconds, products = time.process_time() - start, ev.counts.products - before
    finally:
        Linearization.__init__ = make  # type: ignore[method-assign]
    plan = plans[-1]
    words = [plan.mode, f"{plan.chunk} at once" if plan.chunk else "", "kept" if plan.keep else ""]
    return {"seconds": seconds, "products": products, "plan": ", ".join(filter(None, words))}


def judged(
    context: Context, name: str, analysis: str, found: dict[str, list[dict[str, Any]]]
) -> list[Finding]:
    seconds = {way: [run["seconds"] for run in runs] for way, runs in found.items()}
    plans = {run["plan"] for way in (COMMAND, PYTHON) for run in found[way]}
    what = f"{name}, {analysis}"
    over_command = Ratio.of(seconds[PYTHON], seconds[COMMAND])
    over_reverse = Ratio.of(seconds[PYTHON], seconds[REVERSE])
    findings = [
        context.check(
            f"{what}: plans of the command and of Python that differ",
            *(len(plans) - 1, 0, 0),
            source="counted",
            judged_from="test",
        ),
        context.check(
            f"{what}: time of Python over that of the command",
            *(over_command.median, 0.0, 1.1),
            source="the package's own claims",
            uncertainty=over_command.spread,
        ),
        context.check(
            f"{what}: time of Python over that of reverse over reverse, one vector at a time",
            *(over_reverse.median, 0.0, 1.1),
            source="the package's own claims",
            uncertainty=over_reverse.spread,
        ),
    ]
    if analysis == "density":
        products = [found[way][0]["products"] for way in (PYTHON, REVERSE)]
        claim = f"{what}: products with Python's plan minus those by reverse"
        more = {"source": "counted", "judged_from": "test"}
        findings.append(context.check(claim, products[0] - products[1], 0, 0, **more))
    return findings


def run(context: Context, options: Options) -> Outcome:
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    notes = []
    out = str(context.folder / "run.h5")
    with tempfile.TemporaryDirectory() as cache:
        for problem in options.problems:
            for analysis in options.analyses:
                found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
                for _ in range(options.rounds):
                    for way in WAYS:
                        work = {"problem": problem.options(context), "analysis": analysis}
                        work |= {"way": way, "out": out}
                        found[way].append((child if options.apart else here)(work, cache))
                findings += judged(context, problem.name, analysis, found)
                plan = found[PYTHON][0]["plan"]
                notes.append(f"{problem.name}, {analysis}: {plan}")
                for way, runs in found.items():
                    for quantity in ("seconds", "products"):
                        column = np.array([each[quantity] for each in runs])
                        values[f"{problem.name}/{analysis}/{way}/{quantity}"] = column
    return Outcome(findings, values, notes="; ".join(notes))


STUDY = Study(
    title="Does Python plan as the command line does?",
    source="the package's own claims",
    run=run,
    scales={
        "test": Options((TEST,), ("density",), rounds=1, apart=False),
        "cpu": Options(),
        "gpu": Options((*PROBLEMS, PICTURES), rounds=5),
    },
    group="speed",
    data=("mnist", "cifar10"),
)


if __name__ == "__main__":
    print(json.dumps(one(**json.loads(sys.argv[1]))))
