"""Where the minima of small networks lie: loss against distance, and the triangles between them.

Gallagher (2000, "Multi-layer perceptron error surfaces", chapter 4) asks of the minima that
searches from random starts lead to whether those of lower loss are nearer to the global minimum,
and whether their distances are those of a tree (ultrametric). Two problems, tanh, one hidden layer:

1. A student learns a teacher of its own size: the teacher is a global minimum, of loss 0.
2. MNIST pictures of 4 x 4 pixels of three digits, cross entropy with weight decay. The reference is
   the best minimum, which is left out of the points.

Hidden units may be permuted and negated without any change of the function. Distances are given as
they are, and between points whose units are matched with those of the reference (the assignment of
least distance); copies of a point count once. Triangles are compared with those of Gaussian points
of the same mean and scatter in each parameter: in many dimensions these, too, are nearly so.

    python benchmarks/global_structure.py --data-root DATA --out structure   # DATA: MNIST's folder
    python benchmarks/global_structure.py --quick --out structure            # shipped digits
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from critical_index import pictures
from findings import Finding, report, within
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from two_layer import TwoLayer, newton

import hessian_spectrum as hs

INPUTS, HIDDEN, OUTPUTS = 5, 3, 2  # of teacher and student
DECAY = 1e-3
LR, BETAS, EPSILON = 0.03, (0.9, 0.999), 1e-8
COPY = 1e-4  # points within so many norms of the reference of each other are one
LEAST = 8  # points of a correlation or of triangles
SOURCE = "Gallagher 2000"


def random_weights(net: TwoLayer, count: int, rng: np.random.Generator) -> Tensor:
    sizes = [torch.full((rows * columns,), columns**-0.5) for rows, columns in net.shapes]
    return torch.from_numpy(rng.standard_normal((count, net.n))) * torch.cat(sizes)


def minima(net: TwoLayer, theta: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Adam on the whole loss for all starts at once, then Newton; points and |gradient|."""
    mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
    for step in range(1, steps + 1):
        g = net.gradients(theta)
        mean = BETAS[0] * mean + (1 - BETAS[0]) * g
        square = BETAS[1] * square + (1 - BETAS[1]) * g * g
        scaled = mean / (1 - BETAS[0] ** step)
        rate = LR * (1 - step / (steps + 1))
        theta = theta - rate * scaled / ((square / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
    return newton(net, theta, 20, 1e-10)


def matched(net: TwoLayer, theta: Tensor, reference: Tensor) -> Tensor:
    """(p, n), each point with its hidden units permuted and negated to be nearest to (n,)."""
    first, second = net.weights(theta)
    one, two = net.weights(reference[None])
    h = net.hidden
    rows = []
    for w, v in zip(first, second):
        units = torch.cat([w, v[:, :h].T], 1)  # (h, inputs + outputs)
        wanted = torch.cat([one[0], two[0, :, :h].T], 1)
        plus, minus = torch.cdist(wanted, units) ** 2, torch.cdist(wanted, -units) ** 2
        _, order = linear_sum_assignment(torch.minimum(plus, minus).numpy())
        sign = torch.where(plus <= minus, 1.0, -1.0)[torch.arange(h), order].to(units)
        units = sign[:, None] * units[order]
        inner = w.shape[1]
        outer = torch.cat([units[:, inner:].T, v[:, h:]], 1)
        rows.append(torch.cat([units[:, :inner].flatten(), outer.flatten()]))
    return torch.stack(rows)


def distinct(points: Tensor, reference: Tensor) -> Tensor:
    """Indices of points that differ from each other, and from the reference."""
    kept: list[int] = []
    size = COPY * reference.norm()
    for i, point in enumerate(points):
        others = torch.stack([reference, *points[kept]])
        if (others - point).norm(dim=1).min() > size:
            kept.append(i)
    return torch.tensor(kept)


def look(
    name: str,
    net: TwoLayer,
    points: Tensor,
    reference: Tensor,
    args: argparse.Namespace,
) -> tuple[list[Finding], np.ndarray, np.ndarray]:
    """Findings, and losses and matched distances for the picture."""
    judged = not args.quick
    near = matched(net, points, reference)
    found = []
    for how, all_rows in (("as they are", points), ("units matched", near)):
        rows = all_rows[distinct(all_rows, reference)]
        losses = net.losses(rows).numpy()
        print(f"{name}, {how}: {len(rows)} different points of {len(points)}")
        if len(rows) < LEAST:
            continue
        told = hs.fitness_distance(losses, rows.numpy(), reference.numpy())
        ranks = hs.fitness_distance(losses, rows.numpy(), reference.numpy(), rank=True)
        print(f"{name}, {how}: loss and distance {told}; of ranks {ranks}")
        half = (told.bootstrap[1] - told.bootstrap[0]) / 2
        found.append(
            within(
                f"{name}, {how}: correlation of loss and distance",
                SOURCE,
                told.value,
                half,
                1.0,
                half,
                judged,
            )
        )
        tree = hs.ultrametricity(rows.numpy(), resamples=200)
        rng = np.random.default_rng(args.seed)
        scatter = rows.std(0).numpy() * rng.standard_normal(rows.shape) + rows.mean(0).numpy()
        random = hs.ultrametricity(scatter, resamples=200)
        print(f"{name}, {how}: {tree}; of Gaussian points {random}", flush=True)
        found.append(
            within(
                f"{name}, {how}: ultrametric difference over that of Gaussian points",
                SOURCE,
                tree.mean / random.mean,
                0.0,
                0.9,
                (tree.interval[1] - tree.interval[0]) / 2 / random.mean,
                judged,
            )
        )
    return found, net.losses(near).numpy(), (near - reference).norm(dim=1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="MNIST's folder")
    parser.add_argument("--starts", type=int, default=60)
    parser.add_argument("--steps", type=int, default=3000, help="of Adam")
    parser.add_argument("--samples", type=int, default=100, help="of the teacher")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("structure"))
    args = parser.parse_args()
    if args.data_root is None and not args.quick:
        parser.error("--data-root is missing: MNIST's folder, or use --quick")
    if args.quick:
        args.starts, args.steps = 12, 200
    args.out.mkdir(exist_ok=True)
    begin, rng = time.perf_counter(), np.random.default_rng(args.seed)

    x = torch.from_numpy(rng.standard_normal((args.samples, INPUTS)))
    blank = TwoLayer(x, torch.zeros(args.samples, OUTPUTS).double(), HIDDEN)
    teacher = 2 * random_weights(blank, 1, rng)
    student = TwoLayer(x, blank.outputs(teacher)[0], HIDDEN)
    points, norms = minima(student, random_weights(student, args.starts, rng), args.steps)
    print(
        f"students: |g| {norms.median():.1g} (median), loss {student.losses(points).min():.2g} up"
    )
    found, *taught = look("teacher and student", student, points, teacher[0], args)

    net = TwoLayer(*pictures(args), HIDDEN, "tanh", "cross-entropy", True, DECAY)
    points, norms = minima(net, random_weights(net, args.starts, rng), args.steps)
    best = int(net.losses(points).argmin())
    others = torch.arange(len(points)) != best
    print(f"pictures: |g| {norms.median():.1g} (median), loss {net.losses(points).min():.4g} up")
    more, *seen = look("pictures", net, points[others], points[best], args)
    print(f"{time.perf_counter() - begin:.0f} s")
    report(found + more, args.out / "findings.json", args)

    picture = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (losses, distances), name in zip(
        picture.subplots(1, 2), (taught, seen), ("teacher and student", "pictures")
    ):
        axes.plot(distances, losses, "o", ms=4)
        axes.set_xlabel("distance from the reference, units matched")
        axes.set_ylabel("loss of the minimum")
        axes.set_title(name)
    picture.savefig(args.out / "structure.png", dpi=110)


if __name__ == "__main__":
    main()
