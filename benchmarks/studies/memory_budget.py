"""Does a run stay within its memory budget?

For each budget a process of its own makes an evaluator and a plan within the budget (calibration
included), and runs a few Lanczos steps. Measured is the peak of the resident set (on a GPU: of the
allocator) minus its size after construction of the evaluator. The plan's own estimate is at most
the budget, which the test checks on the shipped digits, without a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite import Context, Finding, Outcome, Study

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """
    Args:
        data: "digits" or "cifar10".
        budgets: GiB in addition to the model and the data.
        num_probes, num_steps: of the planned run.
        run_steps: that are run to measure their memory.
        apart: each budget in a process of its own.
    """

    model: str = "resnet20"
    data: str = "cifar10"
    limit: int = 512
    batch_size: int = 256
    budgets: tuple[float, ...] = (0.5, 1.0, 2.0)
    num_probes: int = 4
    num_steps: int = 40
    run_steps: int = 1
    apart: bool = True


def child(work: dict[str, Any]) -> dict[str, Any]:
    """``measured`` in a process of its own."""
    words = [sys.executable, "-m", __spec__.name, json.dumps(work)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measured(
    problem: dict[str, Any], budget: float, num_probes: int, num_steps: int, run_steps: int
) -> dict[str, Any]:
    """For one budget; GiB and seconds."""
    import time

    import hessian_spectrum as hs
    from hessian_spectrum.distributed.memory import PeakMemory
    from hessian_spectrum.planning import product_planner
    from hessian_spectrum.zoo import problem_loader

    config = hs.DensityConfig(out=Path("none.h5"), **problem)
    ev = problem_loader.load(config).evaluator()
    with PeakMemory(ev.device) as used:
        size = int(budget * 2**30)
        estimate = product_planner.plan(ev, ev.theta, num_probes, num_steps, memory=size)
        hessian = hs.Hessian(ev, plan=estimate.plan)
        clock = time.perf_counter()
        hs.spectral_density(hessian, num_probes, run_steps)
        step = (time.perf_counter() - clock) / run_steps
    plan = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(estimate.plan).items())
    return {
        "peak": used.peak / 2**30,
        "planned": (estimate.basis + estimate.working) / 2**30,
        "plan": plan,
        "planned seconds": estimate.seconds / num_steps,
        "step": step,
    }


def run(context: Context, options: Options) -> Outcome:
    problem: dict[str, Any] = {"model": options.model, "limit": options.limit}
    problem |= {"batch_size": options.batch_size, "dataset": options.data}
    if options.data == "cifar10":
        problem |= {"dataset": "arrays", "data_root": str(context.data("cifar10"))}
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    plans = []
    for budget in options.budgets:
        sizes = (options.num_probes, options.num_steps, options.run_steps)
        work = dict(zip(("num_probes", "num_steps", "run_steps"), sizes))
        work = {"problem": problem, "budget": budget, **work}
        found = child(work) if options.apart else measured(**work)
        what = f"{options.model}, {budget:g} GiB"
        findings.append(
            context.check(
                f"{what}: the plan's own estimate over the budget",
                *(found["planned"] / budget, 0.0, 1.0),
                source="the plan's definition",
                judged_from="test",
            )
        )
        findings.append(
            context.check(
                f"{what}: peak of memory over the budget",
                *(found["peak"] / budget, 0.0, 1.0),
                source="the package's own claims",
            )
        )
        plans.append(f"{budget:g} GiB: {found['plan']}")
        for name in ("peak", "planned", "planned seconds", "step"):
            values[f"{budget:g} GiB/{name}"] = found[name]
    return Outcome(findings, values, notes="; ".join(plans))


STUDY = Study(
    title="Does a run stay within its memory budget?",
    source="the package's own claims",
    run=run,
    scales={
        "test": Options("mlp-64-16-10", "digits", 200, 100, (0.25,), apart=False),
        "cpu": Options(),
        "gpu": Options(limit=2048, batch_size=512, budgets=(1.0, 2.0, 4.0), num_probes=8),
    },
    group="speed",
    data=("cifar10",),
)


if __name__ == "__main__":
    print(json.dumps(measured(**json.loads(sys.argv[1]))))
