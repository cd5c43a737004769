"""Fully connected networks: tanh, ReLU, sigmoid or maxout, with dropout.

``mlp-784-240-240-10`` with ``maxout`` is the permutation-invariant MNIST network of Goodfellow,
Warde-Farley, Mirza, Courville and Bengio (2013, "Maxout networks", section 5.1; the sizes are
those of their published configuration); its ReLU and sigmoid forms are compared by Goodfellow,
Vinyals and Saxe (2015). Two hidden layers are the form of FC2 of Im, Tao and Branson (2017).
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.networks.layers import Maxout, activation_named, with_dropout
from hessian_spectrum.zoo.networks.options import Options

PIECES = 5  # linear pieces of a maxout unit


def sizes_in(name: str) -> list[int]:
    """The layer sizes of a name such as mlp-784-20-10."""
    return [int(size) for size in name.split("-")[1:]]


def perceptron(name: str, options: Options) -> nn.Sequential:
    """(N, ...) -> (N, classes) logits, by linear layers with biases.

    The width multiplies the hidden sizes of the name; a maxout unit is the largest of ``PIECES``
    linear functions; dropout (rate 0 unless given) follows each hidden layer.

    Raises:
        InputError: the name's sizes do not fit the data.
    """
    sizes = sizes_in(name)
    require_fitting(name, sizes, options)
    hidden = [options.scaled(size) for size in sizes[1:-1]]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise([sizes[0], *hidden]):
        layers += _hidden(fan_in, fan_out, options)
    return nn.Sequential(*layers, nn.Linear([sizes[0], *hidden][-1], sizes[-1]))


def _hidden(fan_in: int, fan_out: int, options: Options) -> list[nn.Module]:
    rate = options.dropout_rate or 0.0
    if options.activation == "maxout":
        return [nn.Linear(fan_in, PIECES * fan_out), with_dropout(Maxout(PIECES), rate)]
    return [
        nn.Linear(fan_in, fan_out),
        with_dropout(activation_named(options.activation), rate),
    ]


def require_fitting(name: str, sizes: list[int], options: Options) -> None:
    """InputError unless the first and the last size are those of the data."""
    if (sizes[0], sizes[-1]) == (options.num_inputs, options.num_classes):
        return
    family = name.split("-")[0]
    fitting = "-".join(map(str, [options.num_inputs, *sizes[1:-1], options.num_classes]))
    raise InputError(
        f"{name} takes {sizes[0]} inputs and gives {sizes[-1]} classes, but the data have "
        f"{options.num_inputs} inputs, shape {options.input_shape}, and {options.num_classes} "
        f"classes; use {family}-{fitting}"
    )
