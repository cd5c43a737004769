"""Between steps: save where it is due, stop where a signal came. All ranks do the same."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.distributed.world import Flags, World


class Checkpoints:
    """When a run is saved.

    Args:
        minutes: the state is saved when so many have passed since the last save.
    """

    def __init__(self, world: World, stop: StopRequest, minutes: float):
        self.world, self.minutes = world, minutes
        self._stop = stop
        self._last_save = time.monotonic()
        # Told after each save whether the run stops now.
        self.on_save: Callable[[bool], None] = lambda last: None
        # What ``after_step`` asks, to travel with a reduction that a step makes anyway.
        self.flags = Flags(self.is_stopping, self.is_due)

    def is_stopping(self) -> bool:
        """Was this rank asked to stop?"""
        return self._stop.name is not None

    def is_due(self) -> bool:
        """Has this rank waited for so long that the state should be saved?"""
        return time.monotonic() - self._last_save > 60 * self.minutes

    def was_saved(self, last: bool = False) -> None:
        self._last_save = time.monotonic()
        self.on_save(last)

    def leave_if_stopped(self) -> None:
        """Raise Interrupted where nothing is new since the last save. One small reduction."""
        if self._agree(self.is_stopping())[0]:
            self._leave()

    def after_step(
        self, save: Callable[[], None], heard: Flags | None = None, always: bool = False
    ) -> None:
        """Save where it is due on any rank, and raise Interrupted where a signal came to one.

        Args:
            heard: what ranks have told each other in the step; None: they ask now.
            always: the step was long; it is saved at once.
        """
        answers = heard.heard if heard else self._agree(self.is_stopping(), self.is_due())
        stopping, due = answers
        if stopping or due or always:
            save()
            self.was_saved(stopping)
        if stopping:
            self._leave()

    def _leave(self) -> None:
        raise Interrupted(self._stop.name or "a signal to another rank", agreed=True)

    def _agree(self, *flags: bool) -> list[bool]:
        """For each flag: is it set on any rank? One small reduction."""
        if self.world.size == 1:
            return list(flags)
        counts = torch.tensor([float(flag) for flag in flags], device=self.world.device)
        return [count > 0 for count in self.world.sum(counts).tolist()]
