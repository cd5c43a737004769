"""Run by test_rank_failures.py under torchrun: one rank fails in the middle of a computation.

python rank_failures_worker.py FOLDER
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.distributed import agreement

PLAN = hs.ProductPlan("reverse")  # the model is called in each product
ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "host": MemoryError("4 GiB"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    "code": KeyError("layer 3"),
}


class Model(nn.Sequential):
    """Raises ``plan.error`` after ``plan.calls`` more calls; never while it is None.

    Kept in an object: plain attributes of a module are put back after each evaluation.
    """

    def __init__(self, *layers):
        super().__init__(*layers)
        self.plan = SimpleNamespace(error=None, calls=0)

    def forward(self, x):
        self.plan.calls -= 1
        if self.plan.error is not None and self.plan.calls < 0:
            raise self.plan.error
        return super().forward(x)


def evaluator(world, **options):
    torch.manual_seed(0)
    model = Model(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    return hs.Evaluator(model, F.cross_entropy, (x, y), batch_size=2, world=world, **options)


def heard(action, ev, error, calls, world):
    """[class, text, seconds] of what this rank is told where the last one fails."""
    if world.rank == world.size - 1:
        ev.model.plan.error, ev.model.plan.calls = error, calls
    clock = time.monotonic()
    try:
        action()
        found = None
    except Exception as failed:
        found = [type(failed).__name__, str(failed), time.monotonic() - clock]
    ev.model.plan.error = None
    return world.gather_objects(found)


def main():
    world = hs.distributed.start("cpu", timeout=timedelta(seconds=60))
    ev = evaluator(world)
    hessian = hs.Hessian(ev, plan=PLAN)
    v = torch.ones(ev.n, dtype=torch.float64)
    expected = hessian @ v
    moving = evaluator(world, batch_norm="recalibrate")
    theta = moving.theta + 0.1
    cases = {
        "density": lambda: hs.spectral_density(hessian, 2, 6),
        "slq": lambda: hs.spectral_density(hessian, 2, 6, estimator="slq"),
        "eigenpairs": lambda: hs.eigenpairs(hessian, 2),
        "solve": lambda: hs.solve(hessian, v, damping=1.0),
        "product": lambda: [hessian @ v for _ in range(5)],
        "shifted": lambda: [hs.Shifted(hessian, 0.5) @ v for _ in range(5)],
        "gradients": lambda: [ev.gradient() for _ in range(5)],
        "losses": lambda: [ev.loss() for _ in range(5)],
        "surface": lambda: hs.surface(
            ev, hs.directions.random(ev, seed=0), (4, 4), plan=hs.PointPlan(chunk=2)
        ),
        "check": lambda: [setattr(ev.verification, "on_samples", False), hs.Hessian(ev)],
    }
    results = {}
    for name, case in cases.items():
        calls = 0 if name == "check" else 8  # 3 a product, loss or gradient
        results[name] = heard(case, ev, ERRORS["cuda"], calls, world)
    for kind, error in ERRORS.items():
        results[f"product, {kind}"] = heard(cases["product"], ev, error, 8, world)
    for calls in (0, 2, 5):  # in search of the layers, in their statistics, in the loss
        case = heard(lambda: moving.loss(theta), moving, ERRORS["cuda"], calls, world)
        results[f"recalibrate, {calls}"] = case
    building = lambda: agreement.together(world, lambda: 1 / (world.size - 1 - world.rank))  # noqa: E731
    results["together"] = heard(building, ev, None, 0, world)
    results["usable"] = world.gather_objects(torch.equal(hessian @ v, expected))
    if world.rank == 0:
        (Path(sys.argv[1]) / "failures.json").write_text(json.dumps(results))
    world.barrier()
    hs.distributed.finish()


if __name__ == "__main__":
    main()
