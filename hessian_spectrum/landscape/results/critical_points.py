"""What points of a loss are: minima, maxima, saddles, or what is not known of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.results.correlation import Correlation, correlation
from hessian_spectrum.landscape.results.values import Array, Evaluated, Values

KINDS = ("not finite", "not critical", "minimum", "maximum", "saddle", "undecided")
# Why nothing is said, in the order of their codes in files; the first where something is.
REASONS = {
    "decided": "",
    "too coarse": "the arithmetic is too coarse to tell the gradient from 0; use float64",
    "float32": "terms beyond the second order cannot be told in float32; use float64",
    "eigenvalues": "not enough eigenvalues are certified; raise k or max_products",
    "straight lines": (
        "the loss rises on every straight line through the point, but it bends off the null "
        "directions, and may fall on a curve"
    ),
    "flat": "along null directions the terms of orders 3 and 4 are within their errors of 0",
    "null directions": (
        "there are too many null directions to examine all of them; it falls on none that was"
    ),
}


@dataclass(frozen=True)
class CriticalPoint:
    """What one point of a loss is, and what that was decided by.

    Every number is of the Hessian at this very point, in units of its eigenvalues where no other
    is given. ``str`` of it is one sentence.
    """

    kind: str  # one of KINDS; a minimum or maximum is strict
    reason: str  # why it is undecided, a key of REASONS; else "decided"
    loss: float
    gradient_norm: float
    distance: float  # |gradient| / |lambda|max, in units of theta: to a critical point, at least
    smallest: float
    smallest_residual: float  # an eigenvalue lies within it of ``smallest``
    largest: float
    largest_residual: float
    floor: float  # an eigenvalue of at most this magnitude cannot be told from 0
    negative: float  # certified eigenvalues below -floor: the index, at least
    negative_most: float  # the index, at most: with all that may be negative
    null: float  # eigenvalues known to be within the floor
    order: float  # of the terms that decide: 2, 3 or 4; 0 where undecided
    products: float  # Hessian products that this took
    # (n,), ascending, where the whole spectrum was computed; else None.
    eigenvalues: Array | None = field(default=None, repr=False, compare=False)

    @property
    def degenerate(self) -> bool:
        """Is an eigenvalue within the noise floor?"""
        return self.null > 0

    @property
    def index(self) -> tuple[int, int]:
        """Interval of the number of negative eigenvalues.

        Raises:
            InputError: the point has no certified eigenvalues.
        """
        if not math.isfinite(self.negative):
            raise InputError(f"a point that is {self.kind} has no index")
        return int(self.negative), int(self.negative_most)

    def __str__(self) -> str:
        match self.kind:
            case "not finite":
                return "Not finite: the loss, its gradient or its Hessian is NaN or infinite here."
            case "not critical":
                return (
                    f"Not critical: the gradient norm is {self.gradient_norm:.3g}, a critical "
                    f"point is about {self.distance:.3g} away or farther."
                )
            case "undecided":
                return f"Undecided: {REASONS[self.reason]}{self._known}."
            case "saddle":
                return f"Saddle {self._index}, {self._by}{self._known}."
            case _:
                return f"Strict {self.kind}, {self._by}{self._known}."

    @property
    def _index(self) -> str:
        low, high = self.index
        return f"of index {low}" if low == high else f"of index {low} to {high}"

    @property
    def _by(self) -> str:
        if self.order == 2:
            return "by certified eigenvalues"
        return f"by the terms of order {self.order:.0f} along null directions, as computed"

    @property
    def _known(self) -> str:
        if not math.isfinite(self.smallest):
            return f" (gradient norm {self.gradient_norm:.3g})"
        null = f"; {self.null:.0f} eigenvalue(s) within the noise floor" if self.null else ""
        return (
            f" (gradient norm {self.gradient_norm:.3g}; eigenvalues {self.smallest:.4g} to "
            f"{self.largest:.4g}, noise floor {self.floor:.2g}{null})"
        )


NUMBERS = tuple(
    f.name for f in fields(CriticalPoint) if f.name not in ("kind", "reason", "eigenvalues")
)


@dataclass(frozen=True)
class CriticalPoints(Evaluated):
    """Points of a loss with what they are; a sequence of ``CriticalPoint``.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> data = torch.eye(2).double(), torch.zeros(2, 1).double()
        >>> net = torch.nn.Linear(2, 1, bias=False).double()
        >>> ev = hs.Evaluator(net, torch.nn.MSELoss(), data)
        >>> found = hs.CriticalPoints.of([hs.classify(ev, torch.zeros(2)), hs.classify(ev)])
        >>> found.kinds
        ['minimum', 'not critical']
    """

    kind: Array = field(
        metadata=stored(f"what each point is: {', '.join(KINDS)}, from 0", ("point",))
    )
    reason: Array = field(
        metadata=stored(f"why undecided: {', '.join(REASONS)}, from 0", ("point",))
    )
    values: Mapping[str, Array] = field(
        metadata=stored("numbers by name: loss, gradient norm, eigenvalues, index", ("point",))
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("about the points"))
    thetas: Array | None = field(
        default=None,
        metadata=stored("parameters of each point", ("point", "parameter"), "theta"),
    )
    eigenvalues: Array | None = field(
        default=None,
        metadata=stored(
            "whole spectra, ascending; NaN where there is none",
            ("point", "eigenvalue"),
            "eigenvalue",
        ),
    )

    def __post_init__(self) -> None:
        for name, count in (("kind", len(KINDS)), ("reason", len(REASONS))):
            codes = np.asarray(getattr(self, name), dtype=np.float64)
            known = codes[~np.isnan(codes)]
            if codes.ndim != 1 or not np.isin(known, np.arange(count)).all():
                raise InputError(f"{name} has codes other than 0 to {count - 1}")
            object.__setattr__(self, name, codes)
        object.__setattr__(self, "values", Values(self.values))
        shapes = {np.shape(array) for array in (self.reason, *self.values.values())}
        missing = set(NUMBERS) - set(self.values)
        if shapes != {self.kind.shape} or missing:
            raise InputError(
                f"CriticalPoints of {len(self.kind)} points have arrays of {shapes}, and miss "
                f"{sorted(missing)}"
            )
        for name in ("thetas", "eigenvalues"):
            rows = getattr(self, name)
            if rows is None:
                continue
            rows = np.asarray(rows, dtype=np.float64)
            if rows.ndim != 2 or len(rows) != len(self.kind) or not rows.shape[1]:
                raise InputError(f"{name} of shape {rows.shape} for {len(self.kind)} points")
            object.__setattr__(self, name, rows)

    @classmethod
    def of(
        cls, points: Sequence[CriticalPoint], thetas: Array | None = None, **about: Any
    ) -> CriticalPoints:
        """Several points as one result, to store.

        Args:
            thetas: shape (points, n), their parameters; default: they are not stored.
            about: what is said of them all.
        """
        spectra = [point.eigenvalues for point in points]
        sizes = {len(values) for values in spectra if values is not None}
        whole = None
        if len(sizes) == 1:
            whole = np.full((len(points), sizes.pop()), np.nan)
            for row, values in zip(whole, spectra):
                row[:] = np.nan if values is None else values
        return cls(
            np.array([KINDS.index(point.kind) for point in points], dtype=np.float64),
            np.array([list(REASONS).index(point.reason) for point in points], dtype=np.float64),
            {name: np.array([getattr(point, name) for point in points]) for name in NUMBERS},
            about,
            thetas,
            whole,
        )

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, i: int) -> CriticalPoint:
        if np.isnan(self.kind[i]):
            raise InputError(f"point {i} has not been computed yet")
        reason = list(REASONS)[int(self.reason[i])]
        numbers = {name: float(self.values[name][i]) for name in NUMBERS}
        row = None if self.eigenvalues is None else self.eigenvalues[i]
        whole = None if row is None or np.isnan(row).any() else row
        return CriticalPoint(KINDS[int(self.kind[i])], reason, **numbers, eigenvalues=whole)

    def __iter__(self) -> Iterator[CriticalPoint]:
        return (self[i] for i in range(len(self)))

    @property
    def kinds(self) -> list[str]:
        """What each point is; "" where it has not been computed yet."""
        return ["" if np.isnan(code) else KINDS[int(code)] for code in self.kind]

    @property
    def is_critical(self) -> Array:
        """(point,), whether a point is known to be critical, of whichever kind."""
        return np.isin(self.kinds, ("minimum", "maximum", "saddle", "undecided"))

    @property
    def is_unfinished(self) -> Array:
        """(point,), whether a search has ended otherwise than at a point of the wanted kind."""
        codes, names = self.values.get("outcome"), list(self.about.get("outcomes", ()))
        if codes is None or "found" not in names:
            return np.zeros(len(self), dtype=bool)
        return np.isfinite(codes) & (codes != names.index("found"))

    @property
    def n(self) -> int:
        """The number of parameters.

        Raises:
            InputError: it is not stored.
        """
        n = self.about.get("n")
        for rows in (self.thetas, self.eigenvalues):
            n = n or (None if rows is None else rows.shape[1])
        if not n:
            raise InputError("the number of parameters is not stored; CriticalPoints.of takes n=")
        return int(n)

    @property
    def index_fraction(self) -> Array:
        """(point,), alpha, the certified negative eigenvalues over the number of parameters.

        NaN where no eigenvalues are certified.

        Raises:
            InputError: the number of parameters is not stored.
        """
        return self.values["negative"] / self.n

    def rank_correlation(self) -> Correlation:
        """Spearman's correlation of index fraction and loss over the critical points.

        Raises:
            InputError: there are fewer than 4 critical points, or all have one index or loss.
        """
        index = self.values["negative"]  # the ranks of the fractions are those of the numbers
        of_it = self.is_critical & np.isfinite(index) & np.isfinite(self.loss)
        return correlation(index[of_it], self.loss[of_it], rank=True)

    def count(self, kind: str) -> int:
        """How many points are of this kind.

        Raises:
            InputError: there is no such kind.
        """
        if kind not in KINDS:
            raise InputError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
        return self.kinds.count(kind)
