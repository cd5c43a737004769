"""Run by test_collectives.py under torchrun: what each step of a run sends.

python collectives_worker.py FOLDER
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import torch
import torch.distributed as dist
from prescribed_spectra import with_spectrum
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.algorithms import eigenpairs as eigensolver
from hessian_spectrum.commands import runner
from hessian_spectrum.commands.eigenpairs import Eigenpairs
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config import EigenpairsConfig
from hessian_spectrum.distributed import world as distributed
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.krylov import block_lanczos, lanczos
from hessian_spectrum.loss.problem import Problem

B, STEPS = 3, 6


def network(tensors):
    """A network of that many parameters' tensors; small, so that the rest of a step is seen."""
    layers = [nn.Linear(6, 6) for _ in range(tensors // 2 - 1)]
    body = [module for layer in layers for module in (layer, nn.Tanh())]
    return nn.Sequential(*body, nn.Linear(6, 5)).double()


def problem(tensors):
    torch.manual_seed(0)
    x, y = torch.randn(10, 6, dtype=torch.float64), torch.arange(10) % 5
    data = {"loss_fn": F.cross_entropy, "data": (x, y), "batch_size": 3}
    return {"model": network(tensors), **data}


def hessian(tensors, world):
    ev = hs.Evaluator(**problem(tensors), world=world)
    assert len(ev.layout.names) == tensors
    return hs.Hessian(ev)


class Counted:
    """Bytes of each collective that torch.distributed is asked for, by its kind."""

    def __init__(self):
        self.sent = defaultdict(list)
        gather, scatter, reduce = (
            distributed._all_gather,
            distributed._reduce_scatter,
            dist.all_reduce,
        )
        distributed._all_gather = self._noting("all_gather", gather, 0)
        distributed._reduce_scatter = self._noting("reduce_scatter", scatter, 1)
        dist.all_reduce = self._noting("all_reduce", reduce, 0)
        others = ("all_gather_object", "broadcast", "barrier", "all_to_all", "gather", "send")
        for name in (*others, "broadcast_object_list"):
            setattr(dist, name, self._noting("other", getattr(dist, name), None))

    def _noting(self, kind, collective, argument):
        def call(*args, **kwargs):
            tensor = None if argument is None else args[argument]
            self.sent[kind].append(0 if tensor is None else tensor.numel() * tensor.itemsize)
            return collective(*args, **kwargs)

        return call

    def taken(self):
        sent = dict(self.sent)
        self.sent.clear()
        return sent


def steps(operator, module, counted, flags, probes=B, num_steps=STEPS):
    """For each step: what it sent, and how long its basis was before it."""
    rows = gaussian_probes(operator.layout, range(probes), 0, operator.dtype)
    state, found = module.start(operator, rows, num_steps), []
    counted.taken()
    while state.num_steps < num_steps and not state.is_finished:
        before = state.num_vectors
        state = state.step(operator, flags)
        found.append({"sent": counted.taken(), "before": before})
    return found, state


def eigenpair_steps(words, folder, world, counted):
    """For each step of a run of the command: all that was sent from its beginning to the next."""
    found, advance = [], eigensolver.advance

    def noted(operator, space, goal, flags):
        if found:
            found[-1]["sent"] = counted.taken()
        counted.taken()
        after, pairs = advance(operator, space, goal, flags)
        same = pairs is None and after.restarts == space.restarts and after.starts == space.starts
        before = {"before": space.order + space.width, "width": space.width}
        found.append({**before, "ordinary": same, "n": operator.n})
        return after, pairs

    eigensolver.advance = noted
    config = EigenpairsConfig(**words, out=folder / "pairs.h5", checkpoint_minutes=1000.0)
    runner.run(Eigenpairs, config, Problem(**problem(2)), world, StopRequest())
    eigensolver.advance = advance
    found[-1]["sent"] = counted.taken()
    return found


def main():
    world = hs.distributed.start("cpu")
    counted = Counted()
    results = {"world": world.size}
    for tensors in (2, 200):
        operator = hessian(tensors, world)
        for name, module in (("block", block_lanczos), ("slq", lanczos)):
            flags = distributed.Flags(lambda: world.rank == 1, lambda: False)
            found, state = steps(operator, module, counted, flags)
            held = world.gather_objects(state.basis.numel() * state.basis.itemsize)
            results[f"{name}, {tensors}"] = {
                "n": operator.n,
                "steps": found,
                "heard": flags.heard,
                "basis": held,
            }
    spectrum = torch.tensor([0.0] * 20 + [1.0, 2.0, 2.0, 2.0])
    exhausted, state = steps(
        hs.Dense(with_spectrum(spectrum), world), block_lanczos, counted, None, 3, 24
    )
    results["exhausted"] = {"steps": exhausted, "sizes": state.sizes}
    words = {"k": 2, "tol": 1e-8, "hvp": "reverse", "basis_size": 14}
    results["eigenpairs"] = eigenpair_steps(words, Path(sys.argv[1]), world, counted)
    if world.rank == 0:
        (Path(sys.argv[1]) / "collectives.json").write_text(json.dumps(results))
    world.barrier()
    hs.distributed.finish()


if __name__ == "__main__":
    main()
