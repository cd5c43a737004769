"""The model with its own parameters moved, as an optimizer would move them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, in_one_line, is_out_of_memory
from hessian_spectrum.loss.additivity import close
from hessian_spectrum.loss.functional import LossFunction
from hessian_spectrum.loss.samples import Piece

MOVE = 0.05  # relative: far enough for rounding not to matter


def require_own_weights(
    function: LossFunction, pieces: tuple[Piece, ...], move: Tensor
) -> str | None:
    """Compare the loss as a function of theta with the loss after the model's parameters moved.

    The first is evaluated by ``functional_call``, which replaces the parameters that the model's
    modules hold. A loss or model that holds a parameter in another way (a list of its own, a
    closure) keeps the old value there.

    Args:
        move: shape (n,), by what theta is moved.

    Returns:
        Why nothing could be concluded, or None.

    Raises:
        InputError: the two differ; the parameters that are held in another way are named.

    Cost: two evaluations of the samples; two for each parameter tensor where they differ.
    """
    try:
        named = _differing(function, pieces, move)
    except RuntimeError as failed:
        if is_out_of_memory(failed):
            raise
        return f"the model cannot be evaluated by itself ({in_one_line(failed)})"
    if not named:
        return None
    raise InputError(
        "the loss depends on parameters by another way than through the modules of the model: it "
        f"changes with the model's own {_listed(named)}, but as a function of theta it does not "
        "in the same way. Does the loss, forward or a module hold parameters in a list, dict or "
        "variable of its own, or outputs that were computed before? Take them from the model "
        "where they are used, as in model.parameters()"
    )


def _differing(function: LossFunction, pieces: tuple[Piece, ...], move: Tensor) -> list[str]:
    """Names of the parameters whose move is not seen in the same way; none if all are."""
    if _agree(function, pieces, move):
        return []
    parts = function.layout.unflatten(move)
    alone = []
    for name in parts:
        only = torch.cat([(t if k == name else 0 * t).reshape(-1) for k, t in parts.items()])
        if not _agree(function, pieces, only):
            alone.append(name)
    return alone or list(parts)


def _agree(function: LossFunction, pieces: tuple[Piece, ...], move: Tensor) -> bool:
    theta = function.theta + move
    constants = function.constants()
    for piece in pieces:
        by_theta = function.loss(theta, piece.batch, constants).detach().double()
        with _moved(function, theta):
            by_model = function.own_loss(piece.batch).detach().double()
        if by_theta.isfinite() and not close(by_theta, by_model, function.rounding):
            return False
    return True


@contextmanager
def _moved(function: LossFunction, theta: Tensor) -> Iterator[None]:
    """The model's parameters set to theta, in the function's dtype and on its device.

    In place where dtype and device are the model's own, so that whatever shares their memory moves
    too. Restored to the bit, without a trace in autograd's version counters.
    """
    named = function.layout.unflatten(theta)
    with ExitStack() as stack:
        for name, own in function.own_tensors():
            value = named.get(name, own.detach())
            value = value.to(
                function.device, function.dtype if own.is_floating_point() else own.dtype
            )
            if (value.dtype, value.device) == (own.dtype, own.device):
                stack.callback(own.data.copy_, own.detach().clone())
                if name in named:
                    own.data.copy_(value)
            else:
                stack.callback(_point_to, own, own.data)
                own.data = value
        yield


def _point_to(tensor: Any, data: Tensor) -> None:
    tensor.data = data


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
