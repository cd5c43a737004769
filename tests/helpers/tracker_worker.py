"""A training with a tracker, alone or on ranks: tracker_worker.py OUT [STOP_AT [CHECKPOINT]]."""

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hessian_spectrum as hs


def main(out, stop_at=0, checkpoint=None):
    """Train for 12 steps.

    Args:
        stop_at: rank 0 is killed after it has recorded this step; 0: never.
        checkpoint: written after steps 4 and 8, and read first where it exists.
    """
    world = hs.distributed.start("cpu", timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(48, 4, dtype=torch.float64)
    y = (x[:, :3] + 0.5 * x[:, 1:]).argmax(1)
    loss_fn = nn.CrossEntropyLoss()
    trained = DistributedDataParallel(model) if world.size > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    evaluator = hs.Evaluator(trained, loss_fn, (x[:37], y[:37]), batch_size=10, world=world)

    def log(found, step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    options = {"every": 5, "at": (1,), "max_overhead": 1e9, "tol": 1e-9, "largest": 2, "log": log}
    parts = {"model": model, "optimizer": optimizer}
    with hs.Tracker(evaluator, out, density_every=10, num_products=20, **options) as tracker:
        parts["tracker"] = tracker
        first = 1
        if checkpoint is not None and Path(checkpoint).exists():
            saved = torch.load(checkpoint, weights_only=True)
            first = saved.pop("step") + 1
            for name, state in saved.items():
                parts[name].load_state_dict(state)
        for step in range(first, 13):
            chosen = torch.randint(48, (12,), generator=torch.Generator().manual_seed(step))
            own = chosen[world.rank :: world.size]  # equal shares: DDP averages their gradients
            optimizer.zero_grad()
            loss_fn(trained(x[own]), y[own]).backward()
            tracker.before_step(step, optimizer)
            optimizer.step()
            tracker.after_step(step)
            if checkpoint is not None and step in (4, 8):
                state = {name: part.state_dict() for name, part in parts.items()}
                if world.rank == 0:
                    torch.save({"step": step, **state}, checkpoint)
    hs.distributed.finish(world)


if __name__ == "__main__":
    main(sys.argv[1], *(int(given) for given in sys.argv[2:3]), *sys.argv[3:])
