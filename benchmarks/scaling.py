"""Strong and weak scaling on the available ranks, a breakdown of the time, and a cost model.

Each number of ranks runs under torchrun in its own processes. The time of a step is split into
products, the two large exchanges, the small reductions, orthogonalization and writing. The
parameters of the cost model (step_model.py) are measured separately, its steps are compared with
the measured ones, and it is then extrapolated to 1,024 GPUs::

    python benchmarks/scaling.py --ranks 1 2 --out scaling.png
    python benchmarks/scaling.py --replicated          # sharded against a basis on every rank
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import step_model
from step_model import Cost, Machine, Problem

KINDS = ("product", "exchange", "reductions", "orthogonalization", "writing")


# -- one rank ----------------------------------------------------------------------------------


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
    """Runs under torchrun: measures steps; the first rank writes the result."""
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
        Path(args.result).write_text(json.dumps(result))
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
        Path(args.result).write_text(json.dumps(result))
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


# -- all of them --------------------------------------------------------------------------------


def launched(args, ranks: int, *options: str) -> dict:
    """The result of the first rank of a job with that many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        sizes = ["samples", "width", "hidden", "block", "steps", "batch_size"]
        words = [w for s in sizes for w in (f"--{s.replace('_', '-')}", str(getattr(args, s)))]
        job = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        job += ["--nproc-per-node", str(ranks), __file__, "--result", str(result), *words, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(job, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        return json.loads(result.read_text())


def table(title: str, found: list[dict], model: list[Cost]) -> None:
    print(f"\n{title}: milliseconds a step, mean over the ranks; writing: of a save, by step\n")
    print("| ranks | step |", " | ".join(KINDS), "| model | basis, MB a rank |")
    print("|---|---|" + "---|" * (len(KINDS) + 2))
    for f, cost in zip(found, model):
        parts = " | ".join(f"{1e3 * f[kind]:.1f}" for kind in KINDS)
        model_text = f"{1e3 * cost.total:.1f}"
        size = f"{f['basis'] / 1e6:.1f}"
        print(f"| {f['ranks']} | {1e3 * f['step']:.1f} | {parts} | {model_text} | {size} |")


def compared(args, weak: bool) -> None:
    """Measured steps beside those of the model, whose parameters are measured separately."""
    options = ("--weak",) if weak else ()
    found = [launched(args, ranks, *options) for ranks in args.ranks]
    product = found[0]["product"] / args.block * found[0]["ranks"]
    costs = []
    for f in found:
        more = f["ranks"] if weak else 1
        problem = Problem(
            n=f["n"],
            product=product * more,
            samples=args.samples * more,
            block=args.block,
            steps=args.steps,
        )
        costs.append(step_model.step(problem, Machine(**f["machine"]), f["ranks"]))
    table("weak scaling" if weak else "strong scaling", found, costs)
    for f in found[1:]:
        machine = f["machine"]
        print(
            f"{f['ranks']} ranks: {1e6 * machine['latency']:.0f} us a small reduction, "
            f"{machine['bandwidth'] / 1e9:.2f} GB/s, {machine['flops'] / 1e9:.1f} Gflop/s"
        )


def figure(path: Path) -> None:
    """Seconds a step on 1 to 1,024 GPUs, by the model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = {
        "ResNet-50 on ImageNet": step_model.resnet50(),
        "transformer, 1e9 parameters, 1e7 tokens": step_model.transformer(),
    }
    drawn, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, (title, problem) in zip(axes, cases.items()):
        costs = step_model.extrapolated(problem)
        ranks = [count for count, _ in costs]
        axis.loglog(ranks, [cost.total for _, cost in costs], "k", lw=2, label="step")
        for kind in ("product", "exchange", "reductions", "orthogonalization"):
            axis.loglog(ranks, [getattr(c, kind) or float("nan") for _, c in costs], label=kind)
        axis.set(title=title, xlabel="GPUs", ylim=(1e-4, None))
        axis.grid(alpha=0.3)
        print(f"\n{title}: model, block of {problem.block}, {problem.steps} steps\n")
        print("| GPUs | s a step | of it products | run, minutes | basis, GB a rank |")
        print("|---|---|---|---|---|")
        for count, cost in costs:
            if count in (1, 8, 64, 256, 1024):
                minutes = cost.total * problem.steps / 60
                size = step_model.basis_bytes(problem, count) / 1e9
                share = cost.product / cost.total
                print(f"| {count} | {cost.total:.3g} | {share:.0%} | {minutes:.3g} | {size:.3g} |")
    axes[0].set_ylabel("seconds a step")
    axes[1].legend(fontsize=8)
    drawn.tight_layout()
    drawn.savefig(path, dpi=80)


def side_by_side(args) -> None:
    print(
        f"\n| basis on 2 ranks, median of {args.repeats} [min, max] | MB a rank "
        "| peak above the start, MB | ms a step |\n|---|---|---|---|"
    )
    forms = "sharded", "replicated"
    found = {form: [] for form in forms}
    for _ in range(args.repeats):  # interleaved, since other load on the machine changes
        for form in forms:
            found[form].append(launched(args, 2, "--replicate", form))
    for form, runs in found.items():
        peak, step = (
            _spread([f[k] * unit for f in runs]) for k, unit in (("peak", 1e-6), ("step", 1e3))
        )
        print(f"| {form} | {runs[0]['basis'] / 1e6:.1f} | {peak} | {step} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} [{min(values):.0f}, {max(values):.0f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--samples", type=int, default=4000, help="samples; for weak scaling, of each rank"
    )
    parser.add_argument("--width", type=int, default=784)
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--block", type=int, default=12)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("scaling.png"))
    parser.add_argument(
        "--replicated", action="store_true", help="compare only a sharded with a replicated basis"
    )
    parser.add_argument("--repeats", type=int, default=5, help="repeats of that comparison")
    parser.add_argument("--model-only", action="store_true", help="only the figure and its table")
    parser.add_argument("--weak", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--replicate", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.result:
        return worker(args)
    if not args.model_only:
        side_by_side(args)
        if not args.replicated:
            compared(args, weak=False)
            compared(args, weak=True)
    if not args.replicated:
        figure(args.out)


if __name__ == "__main__":
    main()
