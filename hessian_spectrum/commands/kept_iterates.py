"""Every iterate of some steps or epochs of a training, a file each."""

from __future__ import annotations

from dataclasses import dataclass

from hessian_spectrum.config import TrainConfig


@dataclass(frozen=True)
class KeptIterates:
    """Windows of steps, and with each the iterate that its first step starts from."""

    windows: tuple[tuple[int, int], ...]  # of steps from 1, both ends included

    @classmethod
    def chosen(cls, config: TrainConfig, steps_in_epoch: int) -> KeptIterates:
        """By --keep-steps and --keep-epochs."""
        of_epochs = (((e - 1) * steps_in_epoch + 1, e * steps_in_epoch) for e in config.keep_epochs)
        return cls((*config.kept_steps, *of_epochs))

    def has(self, step: int) -> bool:
        """Is theta after so many steps kept?"""
        return any(first - 1 <= step <= last for first, last in self.windows)


def name_of(step: int) -> str:
    """The file of theta after so many steps."""
    return f"step-{step:06d}.pt"
