"""The residual networks for CIFAR-10 of He, Zhang, Ren and Sun (2016), section 4.2.

ResNet-20, 32, 44, 56, 110: depth 6 b + 2 with b blocks in each of three stages of 16, 32 and 64
channels, and parameter-free shortcuts (their option A). Without shortcuts they are the plain
networks whose loss surfaces Li et al. (2018) draw.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from hessian_spectrum._core.errors import InputError

CHANNELS = (16, 32, 64)


def resnet(
    depth: int,
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    shortcut: bool = True,
    batchnorm: bool = True,
    channels: Sequence[int] = CHANNELS,
) -> nn.Sequential:
    """(N, C, H, W) -> (N, num_classes) logits; ResNet-20 has 269,722 parameters on CIFAR-10.

    Args:
        depth: 6 b + 2 with b >= 1.
        shortcut: keep the identity connections.
        batchnorm: keep the BatchNorm layers; without them the convolutions have biases.
        channels: of the three stages.

    Raises:
        InputError: another depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise InputError(f"resnet{depth}: expected a depth of 6 b + 2, such as 20, 32, 44, 56, 110")
    before = channels[0]
    layers: list[nn.Module] = [*_convolution(in_channels, before, 1, batchnorm), nn.ReLU()]
    for stage, width in enumerate(channels):
        for index in range(blocks):
            stride = 2 if index == 0 and stage else 1
            layers.append(BasicBlock(before, width, stride, shortcut, batchnorm))
            before = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)]
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
        if self.padding:
            x = x[:, :, :: self.stride, :: self.stride]
            before = self.padding // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.padding - before))
        return x


def _convolution(channels: int, width: int, stride: int, batchnorm: bool) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=not batchnorm)
    return [conv, nn.BatchNorm2d(width)] if batchnorm else [conv]
