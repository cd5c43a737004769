"""What the checks of derivatives cost, in gradients of all the data and in seconds.

    python benchmarks/check_costs.py [--data DATA] [--runs 5]      # three minutes

DATA (default: HESSIAN_SPECTRUM_DATA, or ../shared/data) holds MNIST in torchvision's layout and
``cifar10_jpeg.npz``. One thread; CPU seconds of this process, medians [least, most].

- construction: ``hs.Evaluator`` as it is, and without ``gradient_check.check_gradient``;
- operator: ``hs.Hessian(ev)``, whose check compares H u with differences on a few samples;
- run: ``check_on_all_data``, once a run;
- product: one vector by reverse over reverse, its graph formed anew.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hessian_spectrum as hs
from hessian_spectrum.config import DensityConfig
from hessian_spectrum.loss import gradient_check
from hessian_spectrum.operators.run_check import check_on_all_data
from hessian_spectrum.zoo import problem_loader

ROOT = Path(__file__).resolve().parent.parent
MARK = ("gradient, s", "product", "construction", "of it the check", "operator", "run")


def problems(data: Path) -> dict[str, dict[str, Any]]:
    """Fields of a ProblemConfig by name."""
    mnist = {"model": "mlp-784-20-10", "dataset": "mnist", "data_root": str(data)}
    cifar = {"dataset": "arrays", "data_root": str(data / "cifar10_jpeg.npz"), "model": "resnet20"}
    tagger = {"problem": f"{ROOT / 'jobs' / 'problems' / 'tagger.py'}:make"}
    return {
        "mlp-784-20-10, 10000 digits, float32": {**mnist, "limit": 10000},
        "the same in float64": {**mnist, "limit": 10000, "dtype": "float64"},
        "resnet20, 256 pictures, float32": {**cifar, "limit": 256, "batch_size": 64},
        "tagger, 64 sentences, float32": tagger,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    default = os.environ.get("HESSIAN_SPECTRUM_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| problem | " + " | ".join(MARK) + " |\n" + "|---" * (1 + len(MARK)) + "|")
    for name, fields in problems(arguments.data).items():
        times = [measured(fields) for _ in range(arguments.runs)]
        unit = float(np.median([run[0] for run in times]))
        cells = [spread([run[0] for run in times])]
        cells += [spread([run[i] / unit for run in times]) for i in range(1, len(MARK))]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def measured(fields: dict[str, Any]) -> list[float]:
    """CPU seconds of a gradient, a product, the construction, its check, the operator, a run."""
    torch.manual_seed(0)
    loaded = problem_loader.load(DensityConfig(out=Path("none.h5"), device="cpu", **fields))
    check, inside = gradient_check.check_gradient, [0.0]

    def timed(*args: Any) -> Any:
        start = time.process_time()
        try:
            return check(*args)
        finally:
            inside[0] += time.process_time() - start

    gradient_check.check_gradient = timed  # type: ignore[assignment]
    try:
        evaluator, construction = seconds(loaded.evaluator)
    finally:
        gradient_check.check_gradient = check
    evaluator.gradient()
    gradient = min(seconds(evaluator.gradient)[1] for _ in range(3))
    operator, made = seconds(lambda: hs.Hessian(evaluator))
    v = torch.ones(evaluator.n, dtype=evaluator.dtype)
    product = min(seconds(lambda: hs.Hessian(evaluator) @ v)[1] for _ in range(3))
    _, run = seconds(lambda: check_on_all_data(operator))
    return [gradient, product, construction, inside[0], made, run]


def seconds(action: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = action()
    return result, time.process_time() - start


def spread(values: list[float]) -> str:
    return f"{np.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


if __name__ == "__main__":
    main()
