"""Network in Network for CIFAR, of Lin, Chen and Yan (2014)."""

from __future__ import annotations

from torch import nn

from hessian_spectrum.zoo.networks.layers import convolution, he_normal
from hessian_spectrum.zoo.networks.options import Options

# Size of the convolution, its channels, and those of the two 1 x 1 convolutions behind it; the last
# one has a channel for each class. The authors' published configuration for CIFAR-10.
STAGES = ((5, 192, 160, 96), (5, 192, 192, 192), (3, 192, 192))
DROPOUT = 0.5


def nin(name: str, options: Options) -> nn.Sequential:
    """(N, C, H, W) -> (N, num_classes) logits: three stages, each channel of the last averaged.

    Without BatchNorm it is the authors' network, of 966,986 parameters on CIFAR-10; with it, as in
    Im, Tao and Branson (2017), BatchNorm follows every convolution but the last. Dropout, of rate
    0.5 unless given, is behind the first two stages.

    Of a few channels (a width of 0.05, not of 0.25), all are 0 at some pixels. The biases of
    BatchNorm start at 0, which puts units of 1 x 1 convolutions there on the kink of ReLU: matrices
    of the outputs' derivatives are refused at the initial parameters; training moves units off it.
    """
    rate = DROPOUT if options.dropout_rate is None else options.dropout_rate
    channels = options.channels(name)
    layers: list[nn.Module] = []
    for index, (size, *widths) in enumerate(STAGES):
        for kernel, width in zip((size, 1, 1), map(options.scaled, widths)):
            layers += convolution(
                channels, width, kernel, padding=kernel // 2, batchnorm=options.batchnorm
            )
            layers.append(nn.ReLU())
            channels = width
        if index < len(STAGES) - 1:
            pool = nn.MaxPool2d if index == 0 else nn.AvgPool2d
            layers += [pool(3, stride=2, padding=1), nn.Dropout(rate)]
    last = convolution(channels, options.num_classes, 1, padding=0, batchnorm=False)
    layers += [*last, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return he_normal(nn.Sequential(*layers))
