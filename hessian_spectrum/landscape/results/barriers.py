"""The loss between consecutive iterates of a training run, and its barriers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.results.values import Array, Evaluated, Values

PER_SEGMENT = ("start", "stop", "epoch", "step_length", "cosine", "rounding")


class Count(NamedTuple):
    """Barriers of an epoch, or of all epochs."""

    barriers: int
    segments: int  # whose losses are all finite
    unknown: int  # segments with a loss that is not finite


@dataclass(frozen=True)
class Barriers(Evaluated):
    """Values on the segments between consecutive iterates w(s), w(s + 1) of a training run.

    A segment has a barrier where the loss between its ends is above the higher end by more than
    ``rounding``. A segment with a loss that is not finite has NaN for everything that is derived.

    Example:
        >>> import numpy as np, hessian_spectrum as hs
        >>> ones, t = np.ones(2), np.linspace(0, 1, 5)
        >>> loss = np.array([[4, 1, 0, 1, 2], [2, 2, 3, 1, 1]])  # a valley, then a barrier
        >>> found = hs.Barriers(t, ones, ones + 1, ones, ones, ones, 0 * ones, {"loss": loss})
        >>> found.is_barrier.tolist(), found.rise.tolist()
        ([False, True], [-1.0, 1.0])
        >>> found.floor.tolist(), found.height_above_floor.tolist()
        ([0.0, 1.0], [3.0, 0.5])
    """

    t: Array = field(metadata=stored("share of the way from w(s) to w(s + 1)", ("point",)))
    start: Array = field(metadata=stored("step of w(s)", ("segment",)))
    stop: Array = field(metadata=stored("step of w(s + 1)", ("segment",)))
    epoch: Array = field(
        metadata=stored("epoch of the update, from 1; NaN where it is not known", ("segment",))
    )
    step_length: Array = field(metadata=stored("|w(s + 1) - w(s)|", ("segment",), "theta"))
    cosine: Array = field(
        metadata=stored("cosine of the update and the one before it; NaN without one", ("segment",))
    )
    rounding: Array = field(
        metadata=stored("bound on the rounding error of the loss", ("segment",))
    )
    values: Mapping[str, Array] = field(
        metadata=stored("evaluated quantities by name", ("segment", "point"))
    )
    about: Mapping[str, Any] = field(default_factory=dict, metadata=stored("about the evaluation"))

    def __post_init__(self) -> None:
        for name in ("t", *PER_SEGMENT):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        object.__setattr__(self, "values", Values(self.values))
        shape = (len(self.start), len(self.t))
        wrong = {name: v.shape for name, v in self.values.items() if v.shape != shape}
        for name in PER_SEGMENT:
            found = getattr(self, name).shape
            if found != shape[:1]:
                wrong[name] = found
        if wrong or 0 in shape or len(self.t) < 3:
            raise InputError(f"Barriers of {shape} segments and points have arrays of {wrong}")

    def __len__(self) -> int:
        return len(self.start)

    @property
    def is_known(self) -> Array:
        """(segment,), whether all losses of a segment are finite."""
        return np.isfinite(self.loss).all(axis=1)

    @property
    def rise(self) -> Array:
        """(segment,), the largest loss between the ends minus that of the higher end."""
        inner = self.loss[:, 1:-1].max(axis=1) - self._ends.max(axis=1)
        return np.where(self.is_known, inner, np.nan)

    @property
    def is_barrier(self) -> Array:
        """(segment,), whether ``rise`` is above ``rounding``."""
        return self.rise > self.rounding

    @property
    def floor(self) -> Array:
        """(segment,), L_b, the smallest loss at a point of the segment, its ends included."""
        return np.where(self.is_known, self.loss.min(axis=1), np.nan)

    @property
    def floor_at(self) -> Array:
        """(segment,), the t of the smallest loss."""
        return np.where(self.is_known, self.t[self._lowest], np.nan)

    @property
    def height_above_floor(self) -> Array:
        """(segment,), (L_s + L_(s + 1) - 2 L_b) / 2, how far the iterates are above the floor.

        At least 0. Xing, Arpit, Tsirigotis & Bengio 2018 (arXiv:1802.08770), who call L_b the
        valley floor.
        """
        return self._ends.mean(axis=1) - self.floor

    def count(self, epoch: float | None = None) -> Count:
        """The number of barriers in an epoch; default: in all.

        Raises:
            InputError: no segment is of that epoch.
        """
        of_it = np.ones(len(self), bool) if epoch is None else self.epoch == epoch
        if not of_it.any():
            held = ", ".join(f"{e:g}" for e in self.epochs) or "none, since none is stored"
            raise InputError(f"no segment is of epoch {epoch:g}; the epochs are: {held}")
        known = self.is_known[of_it]
        barriers = int(self.is_barrier[of_it].sum())
        return Count(barriers, int(known.sum()), int((~known).sum()))

    @property
    def epochs(self) -> Array:
        """The epochs that segments are of, ascending."""
        return np.unique(self.epoch[np.isfinite(self.epoch)])

    @property
    def _ends(self) -> Array:
        return self.loss[:, [0, -1]]

    @property
    def _lowest(self) -> Array:
        return np.where(np.isfinite(self.loss), self.loss, np.inf).argmin(axis=1)
