"""Run by test_derivative_checks_on_ranks.py under torchrun: wrong derivatives on one rank.

python derivative_checks_worker.py FOLDER
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum.operators.run_check import check_on_all_data


class Net(nn.Module):
    """Detaches samples whose first entry is positive, and takes a norm where the second one is."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6, dtype=dtype), nn.Linear(6, 3, dtype=dtype)
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))
        self.one_sided = nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        h = torch.where(x[:, :1] > 0, h.detach(), h)
        d = torch.where(x[:, 1:2] > 0, 0 * h, h + 2)
        last = torch.where(x[:, 2:3] > 0, self.one_sided, torch.zeros_like(self.one_sided))
        return self.b(h * torch.linalg.norm(d, dim=1, keepdim=True) ** 2 + last)


def data(count, **positive):
    x = -torch.randn(count, 4, generator=torch.Generator().manual_seed(0)).double().abs()
    for name, index in positive.items():
        x[index, "abc".index(name)] = 5.0
    return x, torch.arange(count) % 3


def heard(action):
    try:
        return action()
    except hs.InputError as error:
        return str(error)


def main():
    world = hs.distributed.start("cpu", timeout=timedelta(seconds=60))

    def evaluator(pair, model=None, **options):
        return hs.Evaluator(model or Net(), nn.CrossEntropyLoss(), pair, world=world, **options)

    def on_all_data(pair, **options):
        ev = evaluator(pair, **options)
        operator = hs.Hessian(ev)
        check_on_all_data(operator)
        return [
            list(ev.verification.without_gradient),
            ev.verification.unverified,
            ev.counts.checks,
        ]

    last = 600 * world.size - 1
    count = last + 1
    cases = {
        "right": lambda: on_all_data(data(count, c=last)),
        "uneven": lambda: on_all_data(data(7, c=6), batch_size=2),
        "empty": lambda: on_all_data(data(2, c=0)),
        "detached": lambda: on_all_data(data(count, a=last)),
        "not finite": lambda: on_all_data(data(count, b=last)),
        "samples": lambda: evaluator(
            data(4 * world.size, a=list(range(4 * world.size - 4, 4 * world.size)))
        ),
    }
    found = {name: world.gather_objects(heard(action)) for name, action in cases.items()}
    if world.rank == 0:
        (Path(sys.argv[1]) / "found.json").write_text(json.dumps(found))
    hs.distributed.finish()


if __name__ == "__main__":
    main()
