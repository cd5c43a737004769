"""A small convolutional network for images of any size, for examples."""

from __future__ import annotations

from torch import nn

from hessian_spectrum.zoo.networks.layers import activation_named, convolution
from hessian_spectrum.zoo.networks.options import Options


def cnn(options: Options) -> nn.Sequential:
    """(N, C, H, W) -> (N, num_classes) logits; three convolutions, 14,458 parameters for gray
    images and 10 classes."""
    widths = [options.channels("cnn"), *(options.scaled(width) for width in (16, 32, 32))]
    layers: list[nn.Module] = []
    for fan_in, fan_out, stride in zip(widths, widths[1:], (1, 2, 2)):
        layers += convolution(
            fan_in, fan_out, stride=stride, padding=1, batchnorm=options.batchnorm
        )
        layers.append(activation_named(options.activation))
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),  # the mean over all pixels, deterministic on GPUs too
        nn.Flatten(),
        nn.Linear(widths[-1], options.num_classes),
    )
