"""Full-batch training at the edge of stability, watched by a tracker.

Gradient descent lets the sharpness (the largest eigenvalue of the Hessian) rise to 2 / lr and then
keeps it there; with momentum it rises to (2 + 2 beta) / lr (Cohen et al. 2021, "Gradient descent on
neural networks typically occurs at the edge of stability", figures 1, 3 and 5). Adam's
preconditioned sharpness rises to (2 + 2 beta1) / ((1 - beta1) lr) (Cohen et al. 2022, "Adaptive
gradient methods at the edge of stability", figure 1).

A tanh network with two hidden layers of 64 units is trained on CIFAR-10 pictures, averaged to 8 x 8
pixels and standardized pixel by pixel, with squared error (half the squared distance to the one-hot
label) and with cross entropy. In the study's folder: a track file for each run, which
``hessian-spectrum plot`` draws alone. The test trains on the shipped digits, for which no paper
has figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, one_hot

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from hessian_spectrum import zoo
from hessian_spectrum.landscape.results import Track

GD = "Cohen et al. 2021"
ADAPTIVE = "Cohen et al. 2022"


@dataclass(frozen=True)
class Run:
    loss: str  # mse or ce
    optimizer: str  # gd, momentum or adam
    lr: float
    steps: int
    source: str

    @property
    def name(self) -> str:
        return f"{self.loss}-{self.optimizer}"

    def step_rule(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr)
        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=0.9 if self.optimizer == "momentum" else 0.0
        )


RUNS = (
    Run("mse", "gd", 0.1, 2000, GD),
    Run("mse", "momentum", 0.05, 2000, GD),
    Run("mse", "adam", 0.002, 2000, ADAPTIVE),
    Run("ce", "gd", 0.2, 2000, GD),
    Run("ce", "momentum", 0.05, 1200, GD),
    Run("ce", "adam", 0.002, 600, ADAPTIVE),
)
TEST = (Run("mse", "gd", 0.4, 60, GD), Run("ce", "adam", 0.01, 60, ADAPTIVE))
WHY_NOT = {
    "ce-gd": "it rises to the threshold and stays above it while the loss still falls fast",
    "ce-momentum": "it rises to the threshold and falls back after each peak",
}
SMALL_LOSS = 0.1  # over the first: below, cross entropy lets the sharpness fall again


@dataclass(frozen=True)
class Options:
    """
    Args:
        samples: of CIFAR-10; 0: the first 300 shipped digits.
        every: steps between records.
        width: of the hidden layers.
        pool: side of the squares of pixels that are averaged.
    """

    runs: tuple[Run, ...] = RUNS
    samples: int = 5000
    every: int = 25
    width: int = 64
    pool: int = 4


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over samples of half the squared distance, as Cohen et al. have it."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


def samples(context: Context, options: Options) -> tuple[Tensor, Tensor]:
    if options.samples:
        root = context.data("cifar10")
        x, y = zoo.load_dataset("arrays", data_root=root, limit=options.samples).tensors
        x = avg_pool2d(x, options.pool)
    else:
        x, y = zoo.load_dataset("digits", limit=300).tensors
    return (x - x.mean(0)) / (x.std(0) + 1e-3), y


def train(run: Run, x: Tensor, y: Tensor, out: Path, every: int, width: int) -> Track:
    """Full-batch steps with a tracker on the same data; not again where its file is finished."""
    path = out / f"{run.name}.h5"
    if path.exists():
        with hs.open(path) as found:
            if found.finished:
                return found["track"]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(x[0].numel(), width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, 10),
    )
    targets, loss_fn = (one_hot(y, 10).float(), half_squares) if run.loss == "mse" else (y, None)
    loss_fn = loss_fn or nn.CrossEntropyLoss()
    optimizer = run.step_rule(net.parameters())
    evaluator = hs.Evaluator(net, loss_fn, (x, targets), batch_size=len(x))
    options = {"every": every, "at": (1,), "smallest": 0, "above": None, "overwrite": True}
    with hs.Tracker(evaluator, path, max_overhead=None, **options) as tracker:
        for step in range(1, run.steps + 1):
            optimizer.zero_grad()
            loss = loss_fn(net(x), targets)
            loss.backward()
            tracker.before_step(step, optimizer)
            optimizer.step()
            tracker.after_step(step, loss)
    with hs.open(path) as found:
        return found["track"]


def judged(context: Context, run: Run, track: Track) -> list[Finding]:
    """Does the sharpness rise to its threshold, and stay there?

    With cross entropy it falls again when the loss has become small (Cohen et al. 2021, section 3):
    these steps are left out, and what it comes down to is a finding of its own.
    """
    ratio = track["preconditioned"] / track["threshold"]
    large = track["loss"] > SMALL_LOSS * track["loss"][0] if run.loss == "ce" else ratio == ratio
    trained, steps = ratio[large], track.steps[large]
    third = trained[steps > 2 * steps[-1] / 3]
    what = "preconditioned sharpness" if run.optimizer == "adam" else "sharpness"
    over = f"{run.name}: {what} over its threshold"
    found = [
        context.check(
            f"{over}, mean of the last third of the steps",
            third.mean(),
            *(0.9, 1.2),
            source=run.source,
            uncertainty=third.std(),
            why_not=WHY_NOT.get(run.name, ""),
        ),
        context.check(
            f"{over}, the least in the first quarter",
            trained[: max(1, len(trained) // 4)].min(),
            *(0.0, 0.9),
            source=run.source,
        ),
    ]
    if not large.all():
        at_end = f"{over}, at the end, where the loss is small"
        found.append(context.check(at_end, ratio[-1], 0.0, 0.9, source=run.source))
    # What a tracker records of gradient descent is known to the last bit.
    known = {"gd": 2 / run.lr, "momentum": 3.8 / run.lr, "adam": 38 / run.lr}[run.optimizer]
    found.append(
        context.check(
            f"{run.name}: recorded threshold over the formula's",
            (track["threshold"][1:] / known).mean(),
            *(1 - 1e-9, 1 + 1e-9),
            source=run.source,
            judged_from="test",
        )
    )
    return found


def figure(found: list[tuple[Run, Track]]) -> Figure:
    """Above the sharpness with its threshold, below the loss; one column a run."""
    picture = Figure(figsize=(3.1 * len(found), 5.2), layout="constrained")
    axes = picture.subplots(2, len(found), sharex="col", squeeze=False)
    for (run, track), (top, bottom) in zip(found, axes.T):
        top.plot(track.steps, track["preconditioned"], ".-", linewidth=0.8, markersize=3)
        top.plot(track.steps, track["threshold"], "--", color="black", linewidth=1)
        top.set_ylim(0, 1.6 * track["threshold"][-1])
        loss = "squared error" if run.loss == "mse" else "cross entropy"
        top.set_title(f"{run.optimizer}, lr {run.lr:g}\n{loss}", fontsize=9)
        bottom.semilogy(track.steps, track["loss"], linewidth=0.8)
        bottom.set_xlabel("step")
    axes[0, 0].set_ylabel("sharpness; dashed: threshold")
    axes[1, 0].set_ylabel("training loss")
    return picture


def run(context: Context, options: Options) -> Outcome:
    x, y = samples(context, options)
    found, findings, values = [], [], {}
    for each in options.runs:
        track = train(each, x, y, context.folder, options.every, options.width)
        found.append((each, track))
        findings += judged(context, each, track)
        for name in ("preconditioned", "threshold", "loss", "products"):
            values[f"{each.name}/{name}"] = track[name]
        values[f"{each.name}/step"] = track.steps
        print(f"{each.name}: {len(track)} records, {track['products'].mean():.1f} products each")
    return Outcome(findings, values, figure(found))


STUDY = Study(
    title="Does full-batch training settle at the edge of stability?",
    source="Cohen et al. 2021, figures 1, 3 and 5; 2022, figure 1",
    run=run,
    scales={
        "test": Options(TEST, samples=0, width=16),
        "cpu": Options(),
        "gpu": Options(width=200, pool=1),
        "paper": Options(width=200, pool=1),  # 5,000 pictures, as theirs
    },
    data=("cifar10",),
)
