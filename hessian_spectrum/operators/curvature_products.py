"""Products with the curvature matrices of one minibatch's part of the loss.

Each matrix has two implementations: a map over a first-order graph that autograd keeps, and a
product by torch.func. ``product_modes.py`` builds the product modes from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad as backward
from torch.func import grad, jvp, vjp

Rows = Callable[..., Tensor]  # (v, is_grads_batched=False): (n,) -> (n,), batched (k, n) -> (k, n)


@dataclass(frozen=True)
class Form:
    """A symmetric n x n matrix A of a part of the loss."""

    name: str
    graph: Callable[[Any, Tensor], Rows | None]  # part, theta -> map over a kept graph; None: A = 0
    product: Callable[[Any, Tensor, Tensor], Tensor]  # part, theta, v -> A v


# -- Hessian: A = d^2 loss ----------------------------------------------------------------------


def _hessian_graph(part: Callable, theta: Tensor) -> Rows | None:
    """The derivative of <grad loss, v> (Pearlmutter 1994): reverse over reverse."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        value = part(theta)
        if not value.requires_grad:
            return None
        (gradient,) = backward(value, theta, create_graph=True, materialize_grads=True)
    if not gradient.requires_grad:  # the loss is linear in theta
        return None
    return _pull(gradient, theta)


def _hessian_product(part: Callable, theta: Tensor, v: Tensor) -> Tensor:
    return jvp(grad(part), (theta,), (v,))[1]


# -- generalized Gauss-Newton: A = J^T (d^2 criterion) J, J = d outputs (Schraudolph 2002) ------


def _gauss_newton_graph(part: Any, theta: Tensor) -> Rows | None:
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        outputs = part.outputs(theta)
        if not outputs.requires_grad:
            return None
        at = outputs.detach().requires_grad_()
        (slope,) = backward(part.criterion(at), at, create_graph=True, materialize_grads=True)
    if not slope.requires_grad:  # the criterion is linear in the outputs
        return None
    out, back, bend = push(outputs, theta), _pull(outputs, theta), _pull(slope, at)
    return lambda v, **batched: back(bend(out(v, **batched), **batched), **batched)


def _gauss_newton_product(part: Any, theta: Tensor, v: Tensor) -> Tensor:
    outputs, moved = jvp(part.outputs, (theta,), (v,))[:2]
    bent = jvp(grad(part.criterion), (outputs,), (moved,))[1]
    return vjp(part.outputs, theta)[1](bent)[0]


# -- covariance of the samples' gradients, not centred: A = J^T J, J = d samples ----------------


def _covariance_graph(part: Any, theta: Tensor) -> Rows | None:
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        losses = part.samples(theta)
    if not losses.requires_grad:
        return None
    out, back = push(losses, theta), _pull(losses, theta)
    return lambda v, **batched: back(out(v, **batched), **batched)


def _covariance_product(part: Any, theta: Tensor, v: Tensor) -> Tensor:
    return vjp(part.samples, theta)[1](jvp(part.samples, (theta,), (v,))[1])[0]


# -- residual of Gauss-Newton: A = sum_j s_j d^2 outputs_j, s = d criterion / d outputs ---------


def _residual_graph(part: Any, theta: Tensor) -> Rows | None:
    with torch.enable_grad():
        at = part.outputs(theta.detach()).detach().requires_grad_()
        value = part.criterion(at)
    if not value.requires_grad:
        return None
    (slope,) = backward(value, at, materialize_grads=True)
    return _hessian_graph(lambda moved: part.outputs(moved) @ slope, theta)


def _residual_product(part: Any, theta: Tensor, v: Tensor) -> Tensor:
    slope = grad(part.criterion)(part.outputs(theta))
    return _hessian_product(lambda moved: part.outputs(moved) @ slope, theta, v)


# -- curvature of the samples' likelihoods: A = -(1/W) sum_i (1/p_i) d^2 p_i, p_i = exp(-loss_i) -


def _likelihood_graph(part: Any, theta: Tensor) -> Rows | None:
    with torch.enable_grad():  # a loss may contain derivatives with respect to the inputs
        here = part.sample_losses(theta.detach()).detach()
    return _hessian_graph(lambda moved: -part.likelihoods(moved, here), theta)


def _likelihood_product(part: Any, theta: Tensor, v: Tensor) -> Tensor:
    here = part.sample_losses(theta)
    return _hessian_product(lambda moved: -part.likelihoods(moved, here), theta, v)


# -- inside -------------------------------------------------------------------------------------


def _pull(value: Tensor, at: Tensor) -> Rows:
    """u -> u J with J = d value / d at, over the graph that leads from ``at`` to ``value``."""

    def rows(u: Tensor, is_grads_batched: bool = False) -> Tensor:
        return backward(
            value,
            at,
            u,
            retain_graph=True,
            is_grads_batched=is_grads_batched,
            materialize_grads=True,
        )[0]

    return rows


def push(value: Tensor, at: Tensor) -> Rows:
    """v -> J v, J = d value / d at.

    u -> u J is linear in u, and its derivative by u is J (Townsend 2017).
    """
    with torch.enable_grad():
        u = torch.zeros_like(value, requires_grad=True)
        (pulled,) = backward(value, at, u, create_graph=True, materialize_grads=True)
    return _pull(pulled, u)


HESSIAN = Form("hessian", _hessian_graph, _hessian_product)
GAUSS_NEWTON = Form("gauss-newton", _gauss_newton_graph, _gauss_newton_product)
COVARIANCE = Form("gradient-covariance", _covariance_graph, _covariance_product)
RESIDUAL = Form("gauss-newton-residual", _residual_graph, _residual_product)
LIKELIHOOD = Form("likelihood-curvature", _likelihood_graph, _likelihood_product)
