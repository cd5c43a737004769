"""The zoo's models by name, initialized from torch's global random generator."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.resnet import resnet
from hessian_spectrum.zoo.torchvision_names import PREFIX, build_classifier

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
_MLP_NAME = re.compile(r"mlp(-[1-9]\d*){2,}")
_RESNET_NAME = re.compile(r"resnet([1-9]\d*)")
_VALID_NAMES = (
    "mlp-A-B-...-C (layer sizes, as in mlp-784-20-10), cnn, resnet20 (32, 44, 56, 110), "
    "torchvision:NAME"
)


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    input_shape: Sequence[int] = (1, 28, 28),
    activation: str = "tanh",
    shortcut: bool = True,
    batchnorm: bool = True,
) -> nn.Module:
    """A freshly initialized classifier, float32: (N, C, H, W) -> (N, num_classes) logits.

    Seed torch before the call to reproduce the parameters.

    Args:
        name: ``mlp-A-B-...-C``, a perceptron of these layer sizes with biases
            (``mlp-784-20-10`` has 15,910 parameters); ``cnn``, three convolutions with
            BatchNorm for images of any size (14,458 parameters for gray images, 10 classes);
            ``resnet20``, 32, 44, 56 or 110, always with ReLU; or ``torchvision:NAME``, a
            classifier of torchvision.models.
        num_classes: number of logits.
        input_shape: (C, H, W) of one sample.
        activation: ``tanh`` or ``relu``, between the layers of ``mlp`` and ``cnn``.
        shortcut: keep the identity connections of a ``resnet``; other models ignore it.
        batchnorm: keep the BatchNorm layers of a ``resnet``; without them its convolutions have
            biases. Other models ignore it.

    Raises:
        InputError: an unknown name or activation, or sizes that do not fit the data.
    """
    if activation not in _ACTIVATIONS:
        raise InputError(
            f"unknown activation {activation!r}; use one of: {', '.join(_ACTIVATIONS)}"
        )
    if _MLP_NAME.fullmatch(name):
        sizes = [int(size) for size in name.split("-")[1:]]
        _require_fitting(name, sizes, tuple(input_shape), num_classes)
        return _mlp(sizes, _ACTIVATIONS[activation])
    if name.startswith(PREFIX):
        return build_classifier(name, num_classes)
    if name == "cnn":
        if len(input_shape) != 3:
            raise InputError(
                f"cnn takes images, but one sample has shape {tuple(input_shape)}; give "
                f"input_shape as (C, H, W)"
            )
        return _cnn(input_shape[0], num_classes, _ACTIVATIONS[activation])
    if found := _RESNET_NAME.fullmatch(name):
        return resnet(
            int(found[1]),
            in_channels=input_shape[0],
            num_classes=num_classes,
            shortcut=shortcut,
            batchnorm=batchnorm,
        )
    raise InputError(f"unknown model {name!r}; use one of: {_VALID_NAMES}")


def model_for(
    data: TensorDataset, name: str, activation: str, seed: int, **options: bool
) -> nn.Module:
    """``build_model`` for these samples, initialized from ``seed``.

    torch's global random state is not changed. The number of classes comes from the name of a
    perceptron; for other models it is the largest label plus 1.
    """
    inputs, labels = data.tensors
    named = _MLP_NAME.fullmatch(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(
            name,
            input_shape=tuple(inputs.shape[1:]),
            num_classes=int(name.split("-")[-1]) if named else int(labels.max()) + 1,
            activation=activation,
            **options,
        )


def _require_fitting(
    name: str, sizes: list[int], input_shape: tuple[int, ...], num_classes: int
) -> None:
    num_inputs = math.prod(input_shape)
    if (sizes[0], sizes[-1]) == (num_inputs, num_classes):
        return
    fitting = "-".join(map(str, [num_inputs, *sizes[1:-1], num_classes]))
    raise InputError(
        f"{name} takes {sizes[0]} inputs and gives {sizes[-1]} classes, but the data have "
        f"{num_inputs} inputs, shape {input_shape}, and {num_classes} classes; use mlp-{fitting}"
    )


def _mlp(sizes: list[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def _cnn(channels: int, num_classes: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    def convolution(fan_in: int, fan_out: int, stride: int) -> list[nn.Module]:
        # No bias: BatchNorm would subtract it, and the loss would be exactly flat along it.
        conv = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(fan_out), activation()]

    return nn.Sequential(
        *convolution(channels, 16, stride=1),
        *convolution(16, 32, stride=2),
        *convolution(32, 32, stride=2),
        nn.AdaptiveAvgPool2d(1),  # the mean over all pixels, deterministic on GPUs too
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )
