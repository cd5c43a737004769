"""Symmetries of tanh networks, stationary points of XOR, and the blind spot of ReLU.

1. Chen, Lu & Hecht-Nielsen (1993, "On the geometry of feedforward neural network error surfaces").
   Permutations of hidden tanh units, and flips of their signs, change no function. They form a
   group of prod M! 2^M elements, over hidden layers of M units, and each orbit has one member in
   the wedge, and one in the cone around a reference (hs.EquiOutputGroup). Random networks are
   carried by random elements, or by all, and come back to one representative. The wedge has
   1 / order of the sphere: a share of Gaussian points, judged by its standard score. With generic
   data the group is all there is (Sussmann 1992): students that learn a teacher of their own size
   to loss 0 are the teacher's representative.
2. Hamey (1998, "XOR has no local minima") of the 2-2-1 network of sigmoid units with squared error.
   With d_p the derivative of the loss by the output's argument at pattern p, a point is
   stationary only where d is proportional to s = (1, -1, -1, 1). A unit that has an effect then has
   the same slope h' at all patterns: it is constant, or a step in one input, around 1/2. One that
   has none satisfies s h = 0: it does not depend on one input, or is symmetric about the middle.
   Outputs are all 1/2 (loss 1/4); or, with a step in each input and u = e^z the root below 1 of
   (1 - u + u^2)^3 = u, the output's arguments are z, -z, 3 z, z, in orders that symmetry gives, at
   a higher loss. From a random point of each such kind a path that never ascends is asked for
   (hs.nonascending_path); losses of critical points that searches find are compared with the two.
   Searches also end far out, where units are saturated and the gradient is 0 in float64: weights
   beyond 20 are taken as infinite, of which the theorem does not speak, and counted.
3. Sprinkhuizen-Kuyper & Boers (1999, "A local minimum for the 2-3-1 XOR network"). We know their
   abstract only. The region here is ours: units that answer to (0, 0) alone, with outputs of
   (0, 2/3, 2/3, 2/3) at infinity. In it the loss is above its limit 1/6, falls outward, and is
   nowhere stationary; steepest descent that starts there never goes below 1/6. The same holds with
   two units: Hamey's theorem is of finite weights.
4. The blind spot of ReLU. A unit with Gaussian weights and bias is 0 on all four points of XOR with
   the probability 1/2 - (pi/2 + 2 arccos (2/3)^(1/2)) / (4 pi) = 0.277, the solid angle of a cone
   of four planes. hs.dead_units counts them. The loss does not depend on a dead unit's parameters,
   and gradient descent never changes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor, nn
from torch.func import functional_call

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.xor import LABELS, XOR, sigmoid_network

CHEN = "Chen, Lu & Hecht-Nielsen 1993"
SUSSMANN = "Sussmann 1992; Chen, Lu & Hecht-Nielsen 1993"
HAMEY = "Hamey 1998"
BOERS = "Sprinkhuizen-Kuyper & Boers 1999; limit 1/6"
ROUNDING = 1e-12  # relative
SAME = 1e-6  # parameters of one representative, at two ends of searches
TOL = 1e-13  # of |gradient|, so that the representatives' error is small
ZERO = 1e-18  # a loss of 0
# Its biases differ in magnitude: beside the wedge's boundary the representative may jump.
TEACHER = ([[2.0, 0.0], [0.0, 2.0], [-1.5, 1.5]], [0.4, -0.8, 1.2], [1.0, -1.5, 1.2], 0.3)
SCORE = 4.0  # standard scores: chance exceeds them once in 16,000
FEW = 400  # elements of a group, all of which are applied
SAMPLES = 40  # Gaussian inputs
GRADIENTS = 7  # of so many members of an orbit the gradient of one is compared
DEAD = 0.5 - (math.pi / 2 + 2 * math.acos(math.sqrt(2 / 3))) / (4 * math.pi)
LIMIT = 1 / 6
FALL = 0.01  # of the loss
SIZES = (8.0, 12.0, 16.0)  # of the weights in the middle of the region
FAR = 20.0  # weights beyond are at infinity: slopes of saturated units are rounded to 0
REGION = 0.2  # relative, around its centre
STEP = 0.5  # of steepest descent, the longest
DESCENT = 30  # steps of gradient descent of ReLU networks


@dataclass(frozen=True)
class Options:
    """
    Args:
        shapes: layer sizes of tanh networks.
        networks: random ones of each, and random elements of large groups.
        draws: Gaussian points of which the share in the wedge is counted.
        students: searches that begin at random networks, for the teacher's loss 0.
        searches: for critical points of XOR.
        points: random ones of each kind of stationary point.
        descents: from the region of the 2-3-1 network, each of ``steps`` steps.
        units: of ReLU, of which the dead are counted.
    """

    shapes: tuple[tuple[int, ...], ...] = (
        *((2, 2, 1), (3, 3, 2), (2, 3, 2, 1)),
        *((64, 20, 10), (784, 100, 50, 10)),
    )
    networks: int = 20
    draws: int = 20_000
    students: int = 30
    searches: int = 40
    points: int = 10
    descents: int = 20
    steps: int = 600
    units: int = 100_000
    seed: int = 0


def exact(context: Context, claim: str, measured: float, most: float, source: str) -> Finding:
    """A claim that holds at any scale."""
    return context.check(claim, measured, 0, most, source=source, judged_from="test")


def tanh_network(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def gaussian(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


# -- 1. the group ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tanh:
    """A tanh network on Gaussian data, and its group."""

    sizes: tuple[int, ...]
    ev: hs.Evaluator
    group: hs.EquiOutputGroup
    x: Tensor

    @classmethod
    def of(cls, sizes: tuple[int, ...], rng: np.random.Generator) -> Tanh:
        model, x = tanh_network(sizes), gaussian(rng, SAMPLES, sizes[0])
        ev = hs.Evaluator(model, nn.MSELoss(), (x, gaussian(rng, SAMPLES, sizes[-1])))
        return cls(sizes, ev, hs.EquiOutputGroup.of(model), x)

    def outputs(self, theta: Tensor) -> Tensor:
        """(N, outputs)."""
        found: Tensor = functional_call(self.ev.model, self.ev.layout.unflatten(theta), (self.x,))
        return found.detach()

    def elements(self, rng: np.random.Generator, count: int) -> list[Any]:
        """All of a small group, random ones of a large one."""
        if self.group.order <= FEW:
            return list(self.group.elements())
        return [self.group.random(int(seed)) for seed in rng.integers(2**31, size=count)]


def of_orbits(net: Tanh, options: Options) -> dict[str, Any]:
    """The largest deviations, and the numbers of exceptions, over random networks."""
    rng = np.random.default_rng([options.seed, *net.sizes])
    group, one_layer = net.group, len(net.sizes) == 3
    is_small = group.order <= FEW
    worst = {"outputs": 0.0, "gradient": 0.0, "norm": 0.0, "nearest": 0.0}
    counts = dict.fromkeys(("members", "others", "wedge", "cone", "cone_others"), 0)
    for _ in range(options.networks if is_small else 3):
        theta, reference = gaussian(rng, net.ev.n), gaussian(rng, net.ev.n)
        outputs, gradient = net.outputs(theta), net.ev.gradient(theta)
        elements = net.elements(rng, options.networks)
        members = [group.apply(g, theta) for g in elements]
        canonical, inside, nearest = group.canonical(theta).theta, 0, []
        for i, (g, member) in enumerate(zip(elements, members)):
            apart = {
                "outputs": (net.outputs(member) - outputs).abs().max() / outputs.abs().max(),
                "norm": abs(member.norm() / theta.norm() - 1),
            }
            if i % GRADIENTS == 0:
                turned = net.ev.gradient(member) - group.apply(g, gradient)
                apart["gradient"] = turned.norm() / gradient.norm()
            worst |= {name: max(worst[name], float(x)) for name, x in apart.items()}
            counts["others"] += not torch.equal(group.canonical(member).theta, canonical)
            inside += group.is_in_wedge(member)
            if one_layer:
                nearest.append(group.in_cone(member, reference).theta)
        counts["members"] += len(members)
        counts["wedge"] += inside != 1 if is_small else not group.is_in_wedge(canonical)
        counts["cone_others"] += sum(not torch.equal(one, nearest[0]) for one in nearest)
        if one_layer and is_small:
            images = torch.stack([group.apply(g, reference) for g in elements])
            # In the cone: no image of the reference is nearer than the reference itself.
            in_cone = sum(
                bool(member @ reference >= (images @ member).max() - ROUNDING) for member in members
            )
            counts["cone"] += in_cone != 1
            others = sorted(float((member - theta).norm()) for member in members)
            error = abs(group.neighbours(theta)[0].distance / others[1] - 1)
            worst["nearest"] = max(worst["nearest"], error)
    return {**worst, **counts}


def in_wedge(net: Tanh, options: Options) -> int:
    """How many of the Gaussian points are in the wedge."""
    rng = np.random.default_rng([options.seed, 1, *net.sizes])
    return sum(net.group.is_in_wedge(gaussian(rng, net.ev.n)) for _ in range(options.draws))


def order_of(widths: Sequence[int]) -> int:
    """By recurrence: a unit more has 2 M places."""
    found = 1
    for width in widths:
        for m in range(1, width + 1):
            found *= 2 * m
    return found


def of_group(context: Context, sizes: tuple[int, ...], options: Options) -> list[Finding]:
    net = Tanh.of(sizes, np.random.default_rng([options.seed, *sizes]))
    name, group = "-".join(map(str, sizes)), net.group
    given = (sizes, options.networks, options.seed)
    found = context.kept(f"orbits-{name}", given, lambda: of_orbits(net, options))
    print(f"{name}: a group of {group.order:.6g} elements; {found['members']} members of orbits")
    findings = [
        exact(context, f"{name}: {claim}", float(measured), most, CHEN)
        for claim, measured, most in (
            (
                "order of the group minus the product of M! 2^M",
                abs(group.order - order_of(sizes[1:-1])),
                0,
            ),
            ("outputs after an element, largest relative change", found["outputs"], ROUNDING),
            ("gradient after an element, relative error", found["gradient"], ROUNDING),
            ("norm after an element over that before, minus 1", found["norm"], ROUNDING),
            (
                f"of {found['members']} members, those with another representative",
                found["others"],
                0,
            ),
            ("networks without exactly one member in the wedge", found["wedge"], 0),
        )
    ]
    if len(sizes) == 3:
        claim = f"{name}: members with another nearest one to a reference"
        findings.append(exact(context, claim, found["cone_others"], 0, CHEN))
    if group.order > FEW:
        return findings
    if len(sizes) == 3:
        claim = f"{name}: networks without exactly one member in the cone"
        findings.append(exact(context, claim, found["cone"], 0, CHEN))
        claim = f"{name}: distance of the nearest member over that of all members, minus 1"
        findings.append(exact(context, claim, found["nearest"], 1e-7, CHEN))
    inside = context.kept(
        f"wedge-{name}", (*given, options.draws), lambda: {"count": in_wedge(net, options)}
    )["count"]
    share, expected = float(inside) / options.draws, 1 / group.order
    spread = math.sqrt(expected * (1 - expected) / options.draws)
    findings.append(
        context.check(
            f"{name}: share of Gaussian points in the wedge",
            share,
            max(0.0, expected - SCORE * spread),
            expected + SCORE * spread,
            source=f"{CHEN}: 1 / {group.order}",
            uncertainty=spread,
            judged_from="test",
        )
    )
    return findings


def students(net: Tanh, teacher: Tensor, options: Options) -> dict[str, Any]:
    """Of each search: the loss, and how far the representative is from the teacher's."""
    rng, rows, reached = np.random.default_rng([options.seed, 2]), [], set()
    there = net.group.canonical(teacher).theta
    for _ in range(options.students):
        start = gaussian(rng, net.ev.n)
        end = hs.find_critical_point(net.ev, start, "minimum", tol=TOL, attempts=1)
        here = net.group.canonical(end.theta)
        rows.append((end.point.loss, float((here.theta - there).abs().max())))
        if end.point.loss <= ZERO:
            reached.add(str(here.element))
    loss, distance = np.array(rows).T
    return {"loss": loss, "distance": distance, "members": len(reached)}


def of_students(context: Context, options: Options) -> tuple[list[Finding], dict[str, Any]]:
    net = Tanh.of((2, 3, 1), np.random.default_rng([options.seed, 3]))
    teacher = theta_of(*TEACHER)
    ev = hs.Evaluator(net.ev.model, nn.MSELoss(), (net.x, net.outputs(teacher)))
    net, given = replace(net, ev=ev), (TEACHER, options.students, options.seed)
    found = context.kept("students", given, lambda: students(net, teacher, options))
    learned = found["loss"] <= ZERO
    print(
        f"2-3-1 students: {learned.sum()} of {len(learned)} searches end at loss 0, at "
        f"{found['members']} of {net.group.order} members of the teacher's orbit; the others at "
        f"losses from {found['loss'][~learned].min(initial=np.inf):.3g}"
    )
    finding = context.check(
        f"2-3-1: {learned.sum()} students of loss 0: representative minus the teacher's",
        found["distance"][learned].max(initial=0.0),
        *(0, SAME),
        source=SUSSMANN,
        judged_from="test" if learned.any() else "paper",
    )
    return [finding], found


# -- 2. and 3. XOR -----------------------------------------------------------------------------


def theta_of(w: Any, b: Any, v: Any, c: float) -> Tensor:
    """Parameters of 2-h-1: w (h, 2), b (h,), v (h,), c."""
    parts = [np.ravel(w), np.ravel(b), np.ravel(v), [c]]
    return torch.from_numpy(np.concatenate(parts).astype(np.float64))


def away(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random numbers of both signs that are not near 0."""
    return rng.uniform(0.5, 2.5, shape) * rng.choice([-1.0, 1.0], shape)


def step(w: float, axis: int) -> tuple[np.ndarray, float]:
    """Weights and bias of a step in one input, around 1/2."""
    return w * np.eye(2)[axis], -w / 2


def idle(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Of a unit with s h = 0: symmetric about the middle, or independent of one input."""
    w = away(rng, 2)
    if rng.integers(2):
        return w, -w.sum() / 2
    w[rng.integers(2)] = 0.0
    return w, float(away(rng, 1)[0])


def both_constant(rng: np.random.Generator) -> Tensor:
    b, v = away(rng, 2), away(rng, 2)
    return theta_of(np.zeros((2, 2)), b, v, -float(v @ expit(b)))


def one_constant(rng: np.random.Generator) -> Tensor:
    (w, b), (constant, v) = idle(rng), away(rng, 2)
    return theta_of([np.zeros(2), w], [constant, b], [v, 0.0], -v * expit(constant))


def no_effect(rng: np.random.Generator) -> Tensor:
    (w1, b1), (w2, b2) = idle(rng), idle(rng)
    return theta_of([w1, w2], [b1, b2], [0.0, 0.0], 0.0)


def opposed_steps(rng: np.random.Generator) -> Tensor:
    """Both units are steps in one input, and cancel."""
    (a, b), axis, v = away(rng, 2), int(rng.integers(2)), float(away(rng, 1)[0])
    other = -v * math.tanh(a / 4) / math.tanh(b / 4)
    (w1, b1), (w2, b2) = step(a, axis), step(b, axis)
    return theta_of([w1, w2], [b1, b2], [v, other], -(v + other) / 2)


def steps_in_both(rng: np.random.Generator) -> Tensor:
    """A step in each input; the only outputs that are not all 1/2."""
    z, heights = ARGUMENT, np.array([2.0, -2.0])
    sizes, order = away(rng, 2), rng.permutation(2)
    (w1, b1), (w2, b2) = (step(float(a), int(axis)) for a, axis in zip(sizes, order))
    v = z * heights / np.tanh(sizes / 4)
    return theta_of([w1, w2], [b1, b2], v, z - float(v @ expit(-sizes / 2)))


def origin(rng: np.random.Generator) -> Tensor:
    return torch.zeros(9, dtype=torch.float64)


KINDS: dict[str, Callable[[np.random.Generator], Tensor]] = {
    "both units constant": both_constant,
    "one constant, the other without effect": one_constant,
    "neither has an effect": no_effect,
    "steps in one input that cancel": opposed_steps,
    "a step in each input": steps_in_both,
    "zero": origin,
}
ARGUMENT = math.log(brentq(lambda u: (1 - u + u * u) ** 3 - u, 0.1, 0.9))
# Outputs sigmoid(z), sigmoid(z), sigmoid(-z) for 1, sigmoid(3 z) for 1.
HIGHER = (3 * expit(ARGUMENT) ** 2 + expit(-3 * ARGUMENT) ** 2) / 4


def left(name: str, options: Options) -> dict[str, Any]:
    """Of random points of a kind: what they are, and the path that leads on."""
    ev, rows, alongs = sigmoid_network(2), [], []
    rng = np.random.default_rng([options.seed, 4, list(KINDS).index(name)])
    loss = HIGHER if KINDS[name] is steps_in_both else 0.25
    for _ in range(options.points):
        point = KINDS[name](rng)
        path, kind = hs.nonascending_path(ev, point, fall=FALL), hs.classify(ev, point).kind
        rows.append(
            (
                float(ev.gradient(point).norm()),
                abs(ev.loss(point).item() / loss - 1),
                path.is_lower,
                path.rise / path.rounding,
                len(path.points) - 1,
                kind == "minimum",
            )
        )
        alongs.append(path.loss)
    names = ("gradient", "loss_error", "is_lower", "rise", "moves", "is_minimum")
    kept = dict(zip(names, np.array(rows, dtype=np.float64).T))
    return {**kept, "along": max(alongs, key=len)}


def ends_of_xor(options: Options) -> dict[str, Any]:
    """Losses and sizes of the critical points that searches find, and whether they are minima."""
    ev, rng, rows = sigmoid_network(2), np.random.default_rng([options.seed, 5]), []
    for _ in range(options.searches):
        end = hs.find_critical_point(ev, gaussian(rng, ev.n), max_steps=60)
        if end.converged:
            rows.append((end.point.loss, float(end.theta.abs().max()), end.point.kind == "minimum"))
    names = ("loss", "size", "is_minimum")
    return dict(zip(names, np.array(rows, dtype=np.float64).reshape(-1, 3).T))


def of_xor(context: Context, options: Options) -> tuple[list[Finding], dict[str, Any]]:
    given, all_ = (options.points, options.seed), {}
    for name in KINDS:
        file = name.replace(" ", "-").replace(",", "")
        all_[name] = context.kept(file, given, lambda name=name: left(name, options))
        print(
            f"XOR, {name}: {all_[name]['is_lower'].sum():.0f} of {options.points} paths to a loss "
            f"lower by 1 %, in {np.median(all_[name]['moves']):.0f} moves (median)"
        )
    whole = {key: np.concatenate([found[key] for found in all_.values()]) for key in all_["zero"]}
    name = f"XOR 2-2-1, {len(whole['gradient'])} stationary points"
    findings = [
        exact(context, f"{name}: {claim}", measured, most, HAMEY)
        for claim, measured, most in (
            ("|gradient|", whole["gradient"].max(), 1e-14),
            ("loss over the closed form, minus 1", whole["loss_error"].max(), ROUNDING),
            ("strict minima", whole["is_minimum"].sum(), 0),
        )
    ]
    for name, found in all_.items():
        claim = f"XOR 2-2-1, {name}: of {options.points} points, those without a path to lower loss"
        findings.append(exact(context, claim, (found["is_lower"] == 0).sum(), 0, HAMEY))
    paths = {name: found["along"] for name, found in all_.items()}
    given = (options.searches, options.seed)
    end = context.kept("xor-ends", given, lambda: ends_of_xor(options))
    finite = (end["loss"] > SAME) & (end["size"] <= FAR)
    known = np.abs(end["loss"][finite, None] - [0.25, HIGHER]).min(axis=1, initial=np.inf)
    print(
        f"XOR: {len(finite)} of {options.searches} searches end at critical points, {finite.sum()} "
        f"above 0 at weights of at most {FAR:g}; losses of the others: "
        f"{sorted({round(float(loss), 4) for loss in end['loss'][~finite]})}"
    )
    name = f"XOR 2-2-1, {finite.sum()} finite critical points of {options.searches} searches"
    findings += [
        exact(
            context,
            f"{name}: loss minus the nearest of 1/4 and {HIGHER:.6f}",
            *(known.max(initial=0.0), 1e-9, HAMEY),
        ),
        exact(context, f"{name}: strict minima", end["is_minimum"][finite].sum(), 0, HAMEY),
    ]
    return findings, paths


def centre(hidden: int, size: float) -> Tensor:
    """Units that answer to (0, 0) alone; outputs (0, 2/3, 2/3, 2/3) as size grows."""
    ones = np.ones(hidden)
    return theta_of(np.full((hidden, 2), -2 * size), size * ones, -size * ones, math.log(2))


def steepest(ev: hs.Evaluator, theta: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, losses) along steepest descent, by steps so short that the loss falls."""
    lengths, losses, step = [0.0], [ev.loss(theta).item()], STEP
    for _ in range(steps):
        gradient = ev.gradient(theta)
        moved = theta - step * gradient / gradient.norm()
        loss = ev.loss(moved).item()
        if loss >= losses[-1]:
            step /= 2
            continue
        lengths.append(lengths[-1] + step)
        losses.append(loss)
        theta, step = moved, min(STEP, 1.5 * step)
    return np.array(lengths), np.array(losses)


def region(hidden: int, options: Options) -> dict[str, Any]:
    """Losses and outward slopes in the region, and descents that begin in it."""
    ev, rng = sigmoid_network(hidden), np.random.default_rng([options.seed, 6, hidden])
    outward = centre(hidden, 1.0)
    outward[-1] = 0.0
    losses, slopes, lowest = [], [], []
    for size in SIZES:
        spread = 1 + REGION * torch.from_numpy(rng.uniform(-1, 1, (300, ev.n)))
        nearby = torch.cat([centre(hidden, size)[None], centre(hidden, size) * spread])
        losses.append(ev.loss(nearby).numpy() - LIMIT)
        slopes += [float(ev.gradient(point) @ outward) for point in nearby[:6]]
    descents = []
    for _ in range(options.descents):
        start = centre(hidden, SIZES[0])
        start *= 1 + REGION * torch.from_numpy(rng.uniform(-1, 1, ev.n))
        descents.append(steepest(ev, start, options.steps))
        lowest.append(descents[-1][1][-1] - LIMIT)
    return {
        "losses": np.array(losses),
        "slopes": np.array(slopes),
        "lowest": np.array(lowest),
        "length": descents[0][0],
        "descent": descents[0][1] - LIMIT,
    }


def of_region(context: Context, options: Options) -> tuple[list[Finding], dict[int, Any]]:
    findings, all_ = [], {}
    for hidden in (2, 3):
        given = (hidden, options.descents, options.steps, options.seed)
        found = context.kept(f"region-{hidden}", given, lambda h=hidden: region(h, options))
        all_[hidden], name = found, f"XOR 2-{hidden}-1, region"
        source = BOERS if hidden == 3 else "limit 1/6"
        findings += [
            context.check(
                f"{name}: least loss of {found['losses'].size} points minus 1/6",
                found["losses"].min(),
                *(1e-15, math.inf),
                source=source,
                judged_from="test",
            ),
            context.check(
                f"{name}: largest slope of the loss outward",
                found["slopes"].max(),
                *(-math.inf, -1e-15),
                source=source,
                judged_from="test",
            ),
            context.check(
                f"{name}: least loss of {options.descents} steepest descents minus 1/6",
                found["lowest"].min(),
                *(-1e-15, math.inf),
                source=source,
                judged_from="test",
            ),
        ]
    return findings, all_


# -- 4. ReLU -----------------------------------------------------------------------------------


def relu_network(hidden: int) -> hs.Evaluator:
    model = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1)).double()
    data = torch.tensor(XOR).double(), torch.tensor(LABELS).double()[:, None]
    return hs.Evaluator(model, nn.MSELoss(), data)


def of_relu(context: Context, options: Options) -> list[Finding]:
    rng = np.random.default_rng([options.seed, 7])
    wide = relu_network(options.units)
    share = hs.dead_units(wide, gaussian(rng, wide.n)).count / options.units
    spread = math.sqrt(DEAD * (1 - DEAD) / options.units)
    findings = [
        context.check(
            f"share of {options.units} ReLU units that are dead on XOR",
            share,
            *(DEAD - SCORE * spread, DEAD + SCORE * spread),
            source="solid angle of four planes",
            uncertainty=spread,
            judged_from="test",
        )
    ]
    found = context.kept("relu", (options.networks, options.seed), lambda: blind(options))
    dead = int(found["dead"])
    return findings + [
        exact(context, f"ReLU 2-8-1, {dead} dead units: {claim}", found[key], 0, "definition")
        for key, claim in (
            ("miscounted", "networks in which others are found than are negative on all points"),
            ("gradient", "largest |entry of the gradient|"),
            ("hessian", "largest |entry of the Hessian| in their rows"),
            ("loss", "change of the loss when they move within their margin"),
            ("moved", "change of their parameters by gradient descent"),
        )
    ]


def blind(options: Options) -> dict[str, float]:
    """The largest of what should be 0 at dead units of random networks."""
    ev, rng = relu_network(8), np.random.default_rng([options.seed, 8])
    x = torch.tensor(XOR).double()
    found = dict.fromkeys(("dead", "miscounted", "gradient", "hessian", "loss", "moved"), 0.0)
    for _ in range(options.networks):
        theta = gaussian(rng, ev.n)
        w, b, _, _ = ev.layout.unflatten(theta).values()
        highest = (x @ w.T + b).amax(0)  # of each unit's argument
        layer = hs.dead_units(ev, theta).layers[0]
        found["dead"] += len(layer.dead)
        found["miscounted"] += layer.dead.tolist() != (highest < 0).nonzero().flatten().tolist()
        marks = theta.new_zeros(4, 8)  # of the parameters of each dead unit
        marks[:, layer.dead] = 1.0
        theirs = torch.cat([marks[:2].T.flatten(), marks[2], marks[3], theta.new_zeros(1)])
        at = theirs.nonzero().flatten()
        if not len(at):
            continue
        rows = hs.Hessian(ev, theta) @ torch.eye(ev.n, dtype=theta.dtype)[:, at]
        # Points have entries of 0 and 1: the argument rises by less than 3 times the change.
        change = (
            theirs * torch.from_numpy(rng.uniform(-1, 1, ev.n)) * -highest[layer.dead].max() / 3
        )
        end = theta
        for _ in range(DESCENT):
            end = end - 0.1 * ev.gradient(end)
        news = {
            "gradient": ev.gradient(theta)[at].abs().max(),
            "hessian": rows.abs().max(),
            "loss": abs(ev.loss(theta + change) - ev.loss(theta)),
            "moved": (end - theta)[at].abs().max(),
        }
        found |= {name: max(found[name], float(x)) for name, x in news.items()}
    return found


# ----------------------------------------------------------------------------------------------


def figure(paths: dict[str, Any], regions: dict[int, Any], seed: int) -> Figure:
    picture = Figure(figsize=(11, 3.6), layout="constrained")
    axes = picture.subplots(1, 3)
    net = Tanh.of((2, 2, 1), np.random.default_rng(seed))
    rng, all_ = np.random.default_rng(seed), []
    for _ in range(12):
        theta = gaussian(rng, net.ev.n)
        members = [net.group.apply(g, theta) for g in net.group.elements()]
        all_.append(np.array([net.group.keys(member)[0].numpy() for member in members]))
    for orbit in all_:
        axes[0].plot(*orbit.T, ".", ms=5)
    axes[0].fill([0, 3, 3], [0, 0, 3], color="0.85", zorder=0)
    axes[0].set_xlim(-3, 3)
    axes[0].set_ylim(-3, 3)
    axes[0].set_aspect("equal")
    axes[0].set_xlabel("bias of unit 1")
    axes[0].set_ylabel("bias of unit 2")
    axes[0].set_title("12 orbits of 2-2-1, and the wedge")
    for name, along in paths.items():
        axes[1].plot(np.arange(len(along)), along, "o-", ms=3, lw=1, label=name)
    axes[1].set_xlabel("straight moves")
    axes[1].set_ylabel("loss of XOR")
    axes[1].set_title("from stationary points of 2-2-1")
    for hidden, found in regions.items():
        axes[2].semilogy(found["length"], found["descent"], label=f"2-{hidden}-1")
    axes[2].set_xlabel("length of steepest descent")
    axes[2].set_ylabel("loss of XOR minus 1/6")
    axes[2].set_title("from the region, outward")
    for one in axes[1:]:
        one.legend(frameon=False, fontsize=7)
    return picture


def run(context: Context, options: Options) -> Outcome:
    findings: list[Finding] = []
    for sizes in options.shapes:
        findings += of_group(context, sizes, options)
    more, learned = of_students(context, options)
    findings += more
    more, paths = of_xor(context, options)
    findings += more
    more, regions = of_region(context, options)
    findings += more + of_relu(context, options)
    values = {f"students/{name}": x for name, x in learned.items()}
    values |= {f"xor/{name}": x for name, x in paths.items()}
    values |= {f"region {h}/{name}": x for h, found in regions.items() for name, x in found.items()}
    return Outcome(findings, values, figure(paths, regions, options.seed))


STUDY = Study(
    title="Do symmetries of tanh, XOR's stationary points and dead ReLU units do what is known?",
    source=f"{CHEN}; {HAMEY}; Sprinkhuizen-Kuyper & Boers 1999",
    run=run,
    scales={
        "test": Options(
            shapes=((2, 2, 1), (2, 3, 2, 1), (64, 20, 10)),
            **{"networks": 1, "draws": 2000, "students": 1, "searches": 3, "points": 1},
            **{"descents": 1, "steps": 60, "units": 10_000},
        ),
        "cpu": Options(),
    },
)
