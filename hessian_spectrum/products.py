"""Ways to form H V for one minibatch, behind one interface.

A minibatch's part of the loss is a function ``loss(theta)`` of the flat parameters, shape
(n,) -> (). A product mode turns it, once, into a linear map on blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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


def gradient_graph(loss: Loss, theta: Tensor) -> tuple[Tensor, Tensor]:
    """theta as a leaf and the gradient at it, (n,), with the graph that leads to it."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        value = loss(theta)
        if not value.requires_grad:
            return theta, torch.zeros_like(theta)
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True, materialize_grads=True)
    return theta, gradient


def reverse_over_reverse(loss: Loss, theta: Tensor) -> Products:
    """V -> V H, the derivative of <grad loss, v> for each row v (Pearlmutter 1994).

    The first-order graph is built here, once; each row then costs one backward pass through
    it. Memory: the graph (activations and first derivatives of one minibatch), until the
    returned function is dropped.
    """
    theta, gradient = gradient_graph(loss, theta)
    if not gradient.requires_grad:  # the loss is linear in theta
        return torch.zeros_like

    def products(vectors: Tensor) -> Tensor:
        out = torch.empty_like(vectors)
        for row, vector in zip(out, vectors):
            row.copy_(
                torch.autograd.grad(
                    gradient, theta, vector, retain_graph=True, materialize_grads=True
                )[0]
            )
        return out

    return products
