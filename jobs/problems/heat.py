"""The heat equation u_t = u_xx, u(0, x) = sin(pi x), by a physics-informed network."""

import torch
from torch import nn
from torch.func import grad, vmap


class Heat(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

    def u(self, t, x):
        return self.net(torch.stack([t, x])).squeeze()

    def forward(self, points):
        t, x = points.unbind(1)
        residual = vmap(grad(self.u, 0))(t, x) - vmap(grad(grad(self.u, 1), 1))(t, x)
        start = vmap(self.u)(torch.zeros_like(t), x) - torch.sin(torch.pi * x)
        return torch.stack([residual, start], dim=1)


def make(points=100):
    """Written with torch.func, so that products can be linearized, too."""
    inputs = torch.rand(points, 2)
    return Heat(), nn.MSELoss(), (inputs, torch.zeros(points, 2))
