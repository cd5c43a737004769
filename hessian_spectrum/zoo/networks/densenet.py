"""Densely connected networks for CIFAR, of Huang, Liu, van der Maaten and Weinberger (2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.networks.layers import he_normal
from hessian_spectrum.zoo.networks.options import Options

BLOCKS = 3
FIRST = 16  # channels of the first convolution


def densenet(name: str, options: Options) -> nn.Sequential:
    """(N, C, H, W) -> (N, num_classes) logits; DenseNet-40-12 has 1,019,722 parameters on CIFAR-10.

    The form without bottlenecks and compression of their table 2: three blocks, between two of
    which a 1 x 1 convolution keeps the channels and pooling halves the image. (torchvision has the
    ImageNet form alone.)

    Args:
        name: densenet-L-K, of depth L = 3 b + 4 with b layers a block, and growth K.
        options: ``width`` multiplies the growth and the channels of the first convolution; dropout
            (rate 0 unless given; theirs is 0.2 without augmentation) follows each convolution but
            the first; without ``batchnorm`` the convolutions have biases. Without ``shortcut``
            layers see the one before them alone.

    Raises:
        InputError: another depth.
    """
    depth, growth = map(int, name.split("-")[1:])
    length, rest = divmod(depth - 4, BLOCKS)
    if rest or length < 1:
        raise InputError(f"{name}: expected a depth of 3 b + 4, as in densenet-40-12")
    growth, channels = options.scaled(growth), options.scaled(FIRST)
    bias = not options.batchnorm
    layers: list[nn.Module] = [nn.Conv2d(options.channels(name), channels, 3, 1, 1, bias=bias)]
    for block in range(BLOCKS):
        if block:
            layers += [*_convolved(channels, channels, 1, options), nn.AvgPool2d(2)]
        for _ in range(length):
            layers.append(DenseLayer(channels, growth, options))
            channels = channels + growth if options.shortcut else growth
    layers += _activated(channels, options.batchnorm)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, options.num_classes)]
    return he_normal(nn.Sequential(*layers, *head))


class DenseLayer(nn.Module):
    """``growth`` new channels, behind those that came in."""

    def __init__(self, channels: int, growth: int, options: Options):
        super().__init__()
        self.body = nn.Sequential(*_convolved(channels, growth, 3, options))
        self.shortcut = options.shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.cat([x, y], 1) if self.shortcut else y


def _convolved(channels: int, width: int, size: int, options: Options) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, size, padding=size // 2, bias=not options.batchnorm)
    drop = [nn.Dropout(options.dropout_rate)] if options.dropout_rate else []
    return [*_activated(channels, options.batchnorm), conv, *drop]


def _activated(channels: int, batchnorm: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()] if batchnorm else [nn.ReLU()]
