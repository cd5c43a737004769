"""A problem for test_faults.py, kills.py: slow enough to be hit; on demand NaN, or no memory."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
RANK = int(next((os.environ[name] for name in RANKS if name in os.environ), 0))


class Slow(nn.Sequential):
    """After ``plan.quick`` passes each takes ``plan.pause`` seconds more; after ``plan.good`` it
    returns NaN, or runs out of memory.

    Counted in an object: plain attributes of a module are put back after each evaluation.
    """

    def __init__(self, *layers):
        super().__init__(*layers)
        self.plan = SimpleNamespace(pause=0.0, quick=0, good=None, out_of_memory=False)

    def forward(self, x):
        plan = self.plan
        plan.quick -= 1
        if plan.quick < 0:
            time.sleep(plan.pause)
        if plan.good is not None:
            plan.good -= 1
            if plan.good < 0 and plan.out_of_memory:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if plan.good < 0:
                return super().forward(x) * torch.nan
        return super().forward(x)


def make(pause=None, quick=0, pids="", nan_on=None, oom_on=None, good=0):
    """Says its process's number in the folder ``pids``, by rank."""
    if pids:
        (Path(pids) / f"{RANK}.pid").write_text(str(os.getpid()))
    torch.manual_seed(0)
    model = Slow(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    # From the environment where a resumed run, which must be given the same words, is to be quick.
    plan = model.plan
    plan.pause = float(os.environ.get("PAUSE", 0.0)) if pause is None else pause
    plan.quick = quick
    if RANK in (nan_on, oom_on):
        plan.good, plan.out_of_memory = good, oom_on == RANK
    x, y = torch.randn(48, 10, dtype=torch.float64), torch.arange(48) % 5
    return model, nn.CrossEntropyLoss(), (x, y)
