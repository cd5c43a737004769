"""The residual networks for CIFAR-10 of He, Zhang, Ren and Sun (2016), section 4.2.

ResNet-20, 32, 44, 56, 110: depth 6 b + 2 with b blocks in each of three stages of 16, 32 and 64
channels, and parameter-free shortcuts (their option A). Without shortcuts they are the plain
networks whose loss surfaces Li et al. (2018) draw.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.networks.layers import convolution
from hessian_spectrum.zoo.networks.options import Options

CHANNELS = (16, 32, 64)


def resnet(name: str, options: Options) -> nn.Sequential:
    """(N, C, H, W) -> (N, num_classes) logits; ResNet-20 has 269,722 parameters on CIFAR-10.

    Args:
        name: resnetD with the depth D = 6 b + 2 and b >= 1.
        options: ``width`` multiplies the channels of all stages; without ``shortcut`` there are
            no identity connections; without ``batchnorm`` the convolutions have biases.

    Raises:
        InputError: another depth.
    """
    blocks, rest = divmod(int(name.removeprefix("resnet")) - 2, 6)
    if rest or blocks < 1:
        raise InputError(f"{name}: expected a depth of 6 b + 2, such as 20, 32, 44, 56, 110")
    first, *_ = widths = [options.scaled(channels) for channels in CHANNELS]
    batchnorm = options.batchnorm
    stem = _convolution(options.channels("resnet"), first, 1, batchnorm)
    layers: list[nn.Module] = [*stem, nn.ReLU()]
    channels = first
    for stage, width in enumerate(widths):
        for index in range(blocks):
            stride = 2 if index == 0 and stage > 0 else 1
            layers.append(BasicBlock(channels, width, stride, options.shortcut, batchnorm))
            channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, options.num_classes)]
    network = nn.Sequential(*layers, *head)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return network


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and an identity shortcut around them."""

    def __init__(self, channels: int, width: int, stride: int, shortcut: bool, batchnorm: bool):
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, width, stride, batchnorm),
            nn.ReLU(),
            *_convolution(width, width, 1, batchnorm),
        )
        self.stride, self.padding, self.shortcut = stride, width - channels, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.shortcut:
            y = y + self._identity(x)
        return F.relu(y)

    def _identity(self, x: Tensor) -> Tensor:
        """The shortcut without parameters: every second pixel, and zeros for the new channels."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
            before = self.padding // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.padding - before))
        return x


def _convolution(channels: int, width: int, stride: int, batchnorm: bool) -> list[nn.Module]:
    return convolution(channels, width, stride=stride, padding=1, batchnorm=batchnorm)
