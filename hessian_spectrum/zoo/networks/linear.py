"""Deep linear networks and linear autoencoders.

Closed forms are known: of the loss at all critical points (Baldi and Hornik 1989, "Neural networks
and principal component analysis"), and of the paths of gradient descent (Saxe, McClelland and
Ganguli 2014; Goodfellow, Vinyals and Saxe 2015 draw the loss along lines).
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.networks.options import Options
from hessian_spectrum.zoo.networks.perceptron import require_fitting, sizes_in


def linear_network(name: str, options: Options) -> nn.Sequential:
    """(N, ...) -> (N, outputs), a product of matrices without biases.

    Args:
        name: dlinear-A-B-...-C, for any number of layers; ``width`` multiplies all sizes but the
            first and the last.

    Raises:
        InputError: the name's sizes do not fit the data.
    """
    sizes = sizes_in(name)
    require_fitting(name, sizes, options)
    return _product(sizes, options)


def linear_autoencoder(name: str, options: Options) -> nn.Sequential:
    """As ``linear_network``, (N, ...) -> (N, inputs): the inputs again.

    With the loss mse and a bottleneck of p units, the least loss is half the sum of all but the p
    largest eigenvalues of the data's second moments (not centered, since there are no biases).

    Args:
        name: autoencoder-A-B-...-A.

    Raises:
        InputError: the name's first or last size is not the number of inputs.
    """
    sizes = sizes_in(name)
    if not sizes[0] == sizes[-1] == options.num_inputs:
        fitting = "-".join(map(str, [options.num_inputs, *sizes[1:-1], options.num_inputs]))
        raise InputError(
            f"{name} takes {sizes[0]} numbers and returns {sizes[-1]}, but a sample has "
            f"{options.num_inputs}, shape {options.input_shape}; use autoencoder-{fitting}"
        )
    return _product(sizes, options)


def inputs_as_targets(name: str, data: TensorDataset) -> TensorDataset:
    """The samples of an autoencoder: inputs (N, ...), and the same as targets (N, F)."""
    inputs = data.tensors[0]
    return TensorDataset(inputs, inputs.flatten(1))


def _product(sizes: list[int], options: Options) -> nn.Sequential:
    sizes = [sizes[0], *map(options.scaled, sizes[1:-1]), sizes[-1]]
    layers = (nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
    return nn.Sequential(nn.Flatten(), *layers)
