"""Points per second of a 51 x 51 loss surface: ours, loss-landscapes, and a plain loop.

In rounds of some grid points for each method, in float32:

- ours: consecutive points of a 51 x 51 surface along two filter-normalized directions, with the
  plan for the whole surface. A round begins at the start of a chunk, as in a real run.
- loss-landscapes, where it is installed: ``random_plane`` with filter normalization and steps =
  side. For the perceptron all the data are one batch, as in its documentation. For the ResNet,
  whose activations of 2,048 images with their graph take many GiB, its metric uses minibatches
  without a graph, which is also faster, and directions are not normalized, since its filter
  normalization divides by zero there.
- plain loop: as in the code of Li et al. (2018), for each point weights + a d0 + b d1 are set in
  the model, and the loss is summed over a DataLoader (batches of 128, no graph). Its data set is
  in memory as tensors, so that no image is decoded or transformed.
- convolutions alone (for a network that has them): the time that torch takes for them, with the
  plan's minibatches and memory order. No method that convolves the images of each point with torch
  can be faster.

With one thread, times are of the processor, since other programs may use the same cores. A ratio
compares a method with ours in the same round. Losses of ours and of the plain loop at the same
points agree, which the test checks on the shipped digits.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study, peers
from benchmarks.suite.timing import Ratio, clock, seconds, spread
from hessian_spectrum.landscape import directions, point_planner
from hessian_spectrum.landscape.direction_grid import grid_task
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.point_evaluation import evaluate
from hessian_spectrum.landscape.point_passes import PointPlan
from hessian_spectrum.zoo import load_dataset, model_for

SURFACE = 51  # points along each direction of the surface that is planned
TOLERANCE = 1e-4  # of losses, relative
OURS, LOOP, PACKAGE, ALONE = "ours", "plain loop", "loss-landscapes", "convolutions alone"


@dataclass(frozen=True)
class Surface:
    """
    Args:
        data: "digits", "mnist" or "cifar10".
        samples: None: all.
        side: a round evaluates side x side points with each method.
        faster: the least number of our points in the time of one of the plain loop.
    """

    model: str
    data: str
    samples: int | None
    side: int
    rounds: int
    faster: float


MLP = Surface("mlp-784-20-10", "mnist", 9000, side=5, rounds=4, faster=5.0)
RESNET = Surface("resnet20", "cifar10", 512, side=2, rounds=3, faster=0.9)


@dataclass(frozen=True)
class Options:
    surfaces: tuple[Surface, ...] = (MLP, RESNET)
    threads: int = 1
    with_package: bool = True


@dataclass(frozen=True)
class Problem:
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss_fn: nn.Module
    evaluator: hs.Evaluator
    plane: directions.Directions


Method = Callable[[int], np.ndarray | None]  # round -> losses of side^2 points, if comparable


def load(context: Context, of: Surface) -> Problem:
    torch.manual_seed(0)
    root = None if of.data == "digits" else context.data(of.data)
    dataset = "arrays" if of.data == "cifar10" else of.data
    data = load_dataset(dataset, data_root=root, limit=of.samples)
    model = model_for(data, of.model, "tanh", 0)
    inputs, targets = data.tensors
    _settle(model, inputs[:256])
    loss_fn = nn.CrossEntropyLoss()
    evaluator = hs.Evaluator(model, loss_fn, (inputs, targets))
    plane = directions.random(evaluator, seed=0)
    return Problem(model.eval(), inputs, targets, loss_fn, evaluator, plane)


@dataclass(frozen=True)
class Times:
    seconds: dict[str, list[float]]  # by method, of each round
    difference: float  # of our losses from the plain loop's, relative, the largest
    planning: float  # seconds
    plan: PointPlan


def measured(context: Context, of: Surface, options: Options) -> Times:
    problem = load(context, of)
    task = grid_task(problem.evaluator, problem.plane, SURFACE)
    now, plans = clock(options.threads), []
    planning = seconds(
        lambda: plans.append(point_planner.plan(problem.evaluator, task.points)[0]), now
    )
    (plan,) = plans
    count = of.side**2
    stride = plan.chunk * -(-count // plan.chunk)
    rounds = [range(i * stride, i * stride + count) for i in range(of.rounds)]
    methods = {
        OURS: _ours(problem, task.points, plan, rounds),
        LOOP: _plain_loop(problem, task.points, rounds),
    }
    if options.with_package and peers.is_installed("loss_landscapes"):
        methods[PACKAGE] = _package(problem, of)
    if any(isinstance(module, nn.Conv2d) for module in problem.model.modules()):
        methods[ALONE] = _convolutions(problem, plan, count)
    found: dict[str, list[float]] = {name: [] for name in methods}
    difference = 0.0
    for turn in range(of.rounds):
        losses: dict[str, Any] = {}
        for name, method in methods.items():

            def action(name=name, method=method, turn=turn, losses=losses) -> None:
                losses[name] = method(turn)

            found[name].append(seconds(action, now))
        difference = max(difference, np.abs(losses[OURS] / losses[LOOP] - 1).max())
    return Times(found, difference, planning, plan)


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


def _package(problem: Problem, of: Surface) -> Method:
    import loss_landscapes
    from loss_landscapes import metrics

    class InMinibatches(metrics.Loss):
        def __call__(self, model_wrapper) -> float:
            total = 0.0
            with torch.no_grad():
                for x, y in zip(self.inputs.split(128), self.target.split(128)):
                    total += self.loss_fn(model_wrapper.forward(x), y).item() * len(y)
            return total / len(self.target)

    is_mlp = of.model != "resnet20"
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
                steps=of.side,
                normalization="filter" if is_mlp else None,
                deepcopy_model=True,
            )

    return run


# -- findings --------------------------------------------------------------------------------


def judged(context: Context, options: Options, of: Surface, found: Times) -> Iterator[Finding]:
    yield context.check(
        f"{of.model}: relative difference of losses from those of a plain loop, the largest",
        *(found.difference, 0.0, TOLERANCE),
        source="the same points",
        judged_from="test",
    )
    ratio = Ratio.of(found.seconds[LOOP], found.seconds[OURS])
    yield context.check(
        f"{of.model}: our points in the time of one of the plain loop",
        *(ratio.median, of.faster, np.inf),
        source="measured 2026-11-22: 37 (perceptron) and 1.17 (ResNet-20)",
        uncertainty=ratio.spread,
    )
    if options.with_package:
        claim = f"{of.model}: our points in the time of one of loss-landscapes"
        if PACKAGE in found.seconds:
            ratio = Ratio.of(found.seconds[PACKAGE], found.seconds[OURS])
            yield context.check(
                claim,
                *(ratio.median, 0.9, np.inf),
                source="measured 2026-11-22: 5.4 (perceptron) and 1.20 (ResNet-20)",
                uncertainty=ratio.spread,
            )
        else:
            yield peers.absent("loss_landscapes", claim)
    if ALONE in found.seconds:
        ratio = Ratio.of(found.seconds[ALONE], found.seconds[OURS])
        yield context.check(
            f"{of.model}: time of the convolutions alone over ours",
            *(ratio.median, 0.5, 1.1),
            source="measured 2026-11-22: 0.82",
            uncertainty=ratio.spread,
        )


def run(context: Context, options: Options) -> Outcome:
    torch.set_num_threads(options.threads)
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    notes = []
    for of in options.surfaces:
        found = measured(context, of, options)
        findings += judged(context, options, of, found)
        rate = of.side**2 / np.array(found.seconds[OURS])
        notes.append(
            f"{of.model}: ours {spread(rate)} points a second, planned in {found.planning:.2g} s "
            f"({found.plan})"
        )
        for name, column in found.seconds.items():
            values[f"{of.model}/{name}"] = column
    return Outcome(findings, values, notes="; ".join(notes))


STUDY = Study(
    title="How many points of a loss surface are evaluated each second?",
    source="loss-landscapes, and a loop as in the code of Li et al. 2018",
    run=run,
    scales={
        "test": Options((Surface("mlp-64-16-10", "digits", 200, 3, 1, 1.0),), with_package=False),
        "cpu": Options(),
        "gpu": Options(
            (
                Surface("mlp-784-20-10", "mnist", 9000, side=11, rounds=6, faster=5.0),
                Surface("resnet20", "cifar10", 2048, side=3, rounds=3, faster=0.9),
            )
        ),
    },
    group="speed",
    data=("mnist", "cifar10"),
)
