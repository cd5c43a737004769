"""Positive scalings of hidden units that leave a ReLU network as it is, and the balanced one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.symmetries.dense_layers import DenseNetwork

HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU)  # f(a x) = a f(x) for a > 0


class Balanced(NamedTuple):
    """The member with units whose incoming and outgoing weights have equal norms."""

    theta: Tensor  # (n,)
    scales: list[Tensor]  # of each hidden layer, (units,), float64: theta is ``apply`` of these
    sweeps: int  # over all layers; the last one changed no scale by more than the tolerance
    unbalanced: list[list[int]]  # units of each layer whose incoming or outgoing weights are all 0


@dataclass(frozen=True)
class Rescalings:
    """Scalings of the hidden units of a dense ReLU network: incoming times a, outgoing over a.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> found = Rescalings.of(net)
        >>> theta = torch.nn.utils.parameters_to_vector(net.parameters()).detach().double()
        >>> other = found.apply([torch.tensor([0.1, 1.0, 2.0, 30.0])], theta)
        >>> bool(torch.allclose(found.balanced(other).theta, found.balanced(theta).theta))
        True
    """

    network: DenseNetwork

    @classmethod
    def of(cls, model: nn.Module) -> Rescalings:
        """Those of an ``nn.Sequential`` of Linear layers and ReLU or LeakyReLU.

        Raises:
            InputError: another network.
        """
        return cls(DenseNetwork.of(model, HOMOGENEOUS))

    def apply(self, scales: Sequence[Tensor], theta: Tensor) -> Tensor:
        """The rescaled parameters, (n,).

        Args:
            scales: of each hidden layer, (units,), positive.

        Raises:
            InputError: scales that are not positive or not one for each unit, or another theta.

        Cost: a pass over theta.
        """
        found, hidden = self.network.check(theta), self.network.hidden
        wanted = [layer.fan_out for layer, _ in hidden]
        if [tuple(a.shape) for a in scales] != [(m,) for m in wanted]:
            got = [tuple(a.shape) for a in scales]
            raise InputError(f"scales of shapes {got}; expected one for each of {wanted} units")
        for (layer, behind), scale in zip(hidden, scales):
            if not (scale > 0).all() or not scale.isfinite().all():
                raise InputError(f"scales {scale.tolist()}; expected finite numbers above 0")
            a = scale.to(found.device, torch.float64)
            _multiply(layer.weights(found), a[:, None])
            _multiply(layer.biases(found), a[: len(layer.biases(found))])
            _multiply(behind.weights(found), 1 / a)
        return found

    def balanced(self, theta: Tensor, tol: float = 1e-13, max_sweeps: int = 10_000) -> Balanced:
        """The rescaled parameters with the smallest |theta|, which is the same for a whole orbit.

        At them each hidden unit's incoming weights, with its bias, have the norm of its outgoing
        weights. |theta|^2 is a convex function of the logarithms of the scales, and strictly so
        where no unit has weights that are all 0 on one side; such units are left as they are.
        Layer after layer the scale sqrt(|outgoing| / |incoming|) of each unit is the minimum with
        the other layers fixed (Stock, Graham, Gribonval & Jegou 2019, "Equi-normalization of neural
        networks", ICLR); with one hidden layer one sweep is enough.

        Args:
            tol: the sweeps end when no scale changes by more than this share.

        Raises:
            FloatingPointError: scales still change after ``max_sweeps`` sweeps.

        Cost: a few passes over theta a sweep.
        """
        current = self.network.check(theta)
        found, hidden = current.double(), self.network.hidden
        scales = [torch.ones(m.fan_out, dtype=torch.float64) for m, _ in hidden]
        open_: list[list[int]] = [[] for _ in hidden]
        for sweep in range(1, max_sweeps + 1):
            change = 0.0
            for index, (layer, behind) in enumerate(hidden):
                sides = layer.incoming(found).norm(dim=1), behind.weights(found).norm(dim=0)
                is_open = (sides[0] == 0) | (sides[1] == 0)
                ratio = torch.where(is_open, 1.0, (sides[1] / sides[0]).sqrt())
                open_[index] = is_open.nonzero().flatten().tolist()
                step = [torch.ones_like(a) for a in scales]
                step[index] = ratio.cpu()
                found = self.apply(step, found)
                scales[index] = scales[index] * step[index]
                change = max(change, float((ratio - 1).abs().max()))
            if change <= tol:
                return Balanced(self.apply(scales, current), scales, sweep, open_)
        raise FloatingPointError(
            f"after {max_sweeps} sweeps scales still change by {change:.1e}, more than {tol:g}"
        )


def _multiply(weights: Tensor, factors: Tensor) -> None:
    """In place, with one rounding."""
    weights.copy_(weights.double() * factors)
