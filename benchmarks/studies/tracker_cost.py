"""What a tracker costs beside a training, and how right its largest eigenvalue is.

Two trainings by momentum with the same steps, of ResNet-20 on CIFAR-10 pictures: one with records
at steps that a seed chooses, without a bound on the overhead, where lambda_max is compared with a
converged one (of the same parameters, buffers and probe set, to 1e-4); one with a record due every
tenth step, within ``max_overhead``. The overhead is what ``before_step`` and ``after_step`` take of
the whole loop, by a clock outside of them; a record that has begun may exceed it.

The test has a perceptron and the shipped digits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from hessian_spectrum import zoo

SOURCE = "hs.Tracker"
NEVER = 10**9


@dataclass(frozen=True)
class Options:
    """
    Args:
        model: "resnet20" on CIFAR-10 pictures, or a perceptron on the shipped digits.
        steps: of each training.
        records: number of steps at which lambda_max is compared.
        batch: samples of a step.
        probe: samples of the probe set.
        every: steps between records that are due in the second training.
        max_overhead: of that training, as a share of its time.
    """

    model: str = "resnet20"
    lr: float = 0.1
    steps: int = 300
    records: int = 10
    batch: int = 64
    probe: int = 32
    every: int = 10
    max_overhead: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Training:
    """The network of a study, its data and its tracker's evaluator."""

    net: nn.Module
    x: Tensor
    y: Tensor
    probe: int

    @staticmethod
    def of(context: Context, options: Options) -> Training:
        if options.model == "resnet20":
            data = zoo.load_dataset("arrays", data_root=context.data("cifar10"))
        else:
            data = zoo.load_dataset("digits")
        net = zoo.model_for(data, options.model, "relu", 0)
        return Training(net.train(), *data.tensors, options.probe)

    def evaluator(self) -> hs.Evaluator:
        some = self.x[: self.probe], self.y[: self.probe]
        return hs.Evaluator(self.net, nn.CrossEntropyLoss(), some)


def train(
    context: Context, options: Options, path: Path, chosen: list[int], **tracked: Any
) -> dict[str, Any]:
    """Seconds of the loop, seconds of it in the tracker, and lambda_max at the chosen steps."""
    training = Training.of(context, options)
    net, x, y = training.net, training.x, training.y
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=options.lr, momentum=0.9)
    evaluator = training.evaluator()
    order = torch.Generator().manual_seed(0)
    states: list[tuple[Tensor, list[Tensor]]] = []
    on_records = 0.0
    with hs.Tracker(evaluator, path, overwrite=True, **tracked) as tracker:
        began = time.perf_counter()
        for step in range(1, options.steps + 1):
            index = torch.randint(len(y), (options.batch,), generator=order)
            optimizer.zero_grad()
            loss = loss_fn(net(x[index]), y[index])
            loss.backward()
            if step in chosen:  # the statistics of BatchNorm, too
                states.append((evaluator.theta, [b.clone() for b in net.buffers()]))
            entered = time.perf_counter()
            tracker.before_step(step, optimizer)
            on_records += time.perf_counter() - entered
            optimizer.step()
            entered = time.perf_counter()
            tracker.after_step(step, loss)
            on_records += time.perf_counter() - entered
        seconds = time.perf_counter() - began
    converged = [lambda_max(training, *state) for state in states]
    with hs.open(path) as run:
        track = run["track"]
    return {
        "seconds": seconds,
        "on_records": on_records,
        "converged": converged,
        "steps": track.steps,
        "skipped": track.skipped,
        "lambda_max": track["lambda_max"],
        "products": track["products"],
        "seconds_a_record": track["seconds"],
    }


def lambda_max(training: Training, theta: Tensor, buffers: list[Tensor]) -> float:
    """The largest eigenvalue at these parameters, to 1e-4."""
    for buffer, value in zip(training.net.buffers(), buffers):
        buffer.copy_(value)
    operator = hs.Hessian(training.evaluator(), theta)
    return float(hs.eigenpairs(operator, 1, which="largest", tol=1e-4).values[-1])


def judged(
    context: Context,
    options: Options,
    chosen: list[int],
    exact: Mapping[str, np.ndarray],
    bounded: Mapping[str, np.ndarray],
) -> list[Finding]:
    errors = np.abs(exact["lambda_max"] / exact["converged"] - 1)
    share = bounded["on_records"] / bounded["seconds"]
    longest = bounded["seconds_a_record"].max() / bounded["seconds"]
    return [
        context.check(
            f"largest relative error of lambda_max at {len(chosen)} steps",
            *(errors.max(), 0.0, 0.01),
            source=SOURCE,
            judged_from="test",
        ),
        context.check(
            "records at other steps than the chosen ones",
            *(len({*exact["steps"].tolist()} ^ {*chosen}), 0, 0),
            source=SOURCE,
            judged_from="test",
        ),
        context.check(
            "products a record, mean",
            *(exact["products"].mean(), 1, 50),
            source=SOURCE,
            uncertainty=exact["products"].std(ddof=1),
        ),
        context.check(
            f"tracker's share of the time, at max_overhead={options.max_overhead:g}",
            *(share, 0.0, options.max_overhead + longest),
            source=SOURCE,
        ),
    ]


def run(context: Context, options: Options) -> Outcome:
    every = np.arange(1, options.steps + 1)
    steps = np.random.default_rng(options.seed).choice(every, options.records, False)
    chosen = sorted(steps.tolist())

    def at_chosen() -> dict[str, Any]:
        path = context.folder / "chosen.h5"
        return train(context, options, path, chosen, every=NEVER, at=chosen, max_overhead=None)

    def within_overhead() -> dict[str, Any]:
        path = context.folder / "bounded.h5"
        return train(
            context, options, path, [], every=options.every, max_overhead=options.max_overhead
        )

    exact = context.kept("chosen", options, at_chosen)
    bounded = context.kept("bounded", options, within_overhead)
    values = {f"chosen/{name}": value for name, value in exact.items()}
    values |= {f"bounded/{name}": value for name, value in bounded.items()}
    notes = (
        f"{len(bounded['steps'])} of the records that were due, {len(bounded['skipped'])} skipped; "
        f"{bounded['seconds_a_record'].mean():.2g} s a record, "
        f"{bounded['seconds'] / options.steps:.2g} s a step"
    )
    return Outcome(judged(context, options, chosen, exact, bounded), values, notes=notes)


STUDY = Study(
    title="What does a tracker cost, and how right is its largest eigenvalue?",
    source="the package's own claims",
    run=run,
    scales={
        "test": Options("mlp-64-16-10", steps=30, records=4, batch=32),
        "cpu": Options(),
        "gpu": Options(steps=2000, batch=128, probe=512, every=20),
    },
    group="speed",
    data=("cifar10",),
)
