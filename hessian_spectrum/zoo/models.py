"""The zoo's models by name, initialized from torch's global random generator."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.networks.boltzmann import boltzmann_machine, masked
from hessian_spectrum.zoo.networks.cnn import cnn
from hessian_spectrum.zoo.networks.conv_maxout import FORMS, conv_maxout
from hessian_spectrum.zoo.networks.densenet import densenet
from hessian_spectrum.zoo.networks.layers import ACTIVATIONS
from hessian_spectrum.zoo.networks.linear import (
    inputs_as_targets,
    linear_autoencoder,
    linear_network,
)
from hessian_spectrum.zoo.networks.lstm import lstm
from hessian_spectrum.zoo.networks.nin import nin
from hessian_spectrum.zoo.networks.options import Options
from hessian_spectrum.zoo.networks.perceptron import perceptron, sizes_in
from hessian_spectrum.zoo.networks.resnet import resnet
from hessian_spectrum.zoo.networks.vgg import STAGES as VGGS
from hessian_spectrum.zoo.networks.vgg import vgg
from hessian_spectrum.zoo.networks.wide_resnet import wide_resnet
from hessian_spectrum.zoo.torchvision_names import PREFIX, build_classifier


@dataclass(frozen=True)
class Family:
    """Networks whose names have one form."""

    pattern: str  # of the whole name
    names: str  # in words, for messages
    build: Callable[[str, Options], nn.Module]
    # The options that not every family has and that change nothing where it has not.
    has_width: bool = True
    has_dropout: bool = False
    activations: Sequence[str] | None = None  # None: the family's own, whatever is asked for
    sized: bool = False  # the name ends with the number of outputs
    losses: tuple[str, ...] = ("cross-entropy", "mse", "fast-gradient-sign")
    # The data set as model and loss take it; None: as it is.
    samples: Callable[[str, TensorDataset], TensorDataset] | None = None


FAMILIES = (
    Family(
        r"mlp(-[1-9]\d*){2,}",
        "mlp-A-B-...-C (layer sizes, as in mlp-784-20-10)",
        perceptron,
        has_dropout=True,
        activations=(*ACTIVATIONS, "maxout"),
        sized=True,
    ),
    Family(r"cnn", "cnn", lambda _, options: cnn(options), activations=tuple(ACTIVATIONS)),
    Family(r"resnet[1-9]\d*", "resnet20 (32, 44, 56, 110)", resnet),
    Family("|".join(VGGS), ", ".join(VGGS), vgg, has_dropout=True),
    Family(r"nin", "nin", nin, has_dropout=True),
    Family(r"wrn-[1-9]\d*-[1-9]\d*", "wrn-16-4 (depth, widening)", wide_resnet, has_dropout=True),
    Family(
        r"densenet-[1-9]\d*-[1-9]\d*", "densenet-40-12 (depth, growth)", densenet, has_dropout=True
    ),
    Family("|".join(FORMS), ", ".join(FORMS), conv_maxout, has_dropout=True),
    Family(
        r"dlinear(-[1-9]\d*){2,}",
        "dlinear-A-B-...-C (sizes of a deep linear network)",
        linear_network,
        sized=True,
    ),
    Family(
        r"autoencoder(-[1-9]\d*){2,}",
        "autoencoder-A-B-...-A (a linear one)",
        linear_autoencoder,
        sized=True,
        losses=("mse",),
        samples=inputs_as_targets,
    ),
    Family(r"lstm", "lstm", lstm, has_dropout=True, losses=("cross-entropy",)),
    Family(
        r"mpdbm(-[1-9]\d*){4}",
        "mpdbm-D-A-B-K (visible units, hidden ones, classes)",
        boltzmann_machine,
        sized=True,
        losses=("multi-prediction",),
        samples=masked,
    ),
    Family(
        re.escape(PREFIX) + ".*",
        f"{PREFIX}NAME",
        lambda name, options: build_classifier(name, options.num_classes),
        has_width=False,
    ),
)


def family_of(name: str) -> Family:
    """Raises InputError for a name that no family has."""
    for family in FAMILIES:
        if re.fullmatch(family.pattern, name):
            return family
    known = ", ".join(family.names for family in FAMILIES)
    raise InputError(f"unknown model {name!r}; use one of: {known}")


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    input_shape: Sequence[int] = (1, 28, 28),
    activation: str = "tanh",
    shortcut: bool = True,
    batchnorm: bool = True,
    width: float = 1.0,
    dropout_rate: float | None = None,
) -> nn.Module:
    """A freshly initialized network, float32: (N, *input_shape) -> (N, num_classes) logits.

    Seed torch before the call to reproduce the parameters.

    Args:
        name: ``mlp-A-B-...-C``, a perceptron of these layer sizes with biases
            (``mlp-784-20-10`` has 15,910 parameters); ``cnn``, three convolutions with
            BatchNorm for images of any size (14,458 parameters for gray images, 10 classes);
            ``resnet20``, 32, 44, 56 or 110; ``vgg11``, ``vgg16`` for images of 32x32 or more;
            ``nin``, Network in Network; ``wrn-D-K``, a wide residual network of depth D, K times
            as wide; ``densenet-L-K``, of depth L and growth K; ``convmaxout-mnist`` and
            ``convmaxout-cifar10``; ``dlinear-A-B-...-C``, a product of matrices, and
            ``autoencoder-A-B-...-A``, one whose targets are its inputs; ``lstm``, a language model;
            ``mpdbm-D-A-B-K``, a multi-prediction deep Boltzmann machine; or ``torchvision:NAME``,
            a classifier of torchvision.models. Modules of ``zoo.networks`` name the sources, and
            ``zoo.objectives`` has the data and losses that models take.
        num_classes: number of logits.
        input_shape: (C, H, W) of one sample.
        activation: ``tanh``, ``relu`` or ``sigmoid``, between the layers of ``mlp`` and ``cnn``,
            or ``maxout`` in ``mlp``. Other models have their own.
        shortcut: keep the shortcuts of ``resnet``, ``wrn`` and ``densenet``; other models have
            none.
        batchnorm: keep the BatchNorm layers of ``cnn``, ``resnet``, ``vgg``, ``nin``, ``wrn`` and
            ``densenet``; without them the convolutions have biases. Other models have none.
        width: multiplies the units or channels of every hidden layer; each is rounded, and at
            least 1.
        dropout_rate: probability with which the model's dropout layers drop a unit; None for the
            model's own: 0.5 for ``nin`` and ``convmaxout``, and else 0.

    Raises:
        InputError: an unknown name, an option that the model does not have, or sizes that do not
            fit the data.
    """
    family = family_of(name)
    _require_options(name, family, activation, width, dropout_rate)
    return family.build(
        name,
        Options(
            num_classes=num_classes,
            input_shape=tuple(input_shape),
            activation=activation,
            shortcut=shortcut,
            batchnorm=batchnorm,
            width=width,
            dropout_rate=dropout_rate,
        ),
    )


def model_for(
    data: TensorDataset, name: str, activation: str, seed: int, **options: Any
) -> nn.Module:
    """``build_model`` for these samples, initialized from ``seed``.

    torch's global random state is not changed. The number of classes comes from the name of a
    model that has it, such as a perceptron's, or from the data, such as a vocabulary; for others
    it is the largest label plus 1.

    Args:
        data: as ``load_dataset`` returns them.
        options: ``shortcut``, ``batchnorm``, ``width``, ``dropout_rate``.
    """
    inputs, labels = data.tensors
    if family_of(name).sized:
        num_classes = sizes_in(name)[-1]
    else:
        num_classes = getattr(data, "num_classes", int(labels.max()) + 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(
            name,
            input_shape=tuple(inputs.shape[1:]),
            num_classes=num_classes,
            activation=activation,
            **options,
        )


def _require_options(
    name: str, family: Family, activation: str, width: float, dropout_rate: float | None
) -> None:
    known = family.activations or (*ACTIVATIONS, "maxout")
    if activation not in known:
        raise InputError(f"{name} has no activation {activation!r}; use one of: {', '.join(known)}")
    if width != 1.0 and not family.has_width:
        raise InputError(f"{name} has no width to multiply by {width}; leave the width out")
    if dropout_rate is not None and not family.has_dropout:
        having = ", ".join(other.names for other in FAMILIES if other.has_dropout)
        raise InputError(
            f"{name} has no dropout whose rate could be {dropout_rate}; leave the rate out, or "
            f"use a model that has it: {having}"
        )
