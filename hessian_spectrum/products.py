"""Ways to form H V for one minibatch, behind one interface.

A minibatch's part of the loss is a function ``loss(theta)`` of the flat parameters, shape
(n,) -> (). A product mode turns it, once, into a linear map on blocks of rows; what the map
keeps (activations, first derivatives) lives until the map is dropped. By operation count a
product costs two gradients a tangent in a deep network, once that preparation is shared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

Loss = Callable[[Tensor], Tensor]  # (n,) -> ()
Products = Callable[[Tensor], Tensor]  # V, shape (k, n) -> V H, shape (k, n)


def gradient(loss: Loss, theta: Tensor) -> Tensor:
    """grad loss, shape (n,); zero where the loss does not depend on theta."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        value = loss(theta)
    if not value.requires_grad:
        return torch.zeros_like(theta)
    return torch.autograd.grad(value, theta, materialize_grads=True)[0]


def reverse(loss: Loss, theta: Tensor) -> Products:
    """V -> V H, the derivative of <grad loss, v> for each row v (Pearlmutter 1994).

    Reverse over reverse: the first-order graph is built here, once; each row then costs one
    backward pass through it. Works wherever second derivatives do.
    """
    theta, gradient = _gradient_graph(loss, theta)
    if not gradient.requires_grad:  # the loss is linear in theta
        return torch.zeros_like

    def products(vectors: Tensor) -> Tensor:
        # One row at a time: a batched backward pass is slower than this loop for most
        # networks; where it is faster, there is reverse_batched.
        rows = [
            torch.autograd.grad(gradient, theta, v, retain_graph=True, materialize_grads=True)[0]
            for v in vectors
        ]
        return torch.stack(rows)

    return products


def reverse_batched(loss: Loss, theta: Tensor) -> Products:
    """As ``reverse``, all rows in one backward pass under vmap; memory for all of them."""
    theta, gradient = _gradient_graph(loss, theta)
    if not gradient.requires_grad:
        return torch.zeros_like

    def products(vectors: Tensor) -> Tensor:
        return torch.autograd.grad(
            gradient,
            theta,
            vectors,
            retain_graph=True,
            is_grads_batched=True,
            materialize_grads=True,
        )[0]

    return products


def _gradient_graph(loss: Loss, theta: Tensor) -> tuple[Tensor, Tensor]:
    """theta as a leaf and the gradient at it, (n,), with the graph that leads to it."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        value = loss(theta)
        if not value.requires_grad:
            return theta, torch.zeros_like(theta)
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True, materialize_grads=True)
    return theta, gradient


def forward(loss: Loss, theta: Tensor) -> Products:
    """V -> V H as directional derivatives of the gradient, all rows under vmap.

    Forward over reverse: keeps nothing between calls, and forms the primal again in each.
    """

    def products(vectors: Tensor) -> Tensor:
        return vmap(lambda v: jvp(grad(loss), (theta,), (v,))[1])(vectors)

    return products


def linearize(loss: Loss, theta: Tensor) -> Products:
    """V -> V H through the linearized gradient, one row at a time.

    The gradient is traced once and everything that does not depend on v is evaluated here
    and kept; tracing costs about a second for a deep network.
    """
    linear = _linearized(loss, theta)
    return lambda vectors: torch.stack([linear(v) for v in vectors])


def linearize_batched(loss: Loss, theta: Tensor) -> Products:
    """As ``linearize``, all rows at once under vmap; memory for all of them."""
    return vmap(_linearized(loss, theta))


def _linearized(loss: Loss, theta: Tensor) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        # torch's constant folding names its own module attribute before it adds it.
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
        linear = torch.func.linearize(grad(loss), theta.detach())[1]
    linear(torch.zeros_like(theta))  # torch evaluates the constants at the first call
    return linear


MODES: dict[str, Callable[[Loss, Tensor], Products]] = {
    "reverse": reverse,
    "reverse-batched": reverse_batched,
    "forward": forward,
    "linearize": linearize,
    "linearize-batched": linearize_batched,
}
