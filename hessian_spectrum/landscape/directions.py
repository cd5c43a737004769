"""Directions in parameter space: random and normalized, eigenvectors, gradients, differences.

Each direction has a recipe, a dict for JSON that describes it. The recipes of random directions
and gradients are enough to make them again (``rebuild``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.landscape import parameter_kinds
from hessian_spectrum.landscape.results import DirectionVectors
from hessian_spectrum.loss.evaluator import Evaluator

NORMALIZATIONS = ("filter", "layer", "weight", "none")
IGNORABLE = ("bias", "norm")
REBUILT = ("random", "gradient")  # kinds whose recipes are enough to make them again


@dataclass(frozen=True)
class Directions:
    """k directions from an origin.

    Raises:
        InputError: shapes that do not fit, or not one recipe for each direction.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> pair = hs.directions.random(ev, count=2, seed=0)
        >>> len(pair), pair.vectors.shape, pair.recipes[1]["index"]
        (2, torch.Size([2, 4]), 1)
        >>> ratio = pair.vectors[0, :3].norm() / ev.theta[:3].norm()  # filter-normalized
        >>> round(ratio.item(), 5), pair.vectors[0, 3].item()  # the bias is ignored
        (1.0, 0.0)
    """

    origin: Tensor  # (n,)
    vectors: Tensor  # (k, n), in the same dtype and on the same device
    recipes: tuple[dict[str, Any], ...]  # (k,), values that JSON can represent

    def __post_init__(self):
        if self.vectors.ndim != 2 or self.vectors.shape[1:] != self.origin.shape:
            raise InputError(
                f"directions of shape {tuple(self.vectors.shape)} from an origin of shape "
                f"{tuple(self.origin.shape)}; expected (k, n) and (n,)"
            )
        if len(self.recipes) != len(self.vectors):
            raise InputError(f"{len(self.recipes)} recipes for {len(self.vectors)} directions")

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, which: slice) -> Directions:
        return replace(self, vectors=self.vectors[which], recipes=self.recipes[which])

    def stored(self, vectors: bool | None = None) -> DirectionVectors:
        """The form that run files store.

        Args:
            vectors: whether to store the vectors; default: only if the recipes are not enough.
        """
        if vectors is None:
            vectors = not all(recipe["kind"] in REBUILT for recipe in self.recipes)
        rows = self.vectors if vectors else self.vectors[:0]
        about = {"recipes": list(self.recipes)}
        return DirectionVectors(self.origin.cpu().numpy(), rows.cpu().numpy(), about)

    def joined(self, other: Directions) -> Directions:
        """These directions followed by the others, from the origin of these."""
        vectors = torch.cat([self.vectors, other.vectors.to(self.vectors)])
        return replace(self, vectors=vectors, recipes=(*self.recipes, *other.recipes))


def random(
    ev: Evaluator,
    theta: Tensor | None = None,
    count: int = 2,
    *,
    seed: int = 0,
    first: int = 0,
    normalize: str = "filter",
    ignore: Sequence[str] = IGNORABLE,
) -> Directions:
    """Gaussian directions with the scale of the parameters (Li et al., NeurIPS 2018, section 4).

    Direction i depends on (seed, first + i) alone (``random_vectors.gaussian_probes``): the same
    numbers at every world size and on every device.

    Args:
        theta: the origin, (n,); default: the model's own parameters.
        count: directions.
        first: index of the first direction.
        normalize: "filter": d_f |theta_f| / |d_f| for each filter f, the weights of one output of
            a convolution or dense layer. "layer": the same for each whole tensor. "weight":
            d_i |theta_i| / |d|_rms for each entry i. "none": standard normal entries.
        ignore: "bias": zero along biases; "norm": zero along the parameters of normalization
            layers. Both are told by the types and shapes of modules (``parameter_kinds.kinds``).
            Where they are not ignored, each such tensor is normalized as a whole, since it has no
            filters, as are scalars and other vectors. The code of Li et al. ignores both, or sets
            d = theta there.

    Raises:
        InputError: an unknown ``normalize`` or ``ignore``, or a number out of its range.
    """
    require_whole(1, count=count)
    require_whole(0, seed=seed, first=first)
    theta = ev.checked(theta)
    whole = Layout.of_size(ev.n)  # every rank needs all entries
    rows = gaussian_probes(whole, range(first, first + count), seed, torch.float64, ev.device)
    vectors = normalized(ev, rows, theta, normalize, ignore).to(ev.dtype)
    recipe = {"kind": "random", "seed": seed, "normalize": normalize, "ignore": list(ignore)}
    return Directions(theta, vectors, tuple({**recipe, "index": first + i} for i in range(count)))


def normalized(
    ev: Evaluator,
    rows: Tensor,
    theta: Tensor,
    normalize: str = "filter",
    ignore: Sequence[str] = IGNORABLE,
) -> Tensor:
    """Any directions with the scale of the parameters, as in ``random``; (k, n) -> (k, n).

    Where a filter's parameters are zero, the direction is zero.

    Raises:
        InputError: an unknown ``normalize`` or ``ignore``.
    """
    if normalize not in NORMALIZATIONS:
        raise InputError(f"normalize={normalize!r}: expected one of {', '.join(NORMALIZATIONS)}")
    unknown = [name for name in ignore if name not in IGNORABLE]
    if isinstance(ignore, str) or unknown:
        raise InputError(f"ignore={ignore!r}: expected some of {', '.join(IGNORABLE)}, in a tuple")
    kinds = parameter_kinds.kinds(ev.model)
    scaled = []
    moves = ev.layout.unflatten(rows.double())
    for name, weights in ev.layout.unflatten(theta.double()).items():
        d, kind = moves[name], kinds[name]
        if kind.name in ignore:
            d = torch.zeros_like(d)
        else:
            moved = _SCALE[normalize](kind.filters(d), kind.filters(weights[None])[0])
            d = kind.back(moved, weights.shape)
        scaled.append(d.reshape(len(d), -1))
    return torch.cat(scaled, dim=1).to(rows.dtype)


def gradient(ev: Evaluator, theta: Tensor | None = None, *, unit: bool = True) -> Directions:
    """The gradient at theta as one direction.

    Args:
        unit: normalize it to unit length.

    Raises:
        FloatingPointError: the gradient is not finite.

    Cost: one gradient.
    """
    theta = ev.checked(theta)
    found = ev.gradient(theta)
    if not found.isfinite().all():
        raise FloatingPointError("the gradient is not finite at these parameters")
    return Directions(
        theta, _unit(found[None]) if unit else found[None], ({"kind": "gradient", "unit": unit},)
    )


def eigenvectors(
    ev: Evaluator, pairs: Any, which: Sequence[int] = (-1, 0), theta: Tensor | None = None
) -> Directions:
    """Unit eigenvectors; default: those of the largest and of the smallest eigenvalue.

    Args:
        pairs: EigenPairs with vectors (rows), of the Hessian at theta or of any n x n matrix.
        which: indices into the pairs, which ascend by value; negative indices count from the end.
        theta: the origin, (n,); default: the model's own parameters.

    Raises:
        InputError: the pairs have no vectors, or vectors with another number of entries.
    """
    if pairs.vectors is None:
        raise InputError(
            "these eigenpairs were stored without vectors; compute and store them with vectors"
        )
    theta = ev.checked(theta)
    rows = [torch.as_tensor(np.asarray(pairs.vectors[i])) for i in which]
    vectors = torch.stack(rows).to(theta)
    if vectors.shape[1] != ev.n:
        raise InputError(f"eigenvectors have {vectors.shape[1]} entries, but theta has {ev.n}")
    values = np.asarray(pairs.values)
    return Directions(
        theta,
        _unit(vectors),
        tuple({"kind": "eigenvector", "index": int(i), "value": float(values[i])} for i in which),
    )


def differences(ev: Evaluator, others: Sequence[Tensor], theta: Tensor | None = None) -> Directions:
    """other - theta for each of the others, so that coordinate 1 is that parameter vector.

    Raises:
        InputError: no vector, or one with another number of entries.
    """
    theta = ev.checked(theta)
    if not len(others):
        raise InputError("others is empty; expected one parameter vector or more")
    vectors = torch.stack([ev.given(other, "one of others") - theta for other in others])
    recipes = tuple({"kind": "difference", "index": i} for i in range(len(others)))
    return Directions(theta, vectors, recipes)


def of_vectors(
    ev: Evaluator, vectors: Tensor, theta: Tensor | None = None, kind: str = "given"
) -> Directions:
    """Any vectors, (k, n) or (n,), tensors or arrays, without normalization.

    Args:
        kind: recorded in the recipes.

    Raises:
        InputError: no vector, or one with another number of entries.
    """
    theta = ev.checked(theta)
    rows = vectors if np.ndim(vectors) > 1 or isinstance(vectors, (list, tuple)) else [vectors]
    if not len(rows):
        raise InputError("vectors is empty; expected one direction or more")
    found = torch.stack([ev.given(row, "a direction") for row in rows])
    return Directions(theta, found, tuple({"kind": kind, "index": i} for i in range(len(found))))


def from_stored(ev: Evaluator, kept: DirectionVectors) -> Directions:
    """The directions of a run file, from their vectors or else from their recipes."""
    origin = ev.checked(torch.as_tensor(kept.origin))
    recipes = tuple(kept.about["recipes"])
    if not len(kept.vectors):
        return rebuild(ev, origin, recipes)
    return Directions(origin, torch.as_tensor(kept.vectors).to(origin), recipes)


def rebuild(ev: Evaluator, theta: Tensor, recipes: Sequence[dict[str, Any]]) -> Directions:
    """Random directions and gradients from their recipes.

    Raises:
        InputError: a direction of another kind, which only its stored vector can give.
    """
    made = []
    for recipe in recipes:
        options = {key: value for key, value in recipe.items() if key not in ("kind", "index")}
        if recipe.get("kind") == "random":
            made.append(random(ev, theta, 1, first=recipe["index"], **options))
        elif recipe.get("kind") == "gradient":
            made.append(gradient(ev, theta, **options))
        else:
            raise InputError(
                f"a direction of the kind {recipe.get('kind')!r} cannot be made from its recipe; "
                "read its vector from the run file"
            )
    return Directions(
        ev.checked(theta),
        torch.cat([one.vectors for one in made]),
        tuple(recipe for one in made for recipe in one.recipes),
    )


# -- inside ------------------------------------------------------------------------------------


# d: (k, filters, entries), weights: (filters, entries).


def _by_filter(d: Tensor, weights: Tensor) -> Tensor:
    return d * _ratio(weights.norm(dim=1), d.norm(dim=2))[..., None]


def _by_layer(d: Tensor, weights: Tensor) -> Tensor:
    return d * _ratio(weights.norm(), d.flatten(1).norm(dim=1))[:, None, None]


def _by_weight(d: Tensor, weights: Tensor) -> Tensor:
    rms = d.flatten(1).square().mean(1).sqrt()
    return d * weights.abs() * _ratio(torch.ones_like(rms), rms)[:, None, None]


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where below is 0."""
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)


def _unit(rows: Tensor) -> Tensor:
    norms = rows.double().norm(dim=1, keepdim=True)
    if not (norms > 0).all():
        raise InputError("a direction is zero; expected vectors with a length")
    return (rows.double() / norms).to(rows.dtype)


_SCALE = {
    "filter": _by_filter,
    "layer": _by_layer,
    "weight": _by_weight,
    "none": lambda d, weights: d,
}
