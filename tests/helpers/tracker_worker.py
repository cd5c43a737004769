"""A training with a tracker, alone or on ranks that share its data: tracker_worker.py OUT."""

import sys
from datetime import timedelta

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hessian_spectrum as hs


def main(out):
    world = hs.distributed.start("cpu", timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(48, 4, dtype=torch.float64)
    y = (x[:, :3] + 0.5 * x[:, 1:]).argmax(1)
    loss_fn = nn.CrossEntropyLoss()
    trained = DistributedDataParallel(model) if world.size > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    evaluator = hs.Evaluator(trained, loss_fn, (x[:37], y[:37]), batch_size=10, world=world)
    options = {"every": 5, "at": (1,), "max_overhead": 1e9, "tol": 1e-9, "largest": 2}
    with hs.Tracker(evaluator, out, density_every=10, num_products=20, **options) as tracker:
        for step in range(1, 13):
            chosen = torch.randint(48, (12,), generator=torch.Generator().manual_seed(step))
            own = chosen[world.rank :: world.size]  # equal shares: DDP averages their gradients
            optimizer.zero_grad()
            loss_fn(trained(x[own]), y[own]).backward()
            tracker.before_step(step, optimizer)
            optimizer.step()
            tracker.after_step(step)
    hs.distributed.finish(world)


if __name__ == "__main__":
    main(sys.argv[1])
