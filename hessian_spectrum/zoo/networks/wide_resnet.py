"""Wide residual networks for CIFAR, of Zagoruyko and Komodakis (2016)."""

from __future__ import annotations

from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.networks.layers import convolution, he_normal
from hessian_spectrum.zoo.networks.options import Options

CHANNELS = (16, 32, 64)  # of the stages, times the widening factor


def wide_resnet(name: str, options: Options) -> nn.Sequential:
    """(N, C, H, W) -> (N, num_classes) logits; WRN-28-10 has 36,479,194 parameters on CIFAR-10.

    Blocks B(3, 3) of their table 1: BatchNorm and ReLU in front of each convolution, a 1 x 1
    convolution on the shortcut where the shape changes, and dropout (rate 0 unless given) between
    the two convolutions.

    Args:
        name: wrn-D-K, of depth D = 6 b + 4, b blocks a stage, widened K times.
        options: ``width`` multiplies all channels; without ``shortcut`` blocks add nothing to
            their body; without ``batchnorm`` the convolutions have biases.

    Raises:
        InputError: another depth.
    """
    depth, factor = map(int, name.split("-")[1:])
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise InputError(f"{name}: expected a depth of 6 b + 4, as in wrn-16-4 or wrn-28-10")
    channels = options.scaled(CHANNELS[0])
    bias = not options.batchnorm
    layers: list[nn.Module] = [nn.Conv2d(options.channels(name), channels, 3, 1, 1, bias=bias)]
    for stage, base in enumerate(CHANNELS):
        width = options.scaled(base * factor)
        for index in range(blocks):
            stride = 2 if index == 0 and stage > 0 else 1
            layers.append(WideBlock(channels, width, stride, options))
            channels = width
    layers += [*_activated(channels, options.batchnorm), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return he_normal(nn.Sequential(*layers, nn.Linear(channels, options.num_classes)))


class WideBlock(nn.Module):
    """Two activated 3 x 3 convolutions, and a shortcut around them."""

    def __init__(self, channels: int, width: int, stride: int, options: Options):
        super().__init__()
        bias = not options.batchnorm
        self.activated = nn.Sequential(*_activated(channels, options.batchnorm))
        self.body = nn.Sequential(
            *convolution(channels, width, stride=stride, padding=1, batchnorm=options.batchnorm),
            nn.ReLU(),
            nn.Dropout(options.dropout_rate or 0.0),
            nn.Conv2d(width, width, 3, 1, 1, bias=bias),
        )
        changes = stride > 1 or channels != width
        self.projection = (
            nn.Conv2d(channels, width, 1, stride, bias=bias)
            if options.shortcut and changes
            else None
        )
        self.shortcut = options.shortcut

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activated(x)
        y = self.body(activated)
        if not self.shortcut:
            return y
        return y + (x if self.projection is None else self.projection(activated))


def _activated(channels: int, batchnorm: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()] if batchnorm else [nn.ReLU()]
