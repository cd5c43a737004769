"""Values along a path through parameter space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.stored_fields import stored
from hessian_spectrum.landscape.results.values import (
    Array,
    Evaluated,
    Minimum,
    finite_minimum,
    freeze_arrays,
)


class Basin(NamedTuple):
    """Where a curve stays at or below a level."""

    left: float  # distance along the path at the left boundary, in units of theta
    right: float  # the same at the right boundary
    width: float  # right - left
    bounded: bool  # False: a boundary is an end of the path, or beside a value that is not finite


class Rise(NamedTuple):
    """Where a value climbs along a path, from a lowest point to the next highest one."""

    start: float  # t of the lowest point
    stop: float  # t of the highest point
    height: float  # by how much the value is higher there
    is_barrier: bool  # the value falls again behind it; False: it is as high up to the end


@dataclass(frozen=True)
class Curve(Evaluated):
    """Values at the points of a path through parameter space, in their order.

    Example:
        >>> import numpy as np, hessian_spectrum as hs
        >>> t = np.linspace(-1, 1, 5)
        >>> curve = hs.Curve(t, distance=t + 1, values={"loss": t**2})
        >>> curve.minimum().place, float(curve.at(0.25)), curve.barrier()
        ((0.0,), 0.125, 0.0)
        >>> curve.basin(level=0.25).width
        1.0
    """

    t: Array = field(metadata=stored("coordinate of the path", ("point",)))
    distance: Array = field(metadata=stored("arc length from the first point", ("point",), "theta"))
    values: Mapping[str, Array] = field(metadata=stored("evaluated quantities by name", ("point",)))
    about: Mapping[str, Any] = field(
        default_factory=dict, metadata=stored("the path, its vectors and the evaluation")
    )

    def __post_init__(self):
        freeze_arrays(self, 1, len(np.atleast_1d(self.t)))

    def at(self, t: Array | float, name: str = "loss") -> Array:
        """The value at t, shape of t, linear between points; NaN beyond the ends."""
        return np.interp(t, self.t, self.values[name], left=np.nan, right=np.nan)

    def minimum(self, name: str = "loss") -> Minimum:
        """The smallest finite value, and the t of its point.

        Raises:
            InputError: no value is finite.
        """
        return finite_minimum(self.values[name], (self.t,))

    @property
    def ends(self) -> tuple[float, float]:
        """The t of the two networks that the path joins; otherwise its first and last t."""
        first, last = self.about.get("ends", (self.t[0], self.t[-1]))
        return float(first), float(last)

    @property
    def holds_ends(self) -> bool:
        """Whether the path contains both ends."""
        return bool(self.t[0] <= self.ends[0] and self.ends[1] <= self.t[-1])

    def barrier(self, name: str = "loss", reference: str = "line") -> float:
        """The largest value between the ends minus a reference, at least 0.

        NaN if a value between the ends is not finite. The ends are the two networks, also on a
        path that continues beyond them. Values are taken as linear between points.

        Args:
            reference: "line": the chord between the ends' values at each t (Entezari et al. 2022);
                "mean": the mean of the ends (Frankle et al. 2020); "max": the higher end.

        Raises:
            InputError: the path does not contain both ends.
        """
        low, high = self.ends
        if reference not in ("line", "mean", "max"):
            raise InputError(f"reference={reference!r}: expected 'line', 'mean' or 'max'")
        if not self.holds_ends:
            raise InputError(
                f"the networks are at t = {low:g} and {high:g}, but the path goes from "
                f"{self.t[0]:g} to {self.t[-1]:g}; evaluate the whole path between them"
            )
        t = np.concatenate([[low], self.t[(low < self.t) & (self.t < high)], [high]])
        values = self.at(t, name)
        if not np.isfinite(values).all():
            return float("nan")
        ends = values[[0, -1]]
        share = (t - low) / ((high - low) or 1.0)
        chord = (1 - share) * ends[0] + share * ends[1]
        level = {"line": chord, "mean": ends.mean(), "max": ends.max()}[reference]
        return float(max(0.0, (values - level).max()))

    def rises(self, tolerance: float = 0.0, name: str = "loss") -> list[Rise]:
        """Where the value rises by more than ``tolerance``, in the order of t; none: it only falls.

        Smaller ups and downs belong to the slope that they are on. Goodfellow, Vinyals & Saxe
        (ICLR 2015) ask whether the loss falls monotonically from a network's start to its end.

        Args:
            tolerance: in the value's units, such as the bound of ``landscape.rounding``.

        Raises:
            InputError: a value is not finite, or the tolerance is negative.

        Example:
            >>> import numpy as np, hessian_spectrum as hs
            >>> t = np.arange(5.0)
            >>> curve = hs.Curve(t, distance=t, values={"loss": [4, 3, 5, 1, 2]})
            >>> curve.rises(tolerance=1.5)
            [Rise(start=1.0, stop=2.0, height=2.0, is_barrier=True)]
        """
        values = self.values[name]
        if not tolerance >= 0:
            raise InputError(f"tolerance={tolerance!r}: expected a number of at least 0")
        if not np.isfinite(values).all():
            first = self.t[~np.isfinite(values)][0]
            raise InputError(
                f"the {name} at t = {first:g} is not finite, so its rises are not known; use a "
                "part of the path on which it is"
            )
        found, low, high = [], 0, 0  # high > low while the value rises
        for i, value in enumerate(values):
            if high > low:
                if value > values[high]:
                    high = i
                elif values[high] - value > tolerance:
                    found.append(self._rise(values, low, high, True))
                    low = high = i
            elif value < values[low]:
                low = high = i
            elif value - values[low] > tolerance:
                high = i
        if high > low:
            found.append(self._rise(values, low, high, False))
        return found

    def _rise(self, values: Array, low: int, high: int, is_barrier: bool) -> Rise:
        height = float(values[high] - values[low])
        return Rise(float(self.t[low]), float(self.t[high]), height, is_barrier)

    def basin(self, level: float, near: float | None = None, name: str = "loss") -> Basin:
        """The part of the path around ``near`` on which the value is at most ``level``.

        Values are taken as linear between points. Distances are in units of theta.

        Args:
            near: a coordinate t; default: that of the minimum.

        Raises:
            InputError: the value at ``near`` is above the level.
        """
        values, s = self.values[name], self.distance
        center = (
            self.minimum(name).index[0] if near is None else int(np.abs(self.t - near).argmin())
        )
        if not values[center] <= level:
            raise InputError(
                f"the {name} at t = {self.t[center]:g} is {values[center]:g}, above the level "
                f"{level:g}; raise the level, or choose another near="
            )
        left, closed_left = _crossing(values[center::-1], s[center::-1], level)
        right, closed_right = _crossing(values[center:], s[center:], level)
        return Basin(left, right, right - left, closed_left and closed_right)


def _crossing(values: Array, s: Array, level: float) -> tuple[float, bool]:
    """Where the values first exceed the level, and True; otherwise the last point below, False."""
    above = np.flatnonzero(~(values <= level))
    if not above.size:
        return float(s[-1]), False
    i = above[0]
    if not np.isfinite(values[i]):
        return float(s[i - 1]), False
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(s[i - 1] + share * (s[i] - s[i - 1])), True
