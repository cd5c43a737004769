"""The dense float64 Hessian of an independently written full-batch loss."""

import torch
from torch import nn


def dense_hessian(model, loss_of_model, parameters=None):
    """(n, n) of ``loss_of_model(model)``, one scalar over all data in one batch.

    Reverse over reverse by torch.autograd.functional: forward over ``jacrev`` is silently wrong
    with LayerNorm.
    """
    named = {
        name: p.detach()
        for name, p in model.named_parameters()
        if p.requires_grad and (parameters is None or name in parameters)
    }
    sizes = [p.numel() for p in named.values()]

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return loss_of_model(self.model)

    def loss(theta):
        parts = zip(named.items(), theta.split(sizes))
        state = {f"model.{name}": part.view_as(p) for (name, p), part in parts}
        return torch.func.functional_call(Loss(), state, ())

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    return torch.autograd.functional.hessian(loss, theta)
