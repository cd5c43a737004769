"""Activation checkpointing, in every mode of products."""

import pytest
import torch
from mlp_products import evaluator, eye_of
from small_networks import CLASSES, INPUTS, relative
from torch import nn
from torch.utils.checkpoint import checkpoint

import hessian_spectrum as hs
from hessian_spectrum.operators.product_modes import MODES


class Checkpointed(nn.Module):
    def __init__(self, reentrant, dropout=0.0):
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, 5), nn.Linear(5, 5)
        self.head, self.dropout = nn.Linear(5, CLASSES), nn.Dropout(dropout)
        self.reentrant = reentrant

    def forward(self, x):
        def body(x):
            return self.dropout(torch.tanh(self.second(torch.tanh(self.first(x)))))

        if self.reentrant is None:
            return self.head(body(x))
        return self.head(checkpoint(body, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", ["off", "frozen"])
def test_checkpointed_activations_are_not_computed_again_with_other_parameters(reentrant, dropout):
    model = Checkpointed(reentrant, 0.5).double()
    plain = Checkpointed(None, 0.5).double()
    plain.load_state_dict(model.state_dict())
    ev, expected = (evaluator(m, dropout=dropout) for m in (model, plain))
    theta = ev.theta + 0.3
    assert relative(ev.gradient(theta), expected.gradient(theta)) < 1e-13
    for operator in (hs.Hessian, hs.GaussNewton):
        for mode in MODES:
            plan = hs.ProductPlan(mode)
            found = operator(ev, theta, plan) @ eye_of(ev)
            assert relative(found, operator(expected, theta) @ eye_of(ev)) < 1e-12, mode
