"""Does Python plan as the command line does? Seconds of the same work by both.

    python benchmarks/python_and_command.py [--data DATA] [--runs 3]      # ten minutes

DATA (default: HESSIAN_SPECTRUM_DATA, or ../shared/data) holds MNIST in torchvision's layout and
``cifar10_jpeg.npz``. Every run is a process of its own with one thread; the three ways take turns.

- command: as the runner carries out ``density`` or ``eigenpairs``, from a loaded problem to a
  written file;
- Python: ``hs.spectral_density(hs.Hessian(ev))`` or ``hs.eigenpairs``, from the same problem;
- Python, reverse: the same with ``plan=hs.ProductPlan()``, one vector at a time by reverse over
  reverse, as Python did before it planned.

Figures are seconds of the process's CPU time, which other processes disturb least: median
[least, most]. The command adds the gradient, two products that are compared, and the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("command", "Python", "Python, reverse")
SIZES: dict[str, dict[str, Any]] = {
    "density": {"num_probes": 8, "num_steps": 12},
    "eigenpairs": {"k": 2, "tol": 1e-3},
}
FEWER: dict[str, dict[str, Any]] = {  # of a model whose products take seconds
    "density": {"num_probes": 2, "num_steps": 10},
    "eigenpairs": {"k": 1, "which": "largest", "tol": 1e-2, "max_products": 20},
}


def problems(data: Path) -> dict[str, dict[str, Any]]:
    """Fields of a ProblemConfig by name."""
    tagger = ROOT / "jobs" / "problems" / "tagger.py"
    return {
        "mlp-784-20-10, 3000 digits": {
            "model": "mlp-784-20-10",
            "dataset": "mnist",
            "data_root": str(data),
            "limit": 3000,
        },
        "resnet20, 64 pictures": {
            "model": "resnet20",
            "dataset": "arrays",
            "data_root": str(data / "cifar10_jpeg.npz"),
            "limit": 64,
        },
        "tagger, 64 sentences": {"problem": f"{tagger}:make"},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    default = os.environ.get("HESSIAN_SPECTRUM_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a run in this process, as JSON
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(**json.loads(arguments.one))))
        return
    print("| problem | analysis | products | plan | " + " | ".join(WAYS) + " |")
    print("|---" * (4 + len(WAYS)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name, problem in problems(arguments.data).items():
            for analysis in ("density", "eigenpairs"):
                found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
                for _ in range(arguments.runs):
                    for way in WAYS:
                        found[way].append(child(problem, analysis, way, folder))
                print(row(name, analysis, found), flush=True)


def row(name: str, analysis: str, found: dict[str, list[dict[str, Any]]]) -> str:
    products = [found[way][0]["products"] for way in WAYS]
    times = []
    for way in WAYS:
        seconds = [run["seconds"] for run in found[way]]
        times.append(f"{np.median(seconds):.2f} [{min(seconds):.2f}, {max(seconds):.2f}]")
    plans = {run["plan"] for way in WAYS[:2] for run in found[way]}
    cells = [name, analysis, ", ".join(map(str, products)), " / ".join(sorted(plans)), *times]
    return "| " + " | ".join(cells) + " |"


def child(problem: dict[str, Any], analysis: str, way: str, folder: str) -> dict[str, Any]:
    """A run in a process of its own; all share what was calibrated."""
    work = {"problem": problem, "analysis": analysis, "way": way, "folder": folder}
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(work)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": folder},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def one(problem: dict[str, Any], analysis: str, way: str, folder: str) -> dict[str, Any]:
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

    Linearization.__init__ = noted  # type: ignore[method-assign]
    out = Path(folder) / "run.h5"
    options = (FEWER if problem.get("model") == "resnet20" else SIZES)[analysis]
    kind = DensityConfig if analysis == "density" else EigenpairsConfig
    config = kind(**problem, **options, out=out, overwrite=True, device="cpu")
    torch.manual_seed(0)  # the tagger draws its data
    loaded = problem_loader.load(config)
    start = time.process_time()
    if way == "command":
        computation = registry.command_of(config).implementation()
        runner.run(computation, problem_loader.settled(config, loaded), loaded, hs.World())
        seconds = time.process_time() - start
        with hs.open(out) as stored:
            products = int(stored.provenance["products"])
    else:
        ev = loaded.evaluator()
        hessian = hs.Hessian(ev, plan=hs.ProductPlan() if way.endswith("reverse") else None)
        before = ev.counts.products
        if analysis == "density":
            hs.spectral_density(hessian, **options)
        else:
            hs.eigenpairs(hessian, **options)
        seconds, products = time.process_time() - start, ev.counts.products - before
    plan = plans[-1]
    words = [plan.mode, f"{plan.chunk} at once" if plan.chunk else "", "kept" if plan.keep else ""]
    return {"seconds": seconds, "products": products, "plan": ", ".join(filter(None, words))}


if __name__ == "__main__":
    main()
