"""Points per second of a 51 x 51 loss surface: ours, loss-landscapes, and a plain loop.

On one network, in rounds of some grid points for each method, in float32 and without accuracy::

    python benchmarks/surface_peers.py --network mlp --data-root DATA --peers peers
    python benchmarks/surface_peers.py --network resnet20 --data-root DATA --side 3 --peers peers

- ours: consecutive points of a 51 x 51 surface along two filter-normalized directions, with the
  plan for the whole surface. A round begins at the start of a chunk, as in a real run. The time of
  planning is reported separately.
- loss-landscapes (``pip install --no-deps --target peers loss-landscapes``): ``random_plane`` with
  filter normalization and steps = side. For the perceptron all the data are one batch, as in its
  documentation. For the ResNet, whose activations of 2,048 images with their graph take many GiB,
  its metric uses minibatches without a graph, which is also faster, and directions are not
  normalized, since its filter normalization divides by zero there.
- plain loop: as in the code of Li et al. (2018), for each point weights + a d0 + b d1 are set in
  the model, and the loss is summed over a DataLoader (batches of 128, no graph). Its data set is
  in memory as tensors, so that no image is decoded or transformed.
- convolutions alone (for a network that has them): the time that torch takes for them, with the
  plan's minibatches and memory order. No method that convolves the images of each point with torch
  can be faster.

With one thread, seconds are processor time, since other programs may use the same cores; with more
threads they are wall-clock time. A ratio compares a method with ours in the same round. Losses of
ours and of the plain loop at the same points must agree.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hessian_spectrum as hs
from benchmarks.suite import peers
from hessian_spectrum.landscape import directions, point_planner
from hessian_spectrum.landscape.direction_grid import grid_task
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.point_evaluation import evaluate
from hessian_spectrum.landscape.point_passes import PointPlan
from hessian_spectrum.zoo import build_model, load_dataset

SURFACE = 51  # points along each direction of the surface that is planned
TOLERANCE = 1e-4  # of losses, relative


@dataclass(frozen=True, kw_only=True)
class Config:
    network: str = "mlp"
    """mlp (784-20-10, the training set of MNIST) or resnet20 (2,048 CIFAR-10 images)."""
    data_root: Path = Path("../shared/data")
    side: int = 11
    """A round evaluates side x side points with each method."""
    rounds: int = 6
    threads: int = 1
    samples: int | None = None
    peers: Path | None = None
    """Folder of loss-landscapes, filled by ``pip install --no-deps --target``."""


@dataclass(frozen=True)
class Problem:
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss_fn: nn.Module
    evaluator: hs.Evaluator
    plane: directions.Directions


Method = Callable[[int], np.ndarray | None]  # round -> losses of side^2 points, if comparable


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    peers.find(config.peers)
    problem = load(config)
    task = grid_task(problem.evaluator, problem.plane, SURFACE)
    # Processor time for one thread, since other programs may use the same cores.
    now = time.process_time if config.threads == 1 else time.perf_counter
    clock = now()
    plan, _ = point_planner.plan(problem.evaluator, task.points)
    planning = now() - clock
    print(plan, file=sys.stderr)

    count = config.side**2
    stride = plan.chunk * -(-count // plan.chunk)
    rounds = [range(i * stride, i * stride + count) for i in range(config.rounds)]
    methods = {
        "ours": _ours(problem, task.points, plan, rounds),
        "plain loop": _plain_loop(problem, task.points, rounds),
        "loss-landscapes": _package(problem, config),
    }
    if any(isinstance(module, nn.Conv2d) for module in problem.model.modules()):
        methods["convolutions alone"] = _convolutions(problem, plan, count)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(config.rounds):
        losses = {}
        for name, method in methods.items():
            clock = now()
            losses[name] = method(turn)
            seconds[name].append(now() - clock)
            print(f"{turn}  {name:16s} {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
        error = np.abs(losses["ours"] / losses["plain loop"] - 1).max()
        if not error < TOLERANCE:
            raise RuntimeError(f"ours and the plain loop differ by {error:.1e}")
    print("\n".join(report(config, problem, plan, planning, seconds)))


def load(config: Config) -> Problem:
    torch.manual_seed(0)
    if config.network == "mlp":
        data = load_dataset("mnist", data_root=config.data_root, limit=config.samples)
        model = build_model("mlp-784-20-10", activation="tanh")
    elif config.network == "resnet20":
        limit = config.samples or 2048
        arrays = config.data_root / "cifar10_jpeg.npz"  # the images after JPEG
        name, root = ("arrays", arrays) if arrays.is_file() else ("cifar10", config.data_root)
        data = load_dataset(name, data_root=root, limit=limit)
        model = build_model("resnet20", input_shape=(3, 32, 32))
    else:
        raise SystemExit(f"network {config.network!r}: expected mlp or resnet20")
    inputs, targets = data.tensors
    _settle(model, inputs[:256])
    loss_fn = nn.CrossEntropyLoss()
    evaluator = hs.Evaluator(model, loss_fn, (inputs, targets))
    plane = directions.random(evaluator, seed=0)
    return Problem(model.eval(), inputs, targets, loss_fn, evaluator, plane)


def _settle(model: nn.Module, inputs: Tensor) -> None:
    """Set running statistics from data: else outputs overflow far from the parameters."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(inputs)


# -- methods ---------------------------------------------------------------------------------


def _ours(problem: Problem, points: Points, plan: PointPlan, rounds: list[range]) -> Method:
    evaluate(problem.evaluator, points, 0, 1, plan=plan, quantities=("loss",))  # imports, caches

    def run(turn: int) -> np.ndarray:
        ends = rounds[turn].start, rounds[turn].stop
        return evaluate(problem.evaluator, points, *ends, plan=plan, quantities=("loss",))["loss"]

    return run


def _plain_loop(problem: Problem, points: Points, rounds: list[range]) -> Method:
    """The loop of plot_surface.py and evaluation.py in github.com/tomgoldstein/loss-landscape."""
    model = copy.deepcopy(problem.model).eval()
    weights = [p.detach().clone() for p in model.parameters()]
    sizes = [p.numel() for p in weights]
    first, second = (
        [part.view_as(w) for part, w in zip(v.split(sizes), weights)] for v in problem.plane.vectors
    )
    loader = DataLoader(TensorDataset(problem.inputs, problem.targets), batch_size=128)

    def loss() -> float:
        total = 0.0
        with torch.no_grad():
            for inputs, targets in loader:
                total += problem.loss_fn(model(inputs), targets).item() * len(targets)
        return total / len(problem.targets)

    def run(turn: int) -> np.ndarray:
        found = []
        for a, b in points.weights[rounds[turn], 1:]:
            for p, w, d, e in zip(model.parameters(), weights, first, second):
                p.data = w + d * a + e * b
            found.append(loss())
        return np.array(found)

    return run


def _convolutions(problem: Problem, plan: PointPlan, count: int) -> Method:
    order = torch.channels_last if plan.channels_last else torch.contiguous_format
    size = plan.batch_size or len(problem.inputs)
    calls: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda m, given: calls.append((m, given[0].clone())))
        for module in problem.model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        problem.model(problem.inputs[:size].contiguous(memory_format=order))
    for hook in hooks:
        hook.remove()

    def run(turn: int) -> None:
        with torch.no_grad():
            for _ in range(count * len(problem.inputs) // size):
                for module, x in calls:
                    module(x)

    return run


def _package(problem: Problem, config: Config) -> Method:
    import loss_landscapes
    from loss_landscapes import metrics

    class InMinibatches(metrics.Loss):
        def __call__(self, model_wrapper) -> float:
            total = 0.0
            with torch.no_grad():
                for x, y in zip(self.inputs.split(128), self.target.split(128)):
                    total += self.loss_fn(model_wrapper.forward(x), y).item() * len(y)
            return total / len(self.target)

    is_mlp = config.network == "mlp"
    kind = metrics.Loss if is_mlp else InMinibatches
    metric = kind(problem.loss_fn, problem.inputs, problem.targets)
    model = copy.deepcopy(problem.model).eval()

    def run(turn: int) -> None:
        torch.manual_seed(turn)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss_landscapes.random_plane(
                model,
                metric,
                steps=config.side,
                normalization="filter" if is_mlp else None,
                deepcopy_model=True,
            )

    return run


# -- the report ------------------------------------------------------------------------------


def report(
    config: Config,
    problem: Problem,
    plan: PointPlan,
    planning: float,
    seconds: dict[str, list[float]],
) -> list[str]:
    count, total = config.side**2, config.side**2 * config.rounds
    ours = np.array(seconds["ours"])
    lines = [
        f"{config.network}: n = {problem.evaluator.n:,}, {len(problem.inputs):,} samples, float32, "
        f"{_threads(config)}; {total} points in {config.rounds} rounds, median [min, max]; "
        f"torch {torch.__version__}",
        f"{plan}, planned in {planning:.1f} s",
        "",
        "| method | points per second | times ours |",
        "|---|---|---|",
    ]
    for name, taken in seconds.items():
        rate, ratio = count / np.array(taken), np.array(taken) / ours
        lines.append(f"| {name} | {_cell(rate, '.3g')} | {_cell(ratio, '.2f')} |")
    with_planning = planning / SURFACE**2 + np.median(ours) / count
    lines.append("")
    lines.append(
        f"ours with planning, spread over 51 x 51 points: {1 / with_planning:.3g} a second"
    )
    return lines


def _threads(config: Config) -> str:
    return "1 thread, processor time" if config.threads == 1 else f"{config.threads} threads"


def _cell(values: np.ndarray, form: str) -> str:
    return f"{np.median(values):{form}} [{values.min():{form}}, {values.max():{form}}]"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
