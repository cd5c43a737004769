"""Loss and error between trained networks: at the ends, on the line, and on a fitted curve.

Garipov et al. (2018, arXiv:1802.10026): the straight line between two independently trained
networks crosses a high barrier, and a curve with a single free vertex, fitted for a low mean loss,
has none. As in their tables, for each pair and path the loss on the training data and the error on
test data: at the ends, the mean and the largest over the path. Two MLPs of different width on MNIST
pictures of 7 x 7 pixels, two starts each, trained by Adam on all samples; Bezier curves and
polygons with one free vertex.

    python benchmarks/mode_connectivity.py --data-root DATA --out modes    # DATA: MNIST's folder
    python benchmarks/mode_connectivity.py --quick --out modes            # shipped digits
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from findings import Finding, report, within
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

import hessian_spectrum as hs

SIDE = 7  # of the pictures of digits
SOURCE = "Garipov et al. 2018"
KINDS = ("line", "bezier", "polygon")
POINTS = 41


@dataclass(frozen=True)
class Path_:
    """Values along one path between two trained networks."""

    kind: str
    curve: hs.Curve

    @property
    def error(self) -> np.ndarray:
        """Share of wrong labels on test data, in per cent."""
        return 100 * (1 - self.curve.values["test_accuracy"])

    def row(self) -> str:
        loss, error = self.curve.loss, self.error
        return (
            f"| {self.kind} | {loss[0]:.4f}, {loss[-1]:.4f} | {loss.mean():.4f} | {loss.max():.4f} "
            f"| {error[0]:.1f}, {error[-1]:.1f} | {error.mean():.1f} | {error.max():.1f} |"
        )


def evaluators(args: argparse.Namespace, hidden: int) -> tuple[hs.Evaluator, hs.Evaluator]:
    name = "digits" if args.quick else "mnist"
    root, sides = args.data_root, []
    for split, limit in (("train", args.samples), ("test", args.samples)):
        x, y = hs.zoo.load_dataset(name, data_root=root, split=split, limit=limit).tensors
        sides.append((adaptive_avg_pool2d(x, SIDE).flatten(1), y))
    mean, scale = sides[0][0].mean(0), sides[0][0].std()
    net = nn.Sequential(nn.Linear(SIDE**2, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    made = [
        hs.Evaluator(
            net,
            nn.CrossEntropyLoss(),
            ((x - mean) / scale, y),
            weight_decay=args.weight_decay,
            batch_size=args.samples,
        )
        for x, y in sides
    ]
    return made[0], made[1]


def trained(ev: hs.Evaluator, seed: int, args: argparse.Namespace) -> Tensor:
    """Adam on the whole loss, from a start of its own."""
    torch.manual_seed(seed)
    for layer in ev.model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    theta = ev.theta.requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.01)
    for _ in range(args.epochs):
        theta.grad = ev.gradient(theta.detach())
        optimizer.step()
    return theta.detach()


def paths_of(args: argparse.Namespace, hidden: int) -> list[Path_]:
    ev, test = evaluators(args, hidden)
    ends = [trained(ev, args.seed + i, args) for i in range(2)]
    found = [Path_("line", hs.interpolate(ev, *ends, POINTS, test=test))]
    for kind in KINDS[1:]:
        options = {"num_steps": args.steps, "lr": args.lr, "seed": args.seed}
        fit = hs.connect(ev, *ends, kind=kind, num_points=POINTS, test=test, **options)
        found.append(Path_(kind, fit.curve))
    return found


def findings_of(hidden: int, found: list[Path_], judged: bool) -> list[Finding]:
    line = found[0].curve
    claims = [
        within(
            f"{hidden} hidden units, line: barrier over the mean loss of the ends",
            SOURCE,
            line.barrier() / line.loss[[0, -1]].mean(),
            1.0,
            np.inf,
            judged=judged,
        )
    ]
    for path in found[1:]:
        claims.append(
            within(
                f"{hidden} hidden units, {path.kind}: barrier over that of the line",
                SOURCE,
                path.curve.barrier() / line.barrier(),
                0.0,
                0.1,
                judged=judged,
            )
        )
        claims.append(
            within(
                f"{hidden} hidden units, {path.kind}: largest test error minus that of the ends, %",
                SOURCE,
                path.error.max() - path.error[[0, -1]].max(),
                -np.inf,
                1.0,
                judged=judged,
            )
        )
    return claims


def figure(by_width: dict[int, list[Path_]]) -> Figure:
    picture = Figure(figsize=(5 * len(by_width), 6), layout="constrained")
    axes = picture.subplots(2, len(by_width), squeeze=False)
    for column, (hidden, found) in zip(axes.T, by_width.items()):
        for path, style in zip(found, ("-", "--", ":")):
            column[0].plot(path.curve.t, path.curve.loss, style, label=path.kind)
            column[1].plot(path.curve.t, path.error, style)
        column[0].set_yscale("log")
        column[0].set_title(f"{hidden} hidden units")
        column[0].legend(frameon=False, fontsize=8)
        column[1].set_xlabel("t")
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("test error, %")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="MNIST's folder")
    parser.add_argument("--samples", type=int, default=1000, help="of each split")
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=500, help="steps of Adam of a training")
    parser.add_argument("--steps", type=int, default=300, help="of the search of a curve")
    parser.add_argument("--lr", type=float, default=0.01, help="of that search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("modes"))
    args = parser.parse_args()
    if args.data_root is None and not args.quick:
        parser.error("--data-root is missing: MNIST's folder, or use --quick")
    if args.quick:
        args.samples, args.hidden, args.epochs, args.steps = 100, [8], 40, 20
    args.out.mkdir(exist_ok=True)
    begin, by_width, claims = time.perf_counter(), {}, []
    for hidden in args.hidden:
        found = by_width[hidden] = paths_of(args, hidden)
        seconds = time.perf_counter() - begin
        print(f"\n{hidden} hidden units, {seconds:.0f} s; loss of training data, test error in %")
        print("| path | loss at the ends | mean | largest | error at the ends | mean | largest |")
        print("|---|---|---|---|---|---|---|")
        for path in found:
            print(path.row(), flush=True)
        hs.save(args.out / f"{hidden}.h5", **{f"curve/{path.kind}": path.curve for path in found})
        claims += findings_of(hidden, found, not args.quick)
    report(claims, args.out / "findings.json", args)
    figure(by_width).savefig(args.out / "modes.png", dpi=110)


if __name__ == "__main__":
    main()
