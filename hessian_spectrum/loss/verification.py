"""What the checks of derivatives have found, for one evaluator."""

from __future__ import annotations

from typing import Any

from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss import fallbacks
from hessian_spectrum.loss.difference_arithmetic import DifferenceArithmetic
from hessian_spectrum.loss.samples import Piece

SECOND_DERIVATIVES = "second derivatives"


class Verification:
    """The samples on which derivatives are checked, and what is known of them so far.

    Attributes:
        unverified: derivatives that no check could confirm, and why.
        without_gradient: parameters whose gradient is exactly zero on all the data; empty until all
            the data were checked.
        on_samples, on_all_data: were second derivatives, and all the data, checked?
        has_curvature: H u of this rank's data was not zero when it was checked.
    """

    def __init__(self, world: World, samples: tuple[Piece, ...], arithmetic: DifferenceArithmetic):
        self._world = world
        self.samples, self.arithmetic = samples, arithmetic
        self.unverified: dict[str, str] = {}
        self.without_gradient: tuple[str, ...] = ()
        self.on_samples = self.on_all_data = self.has_curvature = False

    def note(self, what: str, reason: str | None) -> None:
        """Record and log that a check of derivatives concluded nothing on any rank that has data.

        Called by every rank. One exchange of small objects.

        Args:
            what: the derivatives.
            reason: of this rank; None if it concluded, or has no data.
        """
        found = self._world.gather_objects((reason, bool(self.samples)))
        reasons = [reason for reason, has_data in found if has_data]
        if reasons and all(reasons):
            self.unverified[what] = str(reasons[0])
            if self._world.rank == 0:
                fallbacks.say_once(self.doubts()[-1:])

    def doubts(self) -> list[str]:
        """In words, the derivatives that no check could confirm; for reports."""
        return [f"{what} could not be verified: {why}" for what, why in self.unverified.items()]

    def stored(self) -> dict[str, Any]:
        """Entries to be stored with results."""
        return {
            "unverified": self.doubts(),
            "without_gradient": list(self.without_gradient),
            "differences_in": str(self.arithmetic.dtype).removeprefix("torch."),
        }
