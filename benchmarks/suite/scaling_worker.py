"""One rank of the study ``scaling``: seconds of a block recurrence's step, by kind of work."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

KINDS = ("product", "exchange", "reductions", "orthogonalization", "writing")


class Clock:
    """Seconds by kind; time inside a nested kind is not counted twice."""

    def __init__(self):
        self.seconds, self._inside = defaultdict(float), []

    @contextmanager
    def timing(self, kind):
        before = time.perf_counter()
        self._inside.append(0.0)
        yield
        took = time.perf_counter() - before
        self.seconds[kind] += took - self._inside.pop()
        if self._inside:
            self._inside[-1] += took

    def wrap(self, kind, function):
        def timed(*args, **kwargs):
            with self.timing(kind):
                return function(*args, **kwargs)

        return timed


def worker(args) -> None:
    """Measures steps; the first rank writes the result."""
    import torch

    import hessian_spectrum as hs
    from hessian_spectrum.distributed import world as distributed
    from hessian_spectrum.distributed.random_vectors import gaussian_probes
    from hessian_spectrum.krylov import block_lanczos
    from hessian_spectrum.storage.krylov_state import RecurrenceStore

    torch.set_num_threads(1)
    world = hs.distributed.start("cpu")
    torch.manual_seed(0)
    samples = args.samples * (world.size if args.weak else 1)
    x, y = torch.randn(samples, args.width), torch.arange(samples) % 10
    hidden = torch.nn.Linear(args.width, args.hidden), torch.nn.Tanh()
    model = torch.nn.Sequential(*hidden, torch.nn.Linear(args.hidden, 10))
    ev = hs.Evaluator(
        model, torch.nn.CrossEntropyLoss(), (x, y), batch_size=args.batch_size, world=world
    )
    operator = hs.Hessian(ev, plan=hs.ProductPlan("linearize", keep=True))
    probes = gaussian_probes(operator.layout, range(args.block), 0, operator.dtype)
    operator.products(probes)  # builds the maps that are kept
    if args.replicate:
        return replicated(args, world, operator, probes)

    machine = measured_machine(world, operator.n, args.block)
    clock = Clock()
    World = type(world)
    World.sum = clock.wrap("reductions", World.sum)
    World.all_gather_rows = clock.wrap("exchange", World.all_gather_rows)
    World.reduce_scatter_rows = clock.wrap("exchange", World.reduce_scatter_rows)
    type(operator).products = clock.wrap("product", type(operator).products)
    space = block_lanczos.start(operator, probes, args.steps)
    clock.seconds.clear()
    distributed.World.barrier(world)
    with tempfile.TemporaryDirectory() as folder:
        place = world.gather_objects(folder)[0]
        store, before = RecurrenceStore(Path(place) / "state", world), time.perf_counter()
        for _ in range(args.steps):
            with clock.timing("orthogonalization"):
                space = space.step(operator)
        total = time.perf_counter() - before
        with clock.timing("writing"):
            store.save(space, operator.layout, {})
        world.barrier()
    each = {kind: clock.seconds[kind] / args.steps for kind in KINDS}
    found = world.gather_objects(each)
    mean = {kind: sum(f[kind] for f in found) / world.size for kind in KINDS}
    result = {
        "ranks": world.size,
        "step": total / args.steps,
        **mean,
        "n": operator.n,
        "machine": machine,
        "basis": max(world.gather_objects(space.basis.numel() * space.basis.itemsize)),
    }
    if world.rank == 0:
        args.result.write_text(json.dumps(result))
    hs.distributed.finish(world)


def measured_machine(world, n, b) -> dict:
    """Latency, bandwidth and flops of this machine's ranks, each measured separately."""
    import torch

    def seconds(action, repeats):
        action()
        world.barrier()
        before = time.perf_counter()
        for _ in range(repeats):
            action()
        return (time.perf_counter() - before) / repeats

    tiny, rows = torch.zeros(8, dtype=torch.float64), torch.zeros(b, -(-n // world.size))
    latency = seconds(lambda: world.sum(tiny), 100)
    large = seconds(lambda: world.all_gather_rows(rows), 10)
    sent = (world.size - 1) * rows.numel() * rows.itemsize
    basis, some = torch.randn(5 * b, rows.shape[1]), torch.randn(b, rows.shape[1])
    projections = seconds(lambda: some - (some @ basis.T) @ basis, 5)
    return {
        "latency": latency / max(1.0, math.log2(world.size)),
        "bandwidth": sent / max(large - latency, 1e-9) if world.size > 1 else float("inf"),
        "flops": 4 * 5 * b * b * rows.shape[1] / projections,
    }


def replicated(args, world, operator, probes) -> None:
    """The recurrence with a sharded basis, or with the whole basis on every rank."""
    from hessian_spectrum.distributed import world as distributed
    from hessian_spectrum.distributed.memory import PeakMemory

    recur = _sharded if args.replicate == "sharded" else _replicated
    world.barrier()
    start = time.perf_counter()
    with PeakMemory(world.device) as used:
        size = recur(args, world, operator, probes)
    seconds = (time.perf_counter() - start) / args.steps
    result = {"form": args.replicate, "step": seconds, "basis": size, "peak": used.peak}
    if world.rank == 0:
        args.result.write_text(json.dumps(result))
    distributed.finish(world)


def _sharded(args, world, operator, probes) -> int:
    from hessian_spectrum.krylov import block_lanczos

    space = block_lanczos.start(operator, probes, args.steps)
    for _ in range(args.steps):
        space = space.step(operator)
    return space.basis.numel() * space.basis.itemsize


def _replicated(args, world, operator, probes) -> int:
    import torch

    whole = operator.layout.gather(probes)
    rows = args.block * (args.steps + 1)
    basis = torch.zeros(rows, operator.n)
    basis[: args.block] = torch.linalg.qr(whole.T)[0].T
    for k in range(args.steps):
        held = basis[: (k + 1) * args.block]
        r = operator._local(held[-args.block :])
        world.sum(r)
        for _ in range(2):
            r = r - (r @ held.T) @ held
        basis[(k + 1) * args.block : (k + 2) * args.block] = torch.linalg.qr(r.T)[0].T
    return basis.numel() * basis.itemsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for size in ("samples", "width", "hidden", "block", "steps", "batch-size"):
        parser.add_argument(f"--{size}", type=int, required=True)
    parser.add_argument("--weak", action="store_true", help="samples are of each rank")
    parser.add_argument("--replicate", choices=("sharded", "replicated"))
    parser.add_argument("--result", type=Path, required=True)
    worker(parser.parse_args())


if __name__ == "__main__":
    main()
