"""Layers that several families share."""

from __future__ import annotations

from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
}


class Maxout(nn.Module):
    """The largest of each ``pieces`` consecutive features, (N, k d, ...) -> (N, d, ...).

    The nonlinearity of Goodfellow, Warde-Farley, Mirza, Courville and Bengio (2013, "Maxout
    networks"), behind a linear layer or a convolution of k d outputs.
    """

    def __init__(self, pieces: int):
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.pieces)).amax(2)

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}"


def activation_named(name: str) -> nn.Module:
    """Raises InputError for an activation that is no function of single units."""
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation {name!r}; use one of: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def with_dropout(layer: nn.Module, rate: float) -> nn.Module:
    """``layer`` and dropout behind it; one module, so that the names of later layers stay."""
    return nn.Sequential(layer, nn.Dropout(rate)) if rate else layer


def convolution(
    fan_in: int, fan_out: int, size: int = 3, *, stride: int = 1, padding: int, batchnorm: bool
) -> list[nn.Module]:
    """A convolution, with BatchNorm or with biases.

    BatchNorm would subtract the biases, and the loss would be exactly flat along them.
    """
    conv = nn.Conv2d(fan_in, fan_out, size, stride, padding, bias=not batchnorm)
    return [conv, nn.BatchNorm2d(fan_out)] if batchnorm else [conv]


def he_normal(network: nn.Sequential) -> nn.Sequential:
    """``network`` with the weights of its convolutions drawn as for ReLU behind them.

    He, Zhang, Ren and Sun (2015), "Delving deep into rectifiers", equation 14. With torch's own,
    smaller weights the signal of a deep network without BatchNorm vanishes. Biases stay torch's
    own: at 0, units whose inputs are all 0 would lie on the kink of ReLU.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
