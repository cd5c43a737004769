"""The layers of a dense network as parts of its flat parameter vector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError


@dataclass(frozen=True)
class DenseLayer:
    """Where a layer's weights and biases lie in theta."""

    fan_out: int
    fan_in: int
    weight: int  # first entry of the weights, row by row
    bias: int | None  # first entry of the biases

    def weights(self, theta: Tensor) -> Tensor:
        """A view of theta, (fan_out, fan_in)."""
        size = self.fan_out * self.fan_in
        return theta[self.weight : self.weight + size].view(self.fan_out, self.fan_in)

    def incoming(self, theta: Tensor) -> Tensor:
        """A copy, (fan_out, 1 + fan_in): each unit's bias, if it has one, and its weights."""
        weights = self.weights(theta)
        return (
            weights if self.bias is None else torch.cat([self.biases(theta)[:, None], weights], 1)
        )

    def biases(self, theta: Tensor) -> Tensor:
        """A view of theta, (fan_out,); (0,) without biases."""
        return theta[:0] if self.bias is None else theta[self.bias : self.bias + self.fan_out]


@dataclass(frozen=True)
class DenseNetwork:
    """The layers of a network from input to output, with n parameters in all."""

    layers: tuple[DenseLayer, ...]
    n: int

    @classmethod
    def of(cls, model: nn.Module, activations: tuple[type[nn.Module], ...]) -> DenseNetwork:
        """The layers of an ``nn.Sequential`` of Linear layers with these activations between.

        Flatten in front, dropout and nested Sequentials are allowed. theta has the parameters in
        the order of ``model.parameters()``, as an ``Evaluator`` has it.

        Raises:
            InputError: another module, a shared parameter, or fewer than two Linear layers.
        """
        offsets, n = {}, 0
        for parameter in model.parameters():
            offsets[id(parameter)] = n
            n += parameter.numel()
        names = ", ".join(kind.__name__ for kind in activations)
        layers, is_activated = [], True
        for module in _leaves(model):
            if type(module) is nn.Linear:
                if not is_activated:
                    raise InputError(
                        "two Linear layers without an activation between them have more "
                        f"symmetries than these; expected one of {names} between them"
                    )
                bias = None if module.bias is None else offsets[id(module.bias)]
                weight = offsets[id(module.weight)]
                layers.append(DenseLayer(module.out_features, module.in_features, weight, bias))
                is_activated = False
            elif type(module) in activations:
                is_activated = True
            elif not isinstance(module, (nn.Flatten, nn.Dropout, nn.Identity)):
                raise InputError(
                    f"a {type(module).__name__} in the network; expected Linear layers with "
                    f"{names} between them"
                )
        first = [layer.weight for layer in layers]
        if len(layers) < 2 or len(set(first)) < len(first) or is_activated:
            raise InputError(
                f"{len(layers)} Linear layers; expected two or more with parameters of their own, "
                "the last of them without an activation"
            )
        return cls(tuple(layers), n)

    @property
    def hidden(self) -> list[tuple[DenseLayer, DenseLayer]]:
        """Each hidden layer with the layer behind it, which has its outgoing weights."""
        return list(zip(self.layers, self.layers[1:]))

    def check(self, theta: Tensor) -> Tensor:
        """A copy of theta.

        Raises:
            InputError: it does not have the shape (n,).
        """
        if tuple(theta.shape) != (self.n,):
            raise InputError(f"theta has the shape {tuple(theta.shape)}; expected ({self.n},)")
        return theta.detach().clone()


def _leaves(model: nn.Module) -> Iterator[nn.Module]:
    if type(model) is nn.Sequential:
        for module in model:
            yield from _leaves(module)
    else:
        yield model
