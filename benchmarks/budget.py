"""Does a run stay within its memory budget?

For each budget a process makes an evaluator and a plan within the budget (calibration included),
and runs a few Lanczos steps. The report has the peak of the resident set (on a GPU: of the
allocator) minus its size after construction of the evaluator::

    python benchmarks/budget.py --model resnet20 --dataset arrays --data-root cifar10.npz
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from hessian_spectrum.config import ProblemConfig, to_dict


@dataclass(frozen=True, kw_only=True)
class Config(ProblemConfig):
    budgets: tuple[float, ...] = (1.0, 2.0, 4.0)
    """GiB in addition to the model and the data."""
    num_probes: int = 8
    num_steps: int = 40
    """Steps of the planned run."""
    run_steps: int = 2
    """Steps that are run to measure their memory."""
    limit: int | None = 2048
    batch_size: int | None = 512


def main(config: Config) -> None:
    config.check()
    print("budget GiB | peak GiB | of the budget | planned GiB | plan | s a step, planned | run")
    print("---|---|---|---|---|---|---")
    for budget in config.budgets:
        fields = {**to_dict(config), "budgets": [budget]}
        command = [sys.executable, __file__, "--child", json.dumps(fields)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{budget} | failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        r = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{budget} | {r['peak']:.2f} | {r['peak'] / budget:.0%} | {r['planned']:.2f} | "
            f"{r['plan']} | {r['seconds']:.1f} | {r['step']:.1f}",
            flush=True,
        )


def child(config: Config) -> dict:
    """The measurements for one budget, in GiB and seconds."""
    import time

    import hessian_spectrum as hs
    from hessian_spectrum.distributed.memory import PeakMemory
    from hessian_spectrum.planning import product_planner
    from hessian_spectrum.zoo import problem_loader

    ev = problem_loader.load(config).evaluator()
    (budget,) = config.budgets
    with PeakMemory(ev.device) as used:
        size = int(budget * 2**30)
        estimate = product_planner.plan(
            ev, ev.theta, config.num_probes, config.num_steps, memory=size
        )
        hessian = hs.Hessian(ev, plan=estimate.plan)
        clock = time.perf_counter()
        hs.spectral_density(hessian, config.num_probes, config.run_steps)
        step = (time.perf_counter() - clock) / config.run_steps
    plan = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(estimate.plan).items())
    return {
        "peak": used.peak / 2**30,
        "planned": (estimate.basis + estimate.working) / 2**30,
        "plan": plan,
        "seconds": estimate.seconds / config.num_steps,
        "step": step,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        from hessian_spectrum.config.files import with_fields

        options = with_fields(Config, json.loads(sys.argv[2]), Path("--child"))
        print(json.dumps(child(Config(**options))))
    else:
        main(tyro.cli(Config, description=__doc__))
