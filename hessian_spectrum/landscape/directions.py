"""Directions to look along: random and normalized, eigenvectors, gradient, differences, components.

Each comes with a recipe, a dict that JSON can hold: what it is, and for what can be made again
(``rebuild``) everything that it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError, require_whole
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.landscape.results import DirectionVectors
from hessian_spectrum.loss.evaluator import Evaluator

NORMALIZATIONS = ("filter", "layer", "weight", "none")
IGNORABLE = ("bias", "norm")
REBUILT = ("random", "gradient")  # kinds that their recipes are enough for
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    nn.modules.batchnorm._NormBase,
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm),
)


@dataclass(frozen=True)
class Directions:
    """k directions from an origin."""

    origin: Tensor  # (n,)
    vectors: Tensor  # (k, n), in the same dtype and on the same device
    recipes: tuple[dict[str, Any], ...]  # (k,), JSON can hold them

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
        """What a run file holds of them.

        Args:
            vectors: whether the vectors are kept; default: unless all can be made again.
        """
        if vectors is None:
            vectors = not all(recipe["kind"] in REBUILT for recipe in self.recipes)
        rows = self.vectors if vectors else self.vectors[:0]
        about = {"recipes": list(self.recipes)}
        return DirectionVectors(self.origin.cpu().numpy(), rows.cpu().numpy(), about)

    def joined(self, other: Directions) -> Directions:
        """These, then the others, from this origin."""
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
    """Gaussian directions, scaled filter by filter to the parameters (Li et al. 2018, section 4).

    Direction i comes from (seed, first + i) alone (``probes.gaussian_probes``): the same numbers at
    every world size and on every device.

    Args:
        theta: the origin; default: the model's own parameters.
        normalize: "filter": d_f |theta_f| / |d_f| for each filter f, the weights that lead to one
            output of a convolution or dense layer. "layer": the same for each whole tensor.
            "weight": d_i |theta_i| / |d|_rms, each entry by its own parameter. "none": as drawn.
        ignore: "bias" and "norm": zero along biases, and along the parameters of BatchNorm,
            LayerNorm and GroupNorm layers. Those that are not ignored are normalized as one tensor
            each: they have no filters. Li et al.'s code ignores both, or sets d = theta there.
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
    """(k, n) -> (k, n): any directions, scaled to the parameters as in ``random``.

    Where a filter's parameters are zero the direction is zero.
    """
    if normalize not in NORMALIZATIONS:
        raise InputError(f"normalize={normalize!r}: expected one of {', '.join(NORMALIZATIONS)}")
    unknown = [name for name in ignore if name not in IGNORABLE]
    if isinstance(ignore, str) or unknown:
        raise InputError(f"ignore={ignore!r}: expected some of {', '.join(IGNORABLE)}, in a tuple")
    kinds = _kinds(ev.model)
    scaled = []
    moves = ev.layout.unflatten(rows.double())
    for name, weights in ev.layout.unflatten(theta.double()).items():
        d, kind = moves[name], kinds.get(name, "")
        if kind in ignore:
            scaled.append(torch.zeros_like(d).flatten(1))
            continue
        if kind == "transposed":  # the filter is the second axis of these alone
            d, weights = d.transpose(1, 2), weights.transpose(0, 1)
        moved = _SCALE[normalize](d, weights)
        scaled.append((moved.transpose(1, 2) if kind == "transposed" else moved).flatten(1))
    return torch.cat(scaled, dim=1).to(rows.dtype)


def gradient(ev: Evaluator, theta: Tensor | None = None, *, unit: bool = True) -> Directions:
    """The gradient at theta, of unit length or as it is; one direction."""
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
    """Eigenvectors of stored pairs, unit length; default: of the largest and the smallest value.

    Args:
        pairs: EigenPairs with vectors (rows), of the Hessian at theta or of any matrix.
        which: indices into the pairs, ascending by value; negative ones from the end.
    """
    if pairs.vectors is None:
        raise InputError("these eigenpairs were stored without vectors; compute them again with")
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
    """other - theta for each: coordinate 1 along a direction is that parameter vector."""
    theta = ev.checked(theta)
    if not len(others):
        raise InputError("others is empty; expected one parameter vector or more")
    vectors = torch.stack([ev.given(other, "one of others") - theta for other in others])
    recipes = tuple({"kind": "difference", "index": i} for i in range(len(others)))
    return Directions(theta, vectors, recipes)


def of_vectors(
    ev: Evaluator, vectors: Tensor, theta: Tensor | None = None, kind: str = "given"
) -> Directions:
    """Any vectors, (k, n) or (n,), as they are: tensors or arrays."""
    theta = ev.checked(theta)
    rows = vectors if np.ndim(vectors) > 1 or isinstance(vectors, (list, tuple)) else [vectors]
    if not len(rows):
        raise InputError("vectors is empty; expected one direction or more")
    vectors = torch.stack([ev.given(row, "a direction") for row in rows])
    return Directions(
        theta, vectors, tuple({"kind": kind, "index": i} for i in range(len(vectors)))
    )


def from_stored(ev: Evaluator, kept: DirectionVectors) -> Directions:
    """The directions in a run file: read, or made again."""
    origin = ev.checked(torch.as_tensor(kept.origin))
    recipes = tuple(kept.about["recipes"])
    if not len(kept.vectors):
        return rebuild(ev, origin, recipes)
    return Directions(origin, torch.as_tensor(kept.vectors).to(origin), recipes)


def rebuild(ev: Evaluator, theta: Tensor, recipes: Sequence[dict[str, Any]]) -> Directions:
    """Directions from their recipes: random ones, and the gradient.

    Raises:
        InputError: a direction of another kind, which is kept as its vector.
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
                f"a direction of the kind {recipe.get('kind')!r} is not made from a recipe; read "
                "its vector from the run file"
            )
    return Directions(
        ev.checked(theta),
        torch.cat([one.vectors for one in made]),
        tuple(recipe for one in made for recipe in one.recipes),
    )


# -- inside ------------------------------------------------------------------------------------


def _kinds(model: nn.Module) -> dict[str, str]:
    """What a parameter is: "bias", "norm", "transposed"; the others are weights with filters."""
    kinds = {}
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(module, _NORMS):
                kinds[path] = "norm"
            elif name.startswith("bias") or p.ndim == 0:
                kinds[path] = "bias"
            elif isinstance(module, _TRANSPOSED) and p.ndim > 1:
                kinds[path] = "transposed"
    return kinds


def _by_filter(d: Tensor, weights: Tensor) -> Tensor:
    """(k, filters, ...), (filters, ...)."""
    if weights.ndim < 2:
        return _by_layer(d, weights)
    norms = d.flatten(2).norm(dim=2) if d.ndim > 2 else d.abs()
    return d * _ratio(weights.flatten(1).norm(dim=1), norms).view(*norms.shape, *[1] * (d.ndim - 2))


def _by_layer(d: Tensor, weights: Tensor) -> Tensor:
    norms = d.flatten(1).norm(dim=1)
    return d * _ratio(weights.norm(), norms).view(-1, *[1] * (d.ndim - 1))


def _by_weight(d: Tensor, weights: Tensor) -> Tensor:
    rms = d.flatten(1).square().mean(1).sqrt()
    return d * weights.abs() * _ratio(torch.ones_like(rms), rms).view(-1, *[1] * (d.ndim - 1))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
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
