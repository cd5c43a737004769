"""The CIFAR forms of the networks of Simonyan and Zisserman (2015, table 1).

Their convolutions, which end at one pixel of 512 channels for images of 32 x 32, and one linear
layer in place of the three of ImageNet: the VGG-11 and VGG-16 that the loss-surface papers train on
CIFAR (Im, Tao and Branson 2017; Xing et al. 2018, "A walk with SGD").
"""

from __future__ import annotations

from torch import nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.networks.layers import convolution, he_normal, with_dropout
from hessian_spectrum.zoo.networks.options import Options

# Channels of the convolutions of each stage; pooling halves the image behind each.
STAGES = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}
SMALLEST = 2 ** len(STAGES["vgg11"])  # pixels on a side


def vgg(name: str, options: Options) -> nn.Sequential:
    """(N, C, H, W) -> (N, num_classes) logits, H and W at least 32.

    Without BatchNorm VGG-11 has 9,225,610 parameters and VGG-16 14,719,818 on CIFAR-10. Dropout
    (rate 0 unless given) is in front of the linear layer. Larger images are averaged at the end.

    Raises:
        InputError: images that are too small.
    """
    channels = options.channels(name)
    if min(options.input_shape[1:]) < SMALLEST:
        raise InputError(
            f"{name} halves images five times, but one sample has shape {options.input_shape}; "
            f"give images of at least {SMALLEST} x {SMALLEST} pixels"
        )
    layers: list[nn.Module] = []
    for stage in STAGES[name]:
        for width in map(options.scaled, stage):
            layers += convolution(channels, width, padding=1, batchnorm=options.batchnorm)
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2))
    flat = with_dropout(nn.Flatten(), options.dropout_rate or 0.0)
    head = [nn.AdaptiveAvgPool2d(1), flat, nn.Linear(channels, options.num_classes)]
    return he_normal(nn.Sequential(*layers, *head))
