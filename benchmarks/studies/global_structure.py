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

Matching is known to change no function, and to undo any order and any signs of the hidden units: a
reference whose units are permuted and negated is at distance 0. The test takes the shipped digits,
and few starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.pictures import Digits, of_classes
from benchmarks.suite.two_layer import TwoLayer, newton

INPUTS, HIDDEN, OUTPUTS = 5, 3, 2  # of teacher and student
CLASSES, SIDE = 3, 4  # of the pictures
DECAY = 1e-3
LR, BETAS, EPSILON = 0.03, (0.9, 0.999), 1e-8
COPY = 1e-4  # points within so many norms of the reference of each other are one
LEAST = 8  # points of a correlation or of triangles
COPIES = 20  # of the reference, that are matched with it
SOURCE, SYMMETRY = "Gallagher 2000", "symmetries of tanh units"
Z95 = 1.96


@dataclass(frozen=True)
class Options:
    """
    Args:
        steps: of Adam.
        samples: that the student learns from, and of the pictures.
    """

    data: Digits = "mnist"
    starts: int = 60
    steps: int = 3000
    samples: int = 100
    resamples: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Problem:
    """A network, the minima that searches have led to, and the reference."""

    name: str
    net: TwoLayer
    points: Tensor  # (p, n)
    reference: Tensor  # (n,)

    @property
    def matched(self) -> Tensor:
        return matched(self.net, self.points, self.reference)

    @property
    def distances(self) -> np.ndarray:
        """(p,), from the reference, units matched."""
        return (self.matched - self.reference).norm(dim=1).numpy()

    @property
    def losses(self) -> np.ndarray:
        return self.net.losses(self.points).numpy()


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


def look(context: Context, problem: Problem, options: Options) -> list[Finding]:
    name, reference = problem.name, problem.reference.numpy()
    found: list[Finding] = []
    for how, all_rows in (("as they are", problem.points), ("units matched", problem.matched)):
        rows = all_rows[distinct(all_rows, problem.reference)]
        print(f"{name}, {how}: {len(rows)} different points of {len(all_rows)}")
        if len(rows) < LEAST:
            continue
        losses = problem.net.losses(rows).numpy()
        told = hs.fitness_distance(losses, rows.numpy(), reference)
        ranks = hs.fitness_distance(losses, rows.numpy(), reference, rank=True)
        print(f"{name}, {how}: loss and distance {told}; of ranks {ranks}")
        half = (told.bootstrap[1] - told.bootstrap[0]) / 2
        found.append(
            context.check(
                f"{name}, {how}: correlation of loss and distance",
                told.value,
                *(half, 1.0),
                source=SOURCE,
                uncertainty=half / Z95,
                why_not="copies of minima hide it" if how == "as they are" else "",
            )
        )
        tree = hs.ultrametricity(rows.numpy(), resamples=options.resamples)
        rng = np.random.default_rng(options.seed)
        scatter = rows.std(0).numpy() * rng.standard_normal(rows.shape) + rows.mean(0).numpy()
        random = hs.ultrametricity(scatter, resamples=options.resamples)
        print(f"{name}, {how}: {tree}; of Gaussian points {random}")
        found.append(
            context.check(
                f"{name}, {how}: ultrametric difference over that of Gaussian points",
                tree.mean / random.mean,
                *(0.0, 0.9),
                source=SOURCE,
                uncertainty=(tree.interval[1] - tree.interval[0]) / (2 * Z95) / random.mean,
                why_not="minima of these networks are no more ultrametric than Gaussian points",
            )
        )
    return found


def student(context: Context, options: Options, rng: np.random.Generator) -> Problem:
    """Minima of a student of a teacher of its own size."""
    x = torch.from_numpy(rng.standard_normal((options.samples, INPUTS)))
    blank = TwoLayer(x, torch.zeros(options.samples, OUTPUTS).double(), HIDDEN)
    teacher = 2 * random_weights(blank, 1, rng)
    net = TwoLayer(x, blank.outputs(teacher)[0], HIDDEN)
    points = searched(context, "teacher and student", net, rng, options)
    return Problem("teacher and student", net, points, teacher[0])


def pictures(context: Context, options: Options, rng: np.random.Generator) -> Problem:
    """Minima of a classifier of pictures but the best one, which is the reference."""
    x, y = of_classes(context, options.data, SIDE, CLASSES, options.samples)
    net = TwoLayer(x, y, HIDDEN, "tanh", "cross-entropy", True, DECAY)
    points = searched(context, "pictures", net, rng, options)
    best = int(net.losses(points).argmin())
    return Problem("pictures", net, points[torch.arange(len(points)) != best], points[best])


def searched(
    context: Context, name: str, net: TwoLayer, rng: np.random.Generator, options: Options
) -> Tensor:
    starts = random_weights(net, options.starts, rng)  # drawn also where minima are kept

    def found() -> dict[str, Any]:
        points, norms = minima(net, starts, options.steps)
        return {"points": points.numpy(), "norms": norms.numpy()}

    kept = context.kept(name.replace(" ", "-"), options, found)
    points = torch.from_numpy(kept["points"])
    norm, loss = np.median(kept["norms"]), net.losses(points).min()
    print(f"{name}: |g| {norm:.1g} (median), loss {loss:.4g} up")
    return points


def disordered(net: TwoLayer, theta: Tensor, rng: np.random.Generator) -> Tensor:
    """(n,), with the hidden units permuted and some of them negated."""
    first, second = net.weights(theta[None])
    order = torch.from_numpy(rng.permutation(net.hidden))
    sign = torch.from_numpy(rng.choice([-1.0, 1.0], net.hidden))
    outer = second[0].clone()
    outer[:, : net.hidden] = second[0][:, order] * sign
    return torch.cat([(first[0][order] * sign[:, None]).flatten(), outer.flatten()])


def judged_matching(context: Context, problem: Problem) -> list[Finding]:
    """What matching does to copies of the reference, and to the losses of all points."""
    net, reference, rng = problem.net, problem.reference, np.random.default_rng(0)
    copies = torch.stack([disordered(net, reference, rng) for _ in range(COPIES)])
    left = (matched(net, copies, reference) - reference).norm(dim=1).max()
    losses = net.losses(problem.matched).numpy()
    changed = np.abs(losses - problem.losses).max() / problem.losses.max()
    return [
        context.check(
            f"{problem.name}: distance of {COPIES} disordered copies of the reference, matched",
            *(left.item(), 0.0, 0.0),
            source=SYMMETRY,
            judged_from="test",
        ),
        context.check(
            f"{problem.name}: largest change of a loss by matching, over the largest loss",
            *(changed, 0.0, 1e-12),
            source=SYMMETRY,
            judged_from="test",
        ),
    ]


def figure(problems: list[Problem]) -> Figure:
    picture = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, problem in zip(picture.subplots(1, len(problems)), problems):
        axes.plot(problem.distances, problem.losses, "o", ms=4)
        axes.set_xlabel("distance from the reference, units matched")
        axes.set_ylabel("loss of the minimum")
        axes.set_title(problem.name)
    return picture


def run(context: Context, options: Options) -> Outcome:
    rng = np.random.default_rng(options.seed)
    problems = [student(context, options, rng), pictures(context, options, rng)]
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    for problem in problems:
        findings += look(context, problem, options) + judged_matching(context, problem)
        values[f"{problem.name}/loss"] = problem.losses
        values[f"{problem.name}/distance"] = problem.distances
    return Outcome(findings, values, figure(problems))


STUDY = Study(
    title="Are better minima nearer to each other?",
    source="Gallagher 2000, chapter 4",
    run=run,
    scales={
        "test": Options(data="digits", starts=10, steps=100, resamples=20),
        "cpu": Options(),
    },
    data=("mnist",),
)
