"""How often small networks learn XOR, or another data set of few points, by their hidden units.

After Swirszcz, Czarnecki & Pascanu (2016, "Local minima in training of neural networks",
arXiv:1611.06310): networks of one hidden layer are trained on all points from many starts, and the
share is counted that ends with no point on the wrong side. Their set "Jellyfish" is not part of
this repository: --points takes it, or any other, as a .npz file with x, (N, d), and y in {0, 1},
(N,).

All starts of one size are trained together, as a batch of networks: Glorot's uniform weights,
biases 0, the logistic loss of all points, Adam (lr 0.01) or gradient descent (--optimizer sgd,
lr 0.1), in float64. Of the runs that fail it is counted in how many some ReLU unit is dead, that is
0 on all points. Shares have Clopper and Pearson's intervals of 95 %.

    python benchmarks/small_data_success.py --out success
    python benchmarks/small_data_success.py --points jellyfish.npz --out success-jellyfish
    python benchmarks/small_data_success.py --quick --out quick    # seconds: a test
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from findings import Finding, report, within
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F

SOURCE = "Swirszcz et al. 2016"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "sigmoid": torch.sigmoid}
RATES = {"adam": 0.01, "sgd": 0.1}
XOR = ([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0.0, 1.0, 1.0, 0.0])


@dataclass(frozen=True)
class Success:
    """The runs of one network."""

    activation: str
    units: int
    runs: int
    right: int  # runs that end with all points on the right side
    low: float  # Clopper and Pearson's 95 % interval of right / runs
    high: float
    failed_with_dead: int  # runs that fail, and in which a unit is 0 on all points
    failed_with_fewer_than_two_alive: int

    @property
    def share(self) -> float:
        return self.right / self.runs

    def __str__(self) -> str:
        return (
            f"{self.activation}, {self.units} hidden: {self.right} of {self.runs} runs learn all "
            f"points, [{100 * self.low:.1f}, {100 * self.high:.1f}] %; of {self.runs - self.right} "
            f"that fail {self.failed_with_dead} have dead units, "
            f"{self.failed_with_fewer_than_two_alive} fewer than two that are alive"
        )


def starts(runs: int, inputs: int, units: int, seed: int) -> list[Tensor]:
    """W (r, h, d), b (r, h), v (r, h), c (r,): start i is the same however many there are."""
    drawn = [np.random.default_rng([seed, units, i]) for i in range(runs)]
    bounds = math.sqrt(6 / (inputs + units)), math.sqrt(6 / (units + 1))
    w = np.stack([rng.uniform(-bounds[0], bounds[0], (units, inputs)) for rng in drawn])
    v = np.stack([rng.uniform(-bounds[1], bounds[1], units) for rng in drawn])
    zeros = np.zeros((runs, units)), np.zeros(runs)
    return [torch.from_numpy(a).requires_grad_() for a in (w, zeros[0], v, zeros[1])]


def hidden(parameters: Sequence[Tensor], x: Tensor, activation: str) -> Tensor:
    """(r, N, h)."""
    w, b, _, _ = parameters
    return ACTIVATIONS[activation](torch.einsum("nd,rhd->rnh", x, w) + b[:, None])


def outputs(parameters: Sequence[Tensor], x: Tensor, activation: str) -> Tensor:
    """(r, N), logits."""
    _, _, v, c = parameters
    return torch.einsum("rnh,rh->rn", hidden(parameters, x, activation), v) + c[:, None]


def train(
    x: Tensor, y: Tensor, activation: str, units: int, args: argparse.Namespace
) -> list[Tensor]:
    """The parameters at the end of all runs; the sum of their losses separates by run."""
    parameters = starts(args.runs, x.shape[1], units, args.seed)
    lr = args.lr or RATES[args.optimizer]
    make = torch.optim.Adam if args.optimizer == "adam" else torch.optim.SGD
    optimizer = make(parameters, lr=lr)
    for _ in range(args.steps):
        optimizer.zero_grad()
        logits = outputs(parameters, x, activation)
        losses = F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none")
        losses.mean(1).sum().backward()
        optimizer.step()
    return [p.detach() for p in parameters]


def success(x: Tensor, y: Tensor, activation: str, units: int, args: argparse.Namespace) -> Success:
    parameters = train(x, y, activation, units, args)
    is_right = ((outputs(parameters, x, activation) > 0) == (y > 0.5)).all(1)
    alive = (hidden(parameters, x, activation) > 0).any(1).sum(1)
    right = int(is_right.sum())
    interval = binomtest(right, args.runs).proportion_ci(0.95, "exact")
    return Success(
        activation,
        units,
        args.runs,
        right,
        float(interval.low),
        float(interval.high),
        int((~is_right & (alive < units)).sum()),
        int((~is_right & (alive < 2)).sum()),
    )


def findings_of(found: Sequence[Success], judged: bool) -> list[Finding]:
    all_ = []
    for activation in ACTIVATIONS:
        rows = [one for one in found if one.activation == activation]
        for fewer, more in pairwise(rows):
            # Beyond what chance explains: the intervals' ends.
            all_.append(
                within(
                    f"{activation}: share of {more.units} units minus that of {fewer.units}",
                    SOURCE,
                    more.share - fewer.share,
                    -((more.share - more.low) + (fewer.high - fewer.share)),
                    1.0,
                    judged=judged,
                )
            )
        if len(rows) > 1:
            all_.append(
                within(
                    f"{activation}: share of runs with {rows[0].units} units that learn all points",
                    SOURCE,
                    rows[0].share,
                    0.0,
                    0.95,
                    judged=judged,
                )
            )
    return all_


def points(path: Path | None) -> tuple[Tensor, Tensor]:
    if path is None:
        x, y = (np.array(values) for values in XOR)
    else:
        with np.load(path) as arrays:
            x, y = arrays["x"], arrays["y"]
    if x.ndim != 2 or y.shape != x.shape[:1] or not np.isin(y, (0, 1)).all():
        raise SystemExit(f"x of shape {x.shape}, y of {y.shape}: expected (N, d), (N,) in 0, 1")
    return torch.from_numpy(x.astype(float)), torch.from_numpy(y.astype(float))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=Path, help=".npz with x and y; default: XOR")
    parser.add_argument("--units", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7])
    parser.add_argument("--runs", type=int, default=1000, help="starts of each network")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--optimizer", choices=tuple(RATES), default="adam")
    parser.add_argument("--lr", type=float, help="default: 0.01 for adam, 0.1 for sgd")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("success"))
    args = parser.parse_args()
    if args.quick:
        args.units, args.runs, args.steps = [2, 5], 40, 1000
    args.out.mkdir(exist_ok=True)
    x, y = points(args.points)
    found = []
    for activation in ACTIVATIONS:
        for units in args.units:
            found.append(success(x, y, activation, units, args))
            print(found[-1], flush=True)
            rows = json.dumps([asdict(one) for one in found], indent=1)
            (args.out / "success.json").write_text(rows)
    report(findings_of(found, not args.quick), args.out / "findings.json", args)


if __name__ == "__main__":
    main()
