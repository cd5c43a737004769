"""What every family of networks is told: the data's sizes, and the choices of the user."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hessian_spectrum._core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes and choices of a network."""

    num_classes: int = 10
    input_shape: tuple[int, ...] = (1, 28, 28)  # of one sample
    activation: str = "tanh"
    shortcut: bool = True
    batchnorm: bool = True
    width: float = 1.0
    dropout_rate: float | None = None  # None: the family's own

    def scaled(self, units: int) -> int:
        """``units`` of a hidden layer times the width, rounded, at least 1."""
        return max(1, round(units * self.width))

    def channels(self, name: str) -> int:
        """The channels of the images.

        Raises:
            InputError: samples are no images.
        """
        if len(self.input_shape) != 3:
            raise InputError(
                f"{name} takes images, but one sample has shape {self.input_shape}; give "
                "input_shape as (C, H, W)"
            )
        return self.input_shape[0]

    @property
    def num_inputs(self) -> int:
        return math.prod(self.input_shape)
