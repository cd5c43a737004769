"""Linear networks: all that is known of their loss surface in closed form, checked.

1. Baldi & Hornik (1989, "Neural networks and principal component analysis"). A linear autoencoder
   x -> A B x has p hidden units, inputs of second moments Sigma = U diag(lambda) U^T, and the loss
   tr((A B - I) Sigma (A B - I)^T) / 2. Its critical points are A B = U_I U_I^T for sets I of at
   most p components, with the loss (sum of the lambda outside I) / 2; all but the p largest are
   saddles. At A = (U_I, 0), B = A^T the form of second order falls apart into forms of two
   variables, and the eigenvalues are, for i in I and j outside,

       0 and 2 lambda_i, each |I| times,
       (lambda_i + lambda_j) / 2 +- ((lambda_i - lambda_j)^2 / 4 + lambda_j^2)^(1/2),
       and for each of the p - |I| idle units +- lambda_j, and 2 |I| times 0.

   The index is the number of pairs with lambda_j > lambda_i, plus (p - |I|) (n - |I|). At A C,
   C^-1 B, with any invertible C, it is the same by Sylvester's law. Both points are classified for
   every set I. Searches from random starts end at critical points, which are compared with the
   theorem. A network of the zoo is trained by the command ``train``, and ``critical`` searches on.
2. Kawaguchi (2016, arXiv:1605.07110, theorem 2.3). Deep linear networks with squared error: local
   minima are global; with two layers each saddle has a negative eigenvalue; from three on not each
   has, but those at which the product of all layers but the first and the last has full rank.
   Searches from many starts, for a minimum and for any critical point. An end above the least loss
   without negative curvature is a saddle where a path that never ascends leads on
   (hs.nonascending_path). The chain (w_1 ... w_H - 1)^2 / 2 has no negative curvature where three
   or more weights are 0: at m zeros the terms of order m are the first. Two zeros are not enough,
   also where H = 3: the Hessian has the eigenvalues -+|product of the others|.
3. Goodfellow, Vinyals & Saxe (2015, arXiv:1412.6544): (1 - w_1 w_2)^2 along lines and on the plane.

Inputs are digits of few pixels, centred; targets of deep networks are the one-hot labels of three
digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor
from torch.utils.data import TensorDataset

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.pictures import of_classes
from hessian_spectrum import zoo
from hessian_spectrum.zoo import model_for
from hessian_spectrum.zoo.objectives import problem_for

Kind = Literal["minimum", "any"]
BALDI, KAWAGUCHI = "Baldi & Hornik 1989", "Kawaguchi 2016"
GOODFELLOW = "Goodfellow, Vinyals & Saxe 2015"
DIGITS = 3  # classes of the targets
TOL = 1e-10  # of |gradient|, of searches
KINDS: tuple[Kind, ...] = ("minimum", "any")  # of searches
WIDE = 2.0  # the plane of two weights, from the origin
# Beside saddles of order m searches stop at up to TOL^(1 / (m - 1)): 5e-4 for the order 4.
RANK = 1e-2  # a singular value that is not 0
SAME = 1e-6  # a product of matrices, or a loss over the least, minus 1, is told from the next
ROUNDING = 1e-12  # relative
LINES = {  # of two weights
    "between two solutions": ((-1.0, -1.0), (1.0, 1.0)),
    "from the saddle to a solution": ((0.0, 0.0), (1.0, 1.0)),
    "from a start to a solution": ((0.1, -0.2), (1.6, 0.625)),
}


@dataclass(frozen=True)
class Options:
    """
    Args:
        side: the autoencoder's inputs are digits of side x side pixels, and ``units`` its hidden
            units.
        searches: random starts, of the autoencoder and of each deep network.
        shapes: layer sizes of deep networks; the first is a square, of pixels, the last DIGITS.
        trained: hidden units of the autoencoder of all 64 pixels, none: 0; and ``epochs`` of it.
        chains: numbers of weights.
        points: of each line, and of each side of the plane.
    """

    side: int = 4
    units: int = 3
    samples: int = 200
    searches: int = 50
    shapes: tuple[tuple[int, ...], ...] = ((4, 2, 3), (9, 2, 3), (4, 2, 2, 3), (4, 3, 2, 2, 3))
    trained: int = 2
    epochs: int = 200
    chains: tuple[int, ...] = (2, 3, 4)
    points: int = 101
    seed: int = 0


def evaluator(name: str, x: Tensor, y: Tensor) -> hs.Evaluator:
    """The zoo's linear network of this name with squared error, in float64."""
    data = TensorDataset(x, y)
    return problem_for(name, "mse", model_for(data, name, "tanh", 0).double(), data).evaluator()


# -- 1. autoencoders ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Autoencoder:
    """A linear one of p hidden units, and what the theorem says of its critical points."""

    ev: hs.Evaluator
    p: int
    values: NDArray[np.float64]  # (n,) of the second moments, ascending
    vectors: NDArray[np.float64]  # (n, n), columns

    @classmethod
    def of(cls, x: Tensor, p: int) -> Autoencoder:
        n, no_labels = x.shape[1], torch.zeros(len(x), dtype=torch.int64)
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        ev = evaluator(f"autoencoder-{n}-{p}-{n}", x, no_labels)
        return cls(ev, p, values.numpy(), vectors.numpy())

    @property
    def n(self) -> int:
        return len(self.values)

    def choices(self) -> Iterator[tuple[int, ...]]:
        """All sets of at most p components; the last is that of the p largest."""
        for size in range(self.p + 1):
            yield from combinations(range(self.n), size)

    def point(self, chosen: tuple[int, ...], mix: NDArray[np.float64] | None = None) -> Tensor:
        """theta with A = (U_I, 0) C and B = C^-1 (U_I, 0)^T; C is ``mix``, the identity of None."""
        mix = np.eye(self.p) if mix is None else mix
        kept = np.zeros((self.n, self.p))
        kept[:, : len(chosen)] = self.vectors[:, list(chosen)]
        return torch.from_numpy(np.r_[np.linalg.solve(mix, kept.T).ravel(), (kept @ mix).ravel()])

    def loss(self, chosen: tuple[int, ...]) -> float:
        return float(np.delete(self.values, chosen).sum() / 2)

    def eigenvalues(self, chosen: tuple[int, ...]) -> NDArray[np.float64]:
        """Of the Hessian at ``point(chosen)``, ascending."""
        inside, outside = self.values[list(chosen)], np.delete(self.values, chosen)
        size, idle = len(inside), self.p - len(inside)
        mean = (inside[:, None] + outside) / 2
        root = np.hypot((inside[:, None] - outside) / 2, outside)
        pairs = [mean - root, mean + root]
        parts = [*pairs, np.repeat(2 * inside, size), np.zeros(size**2 + 2 * size * idle)]
        parts += [np.repeat(sign * outside, idle) for sign in (1, -1)]
        return np.sort(np.concatenate([part.ravel() for part in parts]))

    def index(self, chosen: tuple[int, ...]) -> int:
        inside, outside = self.values[list(chosen)], np.delete(self.values, chosen)
        pairs = int((outside > inside[:, None]).sum())
        return pairs + (self.p - len(inside)) * len(outside)

    def null(self, size: int) -> int:
        """How many eigenvalues are 0."""
        return size**2 + 2 * size * (self.p - size)

    def nearest(self, theta: Tensor) -> tuple[tuple[int, ...], float]:
        """(I, distance) of the projection that is nearest to A B, by entries."""
        b, a = (w.numpy() for w in self.ev.layout.unflatten(theta).values())
        turned = self.vectors.T @ a @ b @ self.vectors
        share = np.round(np.diag(turned)).clip(0, 1)
        chosen = tuple(int(i) for i in np.flatnonzero(share))
        return chosen, float(np.abs(turned - np.diag(share)).max())


def invertible(p: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random matrix of singular values between e^-1/2 and e^1/2."""
    sides = [np.linalg.qr(rng.standard_normal((p, p)))[0] for _ in range(2)]
    found: NDArray[np.float64] = sides[0] * np.exp(rng.uniform(-0.5, 0.5, p)) @ sides[1]
    return found


def all_points(net: Autoencoder, seed: int) -> dict[str, Any]:
    """Of each set of components, what is found at the two points that belong to it."""
    rng, rows = np.random.default_rng(seed), []
    for chosen in net.choices():
        plain = hs.classify(net.ev, net.point(chosen))
        mixed = hs.classify(net.ev, net.point(chosen, invertible(net.p, rng)))
        assert plain.eigenvalues is not None
        exact, counts = net.eigenvalues(chosen), (net.index(chosen), net.null(len(chosen)))
        row = {
            "size": len(chosen),
            "index": counts[0],
            "loss": plain.loss,
            "loss_error": abs(plain.loss / net.loss(chosen) - 1),
            "gradient": max(plain.distance, mixed.distance),
            "eigenvalue_error": np.abs(plain.eigenvalues - exact).max() / exact[-1],
            "as_known": all((one.negative, one.null) == counts for one in (plain, mixed)),
            "is_saddle": plain.kind == mixed.kind == "saddle",
            "negative": max(plain.negative_most - plain.null, mixed.negative_most - mixed.null),
        }
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def ends(net: Autoencoder, options: Options) -> dict[str, Any]:
    """Of each search that ends at a critical point: what it is, and what the theorem says."""
    rng, rows = np.random.default_rng([options.seed, 1]), []
    for _ in range(options.searches):
        start = random_start(net.ev, rng)
        found = hs.find_critical_point(net.ev, start, tol=TOL)
        if found.converged:
            chosen, distance = net.nearest(found.theta)
            low, high = found.point.index
            is_known = low <= net.index(chosen) <= high
            rows.append((distance, found.point.loss, net.index(chosen), is_known))
    return dict(zip(("distance", "loss", "index", "is_known"), np.array(rows).reshape(-1, 4).T))


def of_autoencoder(
    context: Context, options: Options
) -> tuple[list[Finding], dict[str, Any], dict[str, Any]]:
    x, _ = of_classes(context, "digits", options.side, 10, options.samples)
    net = Autoencoder.of(x, options.units)
    given = (options.side, options.units, options.samples, options.seed)
    at = context.kept("autoencoder", given, lambda: all_points(net, options.seed))
    end = context.kept("ends", (*given, options.searches), lambda: ends(net, options))
    name, count = f"autoencoder {net.n}-{net.p}-{net.n}", len(at["loss"])
    print(
        f"{name}: {count} sets of components, indices {at['index'].min()} to "
        f"{at['index'].max()}; {len(end['loss'])} of {options.searches} searches end at critical "
        f"points, of indices {sorted(set(end['index'].astype(int).tolist()))}"
    )
    numbers = {
        f"loss at {count} critical points over the closed form, minus 1": at["loss_error"].max(),
        "|gradient| there over the largest eigenvalue": at["gradient"].max(),
        "error of all eigenvalues there, over the largest": at["eigenvalue_error"].max(),
    }
    counts = {
        "sets at whose points the certified index or the number of zeros is another": (
            ~at["as_known"]
        ).sum(),
        "sets but the p largest at whose points no saddle is certified": (
            ~at["is_saddle"][:-1]
        ).sum(),
        "negative eigenvalues at the p largest": at["negative"][-1],
        "ends of searches whose certified index is another": (end["is_known"] == 0).sum(),
    }
    nearest = f"{len(end['loss'])} ends of searches: A B minus the nearest projection, by entries"
    findings = [
        *(exact(context, f"{name}: {claim}", x, ROUNDING, BALDI) for claim, x in numbers.items()),
        *(exact(context, f"{name}: {claim}", x, 0, BALDI) for claim, x in counts.items()),
        exact(context, f"{name}: {nearest}", end["distance"].max(initial=0), SAME, BALDI),
    ]
    return findings, at, end


def exact(context: Context, claim: str, measured: float, most: float, source: str) -> Finding:
    """A claim that holds at any scale."""
    return context.check(claim, measured, 0, most, source=source, judged_from="test")


def of_training(context: Context, options: Options) -> tuple[list[Finding], dict[str, Any]]:
    """The zoo's autoencoder of the digits' 64 pixels, trained, and searched on for a minimum."""
    name = f"autoencoder-64-{options.trained}-64"
    problem = ("--model", name, "--loss", "mse", "--dataset", "digits")
    rule = ("--optimizer", "adam", "--lr", 0.01, "--batch-size", 100)
    many = ("--epochs", options.epochs, "--every", options.epochs)
    trained = context.network(*problem, *rule, *many) / f"epoch-{options.epochs:04d}.pt"
    found = []
    for find in ((), ("--find", "minimum")):
        path = context.folder / f"{name}-{options.epochs}{'-'.join(find)}.h5"
        given = ("--checkpoint", trained, "--dtype", "float64", *find)
        with context.computed(path, "critical", *problem, *given) as run:
            found.append(run["critical"][0])
        print(found[-1])
    x = zoo.load_dataset("digits").tensors[0].flatten(1).double()
    values = torch.linalg.eigvalsh(x.T @ x / len(x)).numpy()
    least, empty = values[: -options.trained].sum() / 2, int((x == 0).all(0).sum())
    over = [point.loss / least - 1 for point in found]
    claim = f"{name}: trained loss over the closed form, minus 1"
    findings = [
        context.check(claim, over[0], -ROUNDING, 0.01, source=BALDI),
        exact(context, f"{name}: the same, searched on for a minimum", abs(over[1]), 1e-9, BALDI),
        exact(
            context, f"{name}: certified negative eigenvalues there", found[1].negative, 0, BALDI
        ),
        exact(
            context,
            f"{name}: zeros there, less p^2 and p for each pixel that is always 0",
            *(abs(found[1].null - options.trained * (options.trained + empty)), 0, BALDI),
        ),
    ]
    return findings, {"over": over, "least": least}


# -- 2. deep networks --------------------------------------------------------------------------


@dataclass(frozen=True)
class Deep:
    """A deep linear network with digits as inputs, in two forms: the engine's and written out."""

    sizes: tuple[int, ...]
    ev: hs.Evaluator
    exact: hs.DeepLinear

    @classmethod
    def of(cls, context: Context, sizes: tuple[int, ...], samples: int) -> Deep:
        x, y = of_classes(context, "digits", math.isqrt(sizes[0]), DIGITS, samples)
        ev = evaluator(f"dlinear-{'-'.join(map(str, sizes))}", x, y.argmax(1))
        return cls(sizes, ev, hs.DeepLinear.of(sizes, x.numpy(), y.numpy()))

    def has_full_rank(self, theta: Tensor) -> bool:
        """Is the rank of all layers but the first and the last that of the narrowest hidden one?"""
        found = np.eye(self.sizes[1])
        for w in self.exact.weights(theta.numpy())[1:-1]:
            found = w @ found
        values = np.linalg.svd(found, compute_uv=False)
        return int((values > RANK * max(1.0, values[0])).sum()) == min(self.sizes[1:-1])


def random_start(ev: hs.Evaluator, rng: np.random.Generator) -> Tensor:
    """Gaussian, from next to the origin, a saddle, to far out."""
    size = math.exp(rng.uniform(math.log(0.1), 0.0))
    return torch.from_numpy(size * rng.standard_normal(ev.n))


def searched(deep: Deep, kind: Kind, options: Options) -> dict[str, Any]:
    """Of each search that ends at a critical point: what it is by both forms."""
    rng, rows = np.random.default_rng([options.seed, 2, *deep.sizes]), []
    for _ in range(options.searches):
        end = hs.find_critical_point(deep.ev, random_start(deep.ev, rng), kind, tol=TOL)
        if end.outcome not in ("found", "undecided", "other kind"):
            continue
        assert end.point.eigenvalues is not None
        values = np.linalg.eigvalsh(deep.exact.hessian(end.theta.numpy()))
        over = end.point.loss / deep.exact.least_loss - 1
        is_open = over > SAME and not end.point.negative  # a minimum, or a saddle of higher order
        row = {
            "over": over,
            "smallest": end.point.smallest,
            "negative": end.point.negative,
            "error": np.abs(values - end.point.eigenvalues).max() / max(1.0, values[-1]),
            "full_rank": deep.has_full_rank(end.theta),
            "is_left": is_open and hs.nonascending_path(deep.ev, end.theta, fall=SAME).is_lower,
        }
        rows.append([float(x) for x in row.values()])
    names = ("over", "smallest", "negative", "error", "full_rank", "is_left")
    return dict(zip(names, np.array(rows).reshape(-1, len(names)).T))


def of_deep(
    context: Context, sizes: tuple[int, ...], options: Options
) -> tuple[list[Finding], dict[str, Any]]:
    deep, name = Deep.of(context, sizes, options.samples), "-".join(map(str, sizes))

    def kept(kind: Kind) -> dict[str, Any]:
        given = (sizes, kind, options.samples, options.searches, options.seed)
        return context.kept(f"searches-{name}-{kind}", given, lambda: searched(deep, kind, options))

    found = {kind: kept(kind) for kind in KINDS}
    end = {key: np.concatenate([found[kind][key] for kind in KINDS]) for key in found["any"]}
    is_above, is_flat = end["over"] > SAME, end["negative"] == 0
    minima = int((is_flat & (end["is_left"] == 0)).sum())
    at_least = int((is_flat & ~is_above).sum())
    low = binomtest(at_least, minima).proportion_ci(0.95, "exact").low if minima else 0.0
    print(
        f"{name}: of {2 * options.searches} searches {len(is_flat)} end at critical points, "
        f"{minima} at local minima, {at_least} of those at the least loss (share at least "
        f"{low:.3f}, 95 %); {is_above.sum()} above it, {(is_above & is_flat).sum()} of them "
        "without negative curvature"
    )
    full = is_above & (end["full_rank"] > 0)
    of_rank = " whose inner layers have full rank" if len(sizes) > 3 else ""
    findings = [
        context.check(
            f"{name}: of {minima} local minima that searches end at, the share at the least loss",
            at_least / max(1, minima),
            *(1, 1),
            source=KAWAGUCHI,
            uncertainty=1 - low,
            judged_from="test",
        ),
        exact(
            context,
            f"{name}: of {full.sum()} saddles{of_rank}, those without negative curvature",
            *((full & is_flat).sum(), 0, KAWAGUCHI),
        ),
        exact(
            context,
            f"{name}: eigenvalues at all ends, those of the written-out Hessian: difference over "
            "the largest or 1",
            *(end["error"].max(initial=0), 1e-10, "the engine and the written-out Hessian"),
        ),
    ]
    if len(sizes) > 3:
        origin = hs.classify(deep.ev, torch.zeros(deep.ev.n))
        path = hs.nonascending_path(deep.ev, torch.zeros(deep.ev.n))
        print(f"{name}, origin: {path}")
        findings += [
            exact(
                context,
                f"{name}, origin: largest |eigenvalue|",
                *(max(origin.largest, -origin.smallest), 0, KAWAGUCHI),
            ),
            context.check(
                f"{name}, origin: a path that never ascends leads to lower loss (1 or 0)",
                path.is_lower,
                *(1, 1),
                source=KAWAGUCHI,
                judged_from="test",
            ),
        ]
    return findings, end


def chain(depth: int) -> hs.Evaluator:
    """(w_1 ... w_H - 1)^2 / 2."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return evaluator("dlinear" + (depth + 1) * "-1", one, torch.zeros(1, dtype=torch.int64))


def of_chains(context: Context, depths: tuple[int, ...], seed: int) -> list[Finding]:
    """Chains of so many weights, with each set of two or more of them 0."""
    rng, others, negative, level, stuck, errors = np.random.default_rng(seed), 0, 0, 0, 0, [0.0]
    for depth in depths:
        ev = chain(depth)
        for zeros in (z for m in range(2, depth + 1) for z in combinations(range(depth), m)):
            w = rng.uniform(0.5, 2.0, depth) * rng.choice([-1.0, 1.0], depth)
            w[list(zeros)] = 0.0
            theta, product = torch.from_numpy(w), math.prod(np.delete(w, zeros))
            point, path = hs.classify(ev, theta), hs.nonascending_path(ev, theta)
            others += (point.kind, point.order) != ("saddle", len(zeros))
            stuck += not path.is_lower
            if len(zeros) == 2:
                errors += [abs(point.smallest + abs(product)), abs(point.largest - abs(product))]
            else:
                level += 1
                negative += point.negative > 0
    name = f"chains of {min(depths)} to {max(depths)} weights"
    return [
        exact(
            context,
            f"{name}, two of them 0: eigenvalues at the ends minus -+|product of the others|",
            *(max(errors), ROUNDING, "closed form"),
        ),
        exact(
            context,
            f"{name}, {level} points with three or more of them 0: those with negative curvature",
            *(negative, 0, KAWAGUCHI),
        ),
        exact(
            context,
            f"{name}: points that are no saddle of the order of the number of zeros",
            *(others, 0, "closed form"),
        ),
        exact(
            context,
            f"{name}: points from which no path that never ascends was found to lower loss",
            *(stuck, 0, KAWAGUCHI),
        ),
    ]


# -- 3. two weights ----------------------------------------------------------------------------


def of_two_weights(context: Context, points: int) -> tuple[list[Finding], dict[str, Any]]:
    """Twice our loss is (1 - w_1 w_2)^2."""
    ev, findings = chain(2), []
    values: dict[str, Any] = {}
    lines = {}
    for name, (start, end) in LINES.items():
        between = [torch.tensor(w, dtype=torch.float64) for w in (start, end)]
        curve = lines[name] = hs.interpolate(ev, *between, points, window=(-0.5, 1.5))
        weights = np.array(start) + curve.t[:, None] * np.subtract(end, start)
        known = (1 - weights.prod(1)) ** 2
        values |= {f"{name}/t": curve.t, f"{name}/loss": 2 * curve.loss}
        claim = f"(1 - w1 w2)^2 {name}: largest error over the largest value"
        error = np.abs(2 * curve.loss - known).max() / known.max()
        findings.append(exact(context, claim, error, ROUNDING, GOODFELLOW))
    corners = [torch.tensor(w, dtype=torch.float64) for w in ((0, 0), (1, 0), (0, 1))]
    plane = hs.plane(ev, corners, *2 * [np.linspace(-WIDE, WIDE, points)])
    known = (1 - np.outer(plane.a, plane.b)) ** 2
    error = np.abs(2 * plane.loss - known).max() / known.max()
    barrier = 2 * lines["between two solutions"].barrier()
    claim = "(1 - w1 w2)^2 between two solutions: barrier minus that of the saddle, 1"
    findings += [
        exact(
            context,
            "(1 - w1 w2)^2 on the plane: largest error over the largest value",
            *(error, ROUNDING, GOODFELLOW),
        ),
        exact(context, claim, abs(barrier - 1), ROUNDING, GOODFELLOW),
    ]
    return findings, {**values, "plane/a": plane.a, "plane/loss": 2 * plane.loss}


# ----------------------------------------------------------------------------------------------


def figure(
    at: dict[str, Any],
    end: dict[str, Any],
    deep: dict[str, dict[str, Any]],
    two: dict[str, Any],
) -> Figure:
    picture = Figure(figsize=(11, 3.6), layout="constrained")
    axes = picture.subplots(1, 3)
    axes[0].plot(at["index"], at["loss"], ".", ms=4, label="sets of components")
    axes[0].plot(end["index"], end["loss"], "o", mfc="none", label="ends of searches")
    axes[0].set_xlabel("index")
    axes[0].set_ylabel("loss")
    axes[0].set_title("autoencoder: critical points")
    for name, found in deep.items():
        axes[1].plot(found["over"].clip(SAME / 100), found["smallest"], ".", ms=5, label=name)
    axes[1].set_xscale("log")
    axes[1].axvline(SAME, color="grey", lw=0.5)
    axes[1].set_xlabel("loss over the least, minus 1")
    axes[1].set_ylabel("smallest eigenvalue")
    axes[1].set_title("deep networks: ends of searches")
    levels = [0.01, 0.1, 0.5, 1, 2, 4, 8]
    axes[2].contour(two["plane/a"], two["plane/a"], two["plane/loss"].T, levels)
    for name, ends_ in LINES.items():
        wide = 4 if name == "between two solutions" else 1.5
        axes[2].plot(*np.transpose(ends_), "o-", ms=wide + 1, lw=wide, label=name)
    axes[2].set_xlim(-WIDE, WIDE)
    axes[2].set_ylim(-WIDE, WIDE)
    axes[2].set_xlabel("w1")
    axes[2].set_ylabel("w2")
    axes[2].set_title("(1 - w1 w2)^2")
    for one in axes:
        one.legend(framealpha=0.9, edgecolor="none", fontsize=8)
    return picture


def run(context: Context, options: Options) -> Outcome:
    findings, at, end = of_autoencoder(context, options)
    values = {f"points/{key}": x for key, x in at.items()}
    values |= {f"ends/{key}": x for key, x in end.items()}
    if options.trained:
        more, trained = of_training(context, options)
        findings += more
        values |= {f"trained/{key}": x for key, x in trained.items()}
    deep = {}
    for sizes in options.shapes:
        name = "-".join(map(str, sizes))
        more, deep[name] = of_deep(context, sizes, options)
        findings += more
        values |= {f"{name}/{key}": x for key, x in deep[name].items()}
    findings += of_chains(context, options.chains, options.seed)
    more, two = of_two_weights(context, options.points)
    return Outcome(findings + more, {**values, **two}, figure(at, end, deep, two))


STUDY = Study(
    title="Do linear networks have the loss surface that is known?",
    source=f"{BALDI}; {KAWAGUCHI}; {GOODFELLOW}",
    run=run,
    scales={
        "test": Options(
            *(2, 2, 100),
            **{"searches": 2, "shapes": ((4, 2, 3), (4, 2, 2, 3)), "chains": (2, 3), "trained": 0},
        ),
        "cpu": Options(),
    },
)
