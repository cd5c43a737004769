"""Points of parameter space as combinations of a few vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.arrays import as_tensor
from hessian_spectrum.loss.evaluator import Evaluator


@dataclass(frozen=True)
class Points:
    """p points as combinations of k vectors: theta_i = sum_j weights[i, j] vectors[j].

    Lines, planes, triangles and curves have this form, and so does any list of vectors.

    Raises:
        InputError: shapes that do not fit, or entries that are not finite.

    Example:
        >>> import numpy as np, torch, hessian_spectrum as hs
        >>> points = hs.Points(torch.eye(2), np.array([[1.0, 0.0], [0.5, 0.5]]))
        >>> len(points), points.rows(0, 2).tolist()
        (2, [[1.0, 0.0], [0.5, 0.5]])
    """

    vectors: Tensor  # (k, n), not sharded: the same on every rank
    weights: np.ndarray  # (p, k), float64

    def __post_init__(self):
        if self.vectors.ndim != 2 or not self.vectors.is_floating_point():
            raise InputError(f"vectors of shape {tuple(self.vectors.shape)}; expected (k, n)")
        if not self.vectors.isfinite().all():
            raise InputError("vectors have NaN or infinite entries; did the training diverge?")
        weights = np.asarray(self.weights, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[1] != len(self.vectors):
            raise InputError(
                f"weights of shape {weights.shape} for {len(self.vectors)} vectors; expected "
                f"(points, {len(self.vectors)})"
            )
        if not np.isfinite(weights).all():
            raise InputError("weights have NaN or infinite entries; expected finite numbers")
        object.__setattr__(self, "weights", weights)

    @classmethod
    def of(cls, thetas: Tensor | Sequence[Tensor]) -> Points:
        """Any parameter vectors (p, n) as points."""
        if not isinstance(thetas, Tensor):
            thetas = torch.stack([as_tensor(theta) for theta in thetas])
        return cls(thetas.detach(), np.eye(len(thetas)))

    @classmethod
    def around(cls, origin: Tensor, directions: Tensor, coordinates: np.ndarray) -> Points:
        """origin + coordinates @ directions, of shapes (n,), (p, k) and (k, n)."""
        vectors = torch.cat([origin[None].to(directions), directions])
        return cls(vectors, np.column_stack([np.ones(len(coordinates)), coordinates]))

    def __len__(self) -> int:
        return len(self.weights)

    def to(self, device: torch.device, dtype: torch.dtype) -> Points:
        """The same points with their vectors on this device and in this dtype."""
        return replace(self, vectors=self.vectors.to(device, dtype))

    def rows(self, start: int, stop: int) -> Tensor:
        """theta_start, ..., theta_(stop - 1), (stop - start, n); summed in float64, rounded once.

        A single weight of 1 beside zeros gives the vector itself, bit for bit.
        """
        weights = self.weights[start:stop]
        total = torch.zeros(
            len(weights), self.vectors.shape[1], dtype=torch.float64, device=self.vectors.device
        )
        for column, vector in zip(torch.from_numpy(weights).T.to(total), self.vectors):
            if column.any():
                total.addcmul_(column[:, None], vector.double())
        return total.to(self.vectors.dtype)

    def cancellation(self) -> float:
        """Growth of rounding errors: max_i sum_j |weights[i, j]| |vectors[j]| / |theta_i|."""
        inner = gram(self.vectors)
        norms = np.sqrt(np.diagonal(inner))
        squares = np.einsum("pj,jk,pk->p", self.weights, inner, self.weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.abs(self.weights) @ norms / np.sqrt(np.maximum(squares, 0.0))
        return float(np.nan_to_num(ratios, nan=1.0, posinf=math.inf).max(initial=1.0))


def check_points(ev: Evaluator, points: Points, test: Evaluator | None = None) -> None:
    """Check that points and test evaluator belong to the model of ``ev``.

    Raises:
        InputError: another number of entries, other parameters or another dtype.
    """
    if points.vectors.shape[1] != ev.n:
        raise InputError(
            f"the points have {points.vectors.shape[1]} entries, but theta has {ev.n}; use points "
            "of the same model with the same choice of parameters"
        )
    if test is not None and (test.layout.names, test.dtype) != (ev.layout.names, ev.dtype):
        raise InputError(
            "the test evaluator has other parameters or another dtype; make both with the same "
            "model, parameters= and dtype="
        )


def stacked(ev: Evaluator, thetas: Mapping[str, Tensor]) -> Tensor:
    """Flat parameters by name -> the rows of one tensor, (k, n), in ``ev``'s dtype and device.

    Raises:
        InputError: a value is not a vector of n entries; the message has its name.
    """
    return torch.stack([ev.given(theta, name) for name, theta in thetas.items()])


def gram(vectors: Tensor) -> np.ndarray:
    """Inner products of the rows, (k, n) -> (k, k), in float64."""
    rows = vectors.double()
    return (rows @ rows.T).cpu().numpy()


def edge_gram(vectors: Tensor) -> np.ndarray:
    """Inner products of the edges v_1 - v_0, v_2 - v_0, ..., (k, n) -> (k - 1, k - 1), float64."""
    rows = vectors.double()
    return gram(rows[1:] - rows[:1])
