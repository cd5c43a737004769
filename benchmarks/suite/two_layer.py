"""Networks with one hidden layer, many points at once: loss, gradient, Hessian, Newton's method.

What the package forms for any network by automatic differentiation is written out here for one, so
that hundreds of critical points of a small network take minutes. The points are handed to the
package, which says what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

TRIED = (0.04, 0.2, 1.0, 4.0, 16.0, 256.0)  # dampings of a step, over the last one that was taken
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e-10, 1e8  # over |lambda|max
AT_ONCE = 64


@dataclass(frozen=True)
class TwoLayer:
    """o(x) = W2 (s(W1 (x, 1)), 1), without the ones where there are no biases.

    The loss is the mean over samples of half the squared error, or of the cross entropy, plus
    (weight_decay / 2) |theta|^2. theta holds W1, then W2, row by row, a bias at the end of a row.
    """

    x: Tensor  # (m, inputs)
    y: Tensor  # (m, outputs); of cross entropy one-hot
    hidden: int
    activation: Literal["tanh", "relu"] = "tanh"
    loss: Literal["mse", "cross-entropy"] = "mse"
    has_biases: bool = True
    weight_decay: float = 0.0

    @property
    def inputs(self) -> Tensor:
        return self._with_ones(self.x)

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        one = int(self.has_biases)
        return (self.hidden, self.x.shape[1] + one), (self.y.shape[1], self.hidden + one)

    @property
    def n(self) -> int:
        return sum(rows * columns for rows, columns in self.shapes)

    def _with_ones(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[..., :1])], -1) if self.has_biases else x

    def weights(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """(p, n) -> W1 and W2, (p, rows, columns)."""
        first, second = self.shapes
        parts = theta.split([first[0] * first[1], second[0] * second[1]], dim=1)
        return parts[0].view(-1, *first), parts[1].view(-1, *second)

    def _forward(self, theta: Tensor) -> tuple[Tensor, ...]:
        """W2 without biases; s(z), s'(z), s''(z), each (p, m, hidden); outputs (p, m, outputs)."""
        first, second = self.weights(theta)
        z = self.inputs @ first.mT
        if self.activation == "tanh":
            a = z.tanh()
            slope = 1 - a * a
            bend = -2 * a * slope
        else:
            slope = (z > 0).to(z)
            a, bend = z * slope, torch.zeros_like(z)
        return second[..., : self.hidden], a, slope, bend, self._with_ones(a) @ second.mT

    def _of_outputs(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of each sample, its gradient and its Hessian in the outputs."""
        if self.loss == "mse":
            r = outputs - self.y
            eye = torch.eye(self.y.shape[1]).to(r)
            return r.square().sum(-1) / 2, r, eye.expand(*r.shape, -1)
        log = outputs.log_softmax(-1)
        p = log.exp()
        return (
            -(log * self.y).sum(-1),
            p - self.y,
            torch.diag_embed(p) - p[..., None] * p[..., None, :],
        )

    def outputs(self, theta: Tensor) -> Tensor:
        """(p, n) -> (p, m, outputs)."""
        return self._forward(theta)[-1]

    def losses(self, theta: Tensor) -> Tensor:
        """(p, n) -> (p,)."""
        outputs = self._forward(theta)[-1]
        decay = self.weight_decay / 2 * theta.square().sum(1)
        return self._of_outputs(outputs)[0].mean(1) + decay

    def gradients(self, theta: Tensor) -> Tensor:
        """(p, n) -> (p, n)."""
        w, a, slope, _, outputs = self._forward(theta)
        r = self._of_outputs(outputs)[1] / len(self.x)
        second = r.mT @ self._with_ones(a)
        first = ((r @ w) * slope).mT @ self.inputs
        return torch.cat([first.flatten(1), second.flatten(1)], 1) + self.weight_decay * theta

    def hessians(self, theta: Tensor) -> Tensor:
        """(p, n) -> (p, n, n)."""
        w, a, slope, bend, outputs = self._forward(theta)
        _, r, curvature = self._of_outputs(outputs)
        p, m, h = a.shape
        r, curvature = r / m, curvature / m
        x, ones = self.inputs, self._with_ones(a)
        pairs = (x[:, :, None] * x[:, None, :]).flatten(1)  # (m, inputs^2)
        by_w = curvature @ w[:, None]  # (p, m, outputs, hidden)
        inner = w.mT[:, None] @ by_w * slope[..., :, None] * slope[..., None, :]
        inner = inner + torch.diag_embed((r @ w) * bend)
        first = (inner.permute(0, 2, 3, 1) @ pairs).view(p, h, h, x.shape[1], -1)
        first = first.permute(0, 1, 3, 2, 4).reshape(p, h * x.shape[1], -1)
        # d2 / dW2[k, j] dW1[l, i]
        outer = by_w * slope[:, :, None, :]
        mixed = torch.einsum("pmkl,pmj,mi->pkjli", outer, ones, x)
        own = torch.einsum("pmk,pml,mi->pkli", r, slope, x)
        index = torch.arange(h)
        mixed[:, :, index, index] += own
        mixed = mixed.reshape(p, -1, h * x.shape[1])
        second = torch.einsum("pmkq,pmj,pml->pkjql", curvature, ones, ones)
        second = second.reshape(p, mixed.shape[1], -1)
        top, bottom = torch.cat([first, mixed.mT], 2), torch.cat([mixed, second], 2)
        return torch.cat([top, bottom], 1) + self.weight_decay * torch.eye(self.n).to(theta)

    def module(self) -> nn.Module:
        """The network as a module, for the package."""
        layers = (
            nn.Linear(self.x.shape[1], self.hidden, bias=self.has_biases),
            nn.Linear(self.hidden, self.y.shape[1], bias=self.has_biases),
        )
        middle = nn.Tanh() if self.activation == "tanh" else nn.ReLU()
        return nn.Sequential(layers[0], middle, layers[1]).to(self.x)

    def parameters(self, theta: Tensor) -> Tensor:
        """(p, n) -> (p, n) in the order of ``module``: biases after the weights of their layer."""
        if not self.has_biases:
            return theta
        parts = [part for w in self.weights(theta) for part in (w[..., :-1], w[..., -1])]
        return torch.cat([part.flatten(1) for part in parts], 1)


def newton(net: TwoLayer, theta: Tensor, steps: int, tol: float) -> tuple[Tensor, Tensor]:
    """Critical points near many starts, by Levenberg-Marquardt steps on the gradient.

    As ``hs.find_critical_point``, but that of each Hessian the best of several dampings is taken.

    Args:
        theta: starts, (p, n).
        tol: of |gradient|.

    Returns:
        Points, (p, n), and the norms of their gradients, (p,).
    """
    theta = theta.clone()
    norms = net.gradients(theta).norm(dim=1)
    damping = torch.full_like(norms, FIRST_DAMPING)
    for _ in range(steps):
        open_ = torch.where((norms > tol) & (damping < MOST_DAMPING))[0]
        if not len(open_):
            break
        for rows in open_.split(AT_ONCE):
            theta[rows], norms[rows], damping[rows] = _step(
                net, theta[rows], norms[rows], damping[rows]
            )
    return theta, norms


def _step(
    net: TwoLayer, theta: Tensor, norms: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    p = len(theta)
    values, vectors = torch.linalg.eigh(net.hessians(theta))
    parts = (vectors.mT @ net.gradients(theta)[..., None]).mT  # (p, 1, n)
    tried = (damping[:, None] * torch.tensor(TRIED).to(damping)).clamp(LEAST_DAMPING)
    shift = tried * values.abs().amax(1, keepdim=True)
    values = values[:, None]
    steps = -(values / (values**2 + shift[..., None] ** 2) * parts) @ vectors.mT
    ahead = theta[:, None] + steps
    found = net.gradients(ahead.flatten(0, 1)).norm(dim=1).view(p, -1)
    found = torch.where(found.isfinite(), found, torch.inf)
    best = found.argmin(1)
    each = torch.arange(p)
    fell = found[each, best] < norms
    return (
        torch.where(fell[:, None], ahead[each, best], theta),
        torch.where(fell, found[each, best], norms),
        torch.where(fell, tried[each, best], damping * TRIED[-1]),
    )
