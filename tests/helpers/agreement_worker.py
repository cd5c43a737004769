"""Run by test_agreement.py under torchrun: ranks that were given different input.

python agreement_worker.py FOLDER
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch.distributed import all_gather_object
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import hessian_spectrum as hs


def network(activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), activation(), nn.Linear(5, 3)).double()


def tensors(count=25, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 3


def evaluator(data=None, model=None, loss_fn=None, **options):
    options = {"batch_size": 4, **options}
    data = tensors() if data is None else data
    return hs.Evaluator(model or network(), loss_fn or nn.CrossEntropyLoss(), data, **options)


class Items(Dataset):
    """Not in memory, as far as anyone knows."""

    def __init__(self, *pair):
        self.pair = pair

    def __len__(self):
        return len(self.pair[0])

    def __getitem__(self, i):
        return self.pair[0][i], self.pair[1][i]


class Stream(IterableDataset):
    def __init__(self, *pair):
        self.pair = pair

    def __iter__(self):
        return zip(*self.pair)


def different(world):
    """name -> an action in which the last rank is given something else."""
    last = world.rank == world.size - 1
    ev = evaluator()
    hessian, n = hs.Hessian(ev), ev.n
    one_label = tensors()
    one_label[1][-1] += last  # of a sample that only the last rank evaluates
    split = torch.randperm(25, generator=torch.Generator().manual_seed(int(last))).tolist()[:20]
    moved = ev.theta + 1e-3 * last
    v = torch.ones(n, dtype=torch.float64) + 1e-9 * last
    pair = hs.directions.random(ev, seed=int(last))
    units = torch.eye(n, dtype=torch.float64)
    return {
        "data": lambda: evaluator(tensors(seed=1 + last)),
        "one label": lambda: evaluator(one_label),
        "number of samples": lambda: evaluator(tensors(25 - last)),
        "split": lambda: evaluator(Subset(TensorDataset(*tensors()), split)),
        "split of items": lambda: evaluator(Subset(Items(*tensors()), split)),
        "items": lambda: evaluator(Items(*tensors(seed=1 + last))),
        "stream": lambda: evaluator(Stream(*tensors(seed=1 + last))),
        "loader": lambda: evaluator(DataLoader(TensorDataset(*tensors()), 4 + last)),
        "kind of data": lambda: evaluator(Items(*tensors()) if last else TensorDataset(*tensors())),
        "weight decay": lambda: evaluator(weight_decay=0.1 + 0.1 * last),
        "weight decay, unusable": lambda: evaluator(weight_decay=-1.0 if last else 0.1),
        "parameters": lambda: evaluator(parameters=["0.*" if last else "3.*"]),
        "parameters, unusable": lambda: evaluator(parameters=["no*"] if last else None),
        "batch norm": lambda: evaluator(batch_norm="train" if last else "eval"),
        "reduction": lambda: evaluator(
            loss_fn=nn.CrossEntropyLoss(reduction="sum" if last else "mean"),
            reduction="sum" if last else "mean",
        ),
        "smoothing": lambda: evaluator(loss_fn=nn.CrossEntropyLoss(label_smoothing=0.1 * last)),
        "class weights": lambda: evaluator(
            loss_fn=nn.CrossEntropyLoss(weight=torch.ones(3).double() * (1 + last))
        ),
        "activation": lambda: evaluator(model=network(nn.ReLU if last else nn.Tanh)),
        "local": lambda: evaluator(data_is_local=last),
        "theta": lambda: hs.Hessian(ev, moved),
        "theta of one": lambda: hs.Hessian(ev, moved) if last else hs.Hessian(ev),
        "operator": lambda: (hs.GaussNewton if last else hs.Hessian)(ev),
        "plan": lambda: hs.Hessian(ev, plan=hs.ProductPlan("reverse") if last else None),
        "deflated": lambda: hs.Deflated(hessian, units[last : 1 + last]),
        "diagonal": lambda: hs.Preconditioned(hessian, v),
        "density, seed": lambda: hs.spectral_density(hessian, 2, 3, seed=int(last)),
        "density, probes": lambda: hs.spectral_density(hessian, 2 + last, 3),
        "density, unusable": lambda: hs.spectral_density(hessian, 2, -3 if last else 3),
        "densities": lambda: hs.spectral_densities(hessian, {"a": "0.*" if last else "3.*"}, 2, 3),
        "eigenpairs, seed": lambda: hs.eigenpairs(hessian, 2, seed=1 + last),
        "eigenpairs, k": lambda: hs.eigenpairs(hessian, 2 + last),
        "eigenpairs, start": lambda: hs.eigenpairs(hessian, 1, start=v[None]),
        "eigenpairs, vectors": lambda: hs.eigenpairs(hessian, 1, vectors=not last),
        "shift": lambda: hs.eigenpairs(hs.Shifted(hessian, 0.1 * (1 + last)), 1),
        "calls": lambda: hs.spectral_density(hessian, 2, 3) if last else hs.eigenpairs(hessian, 1),
        "near": lambda: hs.eigenpairs_near(hessian, 0.3 + 0.1 * last),
        "solve": lambda: hs.solve(hs.GaussNewton(ev), v, damping=1.0),
        "alignment": lambda: hs.alignment(ev, (4,), 2, seed=int(last), operator=hessian),
        "product": lambda: hessian @ torch.ones(n, 2 + last, dtype=torch.float64),
        "product, unusable": lambda: hessian @ torch.ones(n - last, dtype=torch.float64),
        "product, other call": lambda: (
            hs.solve(hs.GaussNewton(ev), v, damping=1.0) if last else hessian @ v
        ),
        "distances": lambda: hs.functional_distances(ev, dict(zip("abcdefg", units[: 3 + last]))),
        "functional path": lambda: hs.functional_path(ev, ev.theta, -ev.theta, 3 + last),
        "asymmetry": lambda: hs.asymmetry(ev, units[: 1 + last], [0.1]),
        "asymmetric": lambda: hs.find_asymmetric(ev, distance=[0.1, 0.2][: 1 + last], num_steps=1),
        "averaging": lambda: hs.averaging_bias(ev, units[: 4 + last], ev.theta, units[:1]),
        "surface": lambda: hs.surface(ev, pair, 3),
        "line": lambda: hs.interpolate(ev, ev.theta, -ev.theta, 3 + last),
    }


def same(world):
    """name -> a number that all ranks may compute: what each is given may differ here."""
    last, (x, y) = world.rank == world.size - 1, tensors()
    share = slice(25 * world.rank // world.size, 25 * (world.rank + 1) // world.size)
    mine = x[share], y[share]
    folder = Path(sys.argv[1]) / str(world.rank)
    folder.mkdir()
    ev = evaluator()
    return {
        "whole": lambda: ev.loss().item(),
        "shares": lambda: evaluator(mine, data_is_local=True).loss().item(),
        "items": lambda: evaluator(Items(x, y)).loss().item(),
        "shuffled": lambda: (
            evaluator(DataLoader(TensorDataset(x, y), 4, shuffle=bool(last))).loss().item()
        ),
        "fewer samples than ranks": lambda: evaluator((x[:1], y[:1])).loss().item(),
        "own folders": lambda: hs.spectral_density(hs.Hessian(ev), 2, 3, basis=folder).trace,
        "followed by one": lambda: (
            hs.spectral_density(
                hs.Hessian(ev), 2, 3, on_step=(lambda state: None) if last else None
            ).trace
        ),
    }


def wrapped(world):
    """Losses and eigenvalues of networks whose forward communicates (BatchNorm's buffers)."""
    net = network()
    ddp = nn.parallel.DistributedDataParallel
    models = {
        "bare": net,
        "wrapped": ddp(net),
        "child": nn.Sequential(ddp(net[:3]), net[3]),
        "compiled": ddp(torch.compile(net, backend="eager")),
    }
    return {
        name: hs.eigenpairs(hs.Hessian(evaluator(model=model)), k=1).values.tolist()
        for name, model in models.items()
    }


def told(action):
    clock = time.monotonic()
    try:
        action()
        found = None
    except Exception as error:
        found = [type(error).__name__, str(error)]
    return [found, time.monotonic() - clock]


def exchanges(action):
    """How many exchanges of objects the action makes."""
    with patch.object(torch.distributed, "all_gather_object", wraps=all_gather_object) as counted:
        action()
    return counted.call_count


def main():
    world = hs.distributed.start("cpu", timeout=timedelta(seconds=60))
    found = {
        "different": {
            name: world.gather_objects(told(action)) for name, action in different(world).items()
        },
        "same": {name: world.gather_objects(action()) for name, action in same(world).items()},
        "wrapped": world.gather_objects(wrapped(world)),
    }
    dense = hs.Dense(torch.eye(9, dtype=torch.float64), world)
    calls = {
        "Evaluator": evaluator,
        "Deflated": lambda: hs.Deflated(hs.Dense(torch.eye(9), world), torch.eye(1, 9)),
        "density": lambda: hs.spectral_density(dense, 2, 3),
    }
    found["exchanges"] = {name: exchanges(call) for name, call in calls.items()}
    if world.rank == 0:
        (Path(sys.argv[1]) / "agreement.json").write_text(json.dumps(found))
    world.barrier()
    hs.distributed.finish()


if __name__ == "__main__":
    main()
