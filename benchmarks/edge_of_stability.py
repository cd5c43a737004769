"""Full-batch training at the edge of stability, watched by a tracker.

Gradient descent lets the sharpness (the largest eigenvalue of the Hessian) rise to 2 / lr and then
keeps it there; with momentum it rises to (2 + 2 beta) / lr (Cohen et al. 2021, "Gradient descent on
neural networks typically occurs at the edge of stability", figures 1, 3 and 5). Adam's
preconditioned sharpness rises to (2 + 2 beta1) / ((1 - beta1) lr) (Cohen et al. 2022, "Adaptive
gradient methods at the edge of stability", figure 1).

A tanh network with two hidden layers of 64 units is trained on CIFAR-10 pictures, averaged to 8 x 8
pixels and standardized pixel by pixel, with squared error (half the squared distance to the one-hot
label) and with cross entropy. Written into OUT: a track file for each run (hessian-spectrum plot
draws it alone), findings.json, and one picture of all runs.

    python benchmarks/edge_of_stability.py --data-root cifar10.npz --out eos    # about 10 minutes
    python benchmarks/edge_of_stability.py --quick --out eos    # shipped digits, seconds: a test
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from findings import Finding, report, within
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, one_hot

import hessian_spectrum as hs
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

    def step_rule(self, parameters: object) -> torch.optim.Optimizer:
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
SMALL_LOSS = 0.1  # over the first: below, cross entropy lets the sharpness fall again
QUICK = (Run("mse", "gd", 0.4, 60, GD), Run("ce", "adam", 0.01, 60, ADAPTIVE))


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over samples of half the squared distance, as Cohen et al. have it."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


def samples(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    if args.quick:
        x, y = zoo.load_dataset("digits", limit=300).tensors
    else:
        data = zoo.load_dataset("arrays", data_root=args.data_root, limit=args.samples)
        x, y = data.tensors
        x = avg_pool2d(x, 4)
    return (x - x.mean(0)) / (x.std(0) + 1e-3), y


def train(run: Run, x: Tensor, y: Tensor, out: Path, every: int, width: int) -> Track:
    """Full-batch steps with a tracker on the same data."""
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
    path = out / f"{run.name}.h5"
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


def judged(run: Run, track: Track, quick: bool) -> list[Finding]:
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
        within(
            f"{over}, mean of the last third of {steps[-1]:.0f} steps",
            run.source,
            third.mean(),
            0.9,
            1.2,
            third.std(),
            not quick,
        ),
        within(
            f"{over}, the least in the first quarter",
            run.source,
            trained[: max(1, len(trained) // 4)].min(),
            0.0,
            0.9,
            judged=not quick,
        ),
    ]
    if not large.all():
        at_end = f"{over}, at step {track.steps[-1]:.0f}, with a loss of {track['loss'][-1]:.2g}"
        found.append(within(at_end, run.source, ratio[-1], 0.0, 0.9, judged=not quick))
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="a .npz file with CIFAR-10 pictures")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--every", type=int, default=25, help="steps between records")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--only", nargs="*", help="names of runs, such as mse-gd")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("edge_of_stability"))
    args = parser.parse_args()
    if args.data_root is None and not args.quick:
        parser.error("--data-root is missing: a .npz file with CIFAR-10 pictures, or use --quick")
    args.out.mkdir(exist_ok=True)
    x, y = samples(args)
    runs = [
        run for run in (QUICK if args.quick else RUNS) if not args.only or run.name in args.only
    ]
    found, findings = [], []
    for run in runs:
        track = train(run, x, y, args.out, args.every, args.width)
        found.append((run, track))
        findings += judged(run, track, args.quick)
        spent = np.nansum(track["seconds"])
        print(
            f"{run.name}: {len(track)} records, {track['products'].mean():.1f} products and "
            f"{spent / len(track):.3f} s each"
        )
    report(findings, args.out / "findings.json", args)
    figure(found).savefig(args.out / "edge_of_stability.png", dpi=130)


if __name__ == "__main__":
    main()
