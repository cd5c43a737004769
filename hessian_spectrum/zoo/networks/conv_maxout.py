"""Convolutional maxout networks.

Of Goodfellow, Warde-Farley, Mirza, Courville and Bengio (2013, "Maxout networks"). Sizes are those
of the configurations for MNIST and CIFAR-10 that they published with pylearn2, except: 1. weights
are initialized as torch does, not uniformly in [-0.005, 0.005], with which a slim form has no
signal; 2. the biases of a channel are one, also for MNIST; 3. norms of weights are not bounded.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.networks.layers import Maxout
from hessian_spectrum.zoo.networks.options import Options


class Stage(NamedTuple):
    """A convolution, the largest of its pieces, and the largest of overlapping windows."""

    channels: int
    pieces: int
    size: int
    padding: int
    pool: int  # side of a window; windows are 2 apart


class Form(NamedTuple):
    stages: tuple[Stage, ...]
    hidden: tuple[int, int] | None  # units and pieces of a fully connected layer behind them


FORMS = {
    "convmaxout-mnist": Form(
        (Stage(48, 2, 8, 0, 4), Stage(48, 2, 8, 3, 4), Stage(24, 4, 5, 3, 2)), None
    ),
    "convmaxout-cifar10": Form(
        (Stage(96, 2, 8, 4, 4), Stage(192, 2, 8, 3, 4), Stage(192, 2, 5, 3, 2)), (500, 5)
    ),
}
INPUT_DROPOUT, DROPOUT = 0.2, 0.5


def conv_maxout(name: str, options: Options) -> nn.Sequential:
    """(N, C, H, W) -> (N, num_classes) logits.

    ``convmaxout-mnist`` has 418,714 parameters on MNIST, ``convmaxout-cifar10`` 16,247,830 on
    CIFAR-10. Dropout is of rate 0.2 on the inputs and 0.5 on the hidden units; a rate that is given
    replaces the second, and 0 removes both.

    Raises:
        InputError: images that are too small.
    """
    form = FORMS[name]
    rate = DROPOUT if options.dropout_rate is None else options.dropout_rate
    channels, side = options.channels(name), list(options.input_shape[1:])
    layers: list[nn.Module] = [nn.Dropout(INPUT_DROPOUT)] if rate else []
    for stage in form.stages:
        width = options.scaled(stage.channels)
        side = [_side(pixels, stage) for pixels in side]
        if min(side) < 1:
            raise InputError(
                f"{name}: images of {options.input_shape[1:]} pixels are too small for it"
            )
        layers += [
            nn.Conv2d(channels, stage.pieces * width, stage.size, padding=stage.padding),
            Maxout(stage.pieces),
            nn.MaxPool2d(stage.pool, stride=2, ceil_mode=True),
            nn.Dropout(rate),
        ]
        channels = width
    units = channels * math.prod(side)
    layers.append(nn.Flatten())
    if form.hidden:
        hidden, pieces = options.scaled(form.hidden[0]), form.hidden[1]
        layers += [nn.Linear(units, pieces * hidden), Maxout(pieces), nn.Dropout(rate)]
        units = hidden
    return nn.Sequential(*layers, nn.Linear(units, options.num_classes))


def _side(pixels: int, stage: Stage) -> int:
    """Pixels behind the stage; 0 where a window does not fit."""
    convolved = pixels + 2 * stage.padding - stage.size + 1
    return math.ceil((convolved - stage.pool) / 2) + 1 if convolved >= stage.pool else 0
