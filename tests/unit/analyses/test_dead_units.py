"""Units of ReLU that no sample activates: by hand, in every kind of layer, and in the Hessian."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.zoo import build_model

X = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]


def evaluator(model, x=X, **options):
    model = model.double()
    y = model(x).detach().flatten(1).sin()
    return hs.Evaluator(
        model, lambda out, y: (out.flatten(1) - y).square().mean(), (x, y), batch_size=3, **options
    )


def hinges(activation=None):
    """Hinges at 0.25, 0.5 and 2 of x in [0, 1], up and down: the fifth and sixth are the dead."""
    model = nn.Sequential(nn.Linear(1, 6), activation or nn.ReLU(), nn.Linear(6, 1)).double()
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).double()
    places = torch.tensor([0.25, 0.25, 0.5, 0.5, 2.0, -1.0]).double()
    with torch.no_grad():
        model[0].weight.copy_(signs[:, None])
        model[0].bias.copy_(-signs * places)
    return model


def test_the_activity_of_hinges_is_the_share_of_samples_beyond_them():
    found = hs.dead_units(evaluator(hinges()))
    (layer,) = found.layers
    above = [(X > 0.25), (X < 0.25), (X > 0.5), (X < 0.5), (X > 2), (X < -1)]
    assert layer.activity.tolist() == [a.double().mean().item() for a in above]
    assert (layer.name, layer.dead.tolist()) == ("1", [4, 5])
    assert (found.count, found.units) == (2, 6)
    assert str(found) == "2 of 6 rectified units are 0 on all samples: 2 of 6 in 1."


def test_weights_of_dead_units_are_null_directions():
    """Of each: one weight and one bias into it, one weight out of it; 3 of its 3 parameters."""
    ev = evaluator(hinges())
    (layer,) = hs.dead_units(ev).layers
    hessian = hs.Hessian(ev) @ np.eye(ev.n)
    zero = np.flatnonzero(~hessian.any(axis=0) & ~hessian.any(axis=1))
    into = [*layer.dead, *(6 + layer.dead), *(12 + layer.dead)]
    assert zero.tolist() == sorted(into)
    assert not ev.gradient()[zero].any()


def test_a_unit_that_one_sample_in_another_minibatch_activates_is_alive():
    model = hinges()
    with torch.no_grad():
        model[0].bias[4] = -0.99  # the last sample, x = 1, alone in its minibatch
    ev = evaluator(model)
    (layer,) = hs.dead_units(ev).layers
    assert layer.dead.tolist() == [5]
    assert layer.activity[4] == pytest.approx(1 / 7, rel=1e-15)
    moved = ev.theta
    moved[6 + 4] = -1.01
    assert hs.dead_units(ev, moved).count == 2


@pytest.mark.parametrize(
    "activation, dead",
    [
        (nn.ReLU(inplace=True), [4, 5]),
        (nn.ReLU6(), [4, 5]),
        (nn.Hardtanh(0.0, 1.0), [4, 5]),
        (nn.LeakyReLU(), None),
        (nn.Hardtanh(-1.0, 1.0), None),
        (nn.GELU(), None),
    ],
)
def test_what_is_0_on_one_side_is_a_rectifier_and_nothing_else_is(activation, dead):
    found = hs.dead_units(evaluator(hinges(activation)))
    assert [layer.dead.tolist() for layer in found.layers] == ([] if dead is None else [dead])
    if dead is None:
        assert str(found) == "No ReLU is evaluated."


class Functions(nn.Module):
    """ReLU as functions of four names, of one layer of which the last unit is dead."""

    def __init__(self):
        super().__init__()
        self.block = nn.Linear(1, 4)
        nn.init.ones_(self.block.weight)
        with torch.no_grad():
            self.block.bias.copy_(torch.tensor([0.0, 1.0, 2.0, -3.0]))

    def forward(self, x):
        z = self.block(x)
        return F.relu(z) + torch.relu(z) + z.clamp(min=0) + z.clamp_min(0.0) + z.clamp(min=-1)


def test_functions_are_seen_and_numbered_where_they_are_evaluated():
    found = hs.dead_units(evaluator(Functions()))
    assert [layer.name for layer in found.layers] == ["", "#2", "#3", "#4"]
    assert all(layer.dead.tolist() == [3] for layer in found.layers)
    assert "1 of 4 in the model itself, 1 of 4 in #2" in str(found)


def test_units_of_convolutions_are_channels_at_all_positions():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.ReLU()
    )
    with torch.no_grad():
        model[1].bias[1] = -1e3
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    for batch_norm in ("eval", "train", "recalibrate"):
        first, second = hs.dead_units(evaluator(model, x, batch_norm=batch_norm)).layers
        assert (first.name, first.dead.tolist(), len(second.activity)) == ("2", [1], 2)
        assert 0 < first.activity[0] < 1


def test_units_of_sequences_are_features_at_all_positions():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True).double()
    with torch.no_grad():
        layer.linear1.bias[2] = -1e3
    x = torch.randn(5, 3, 4).double()
    (found,) = hs.dead_units(evaluator(layer, x)).layers
    assert (found.dead.tolist(), len(found.activity)) == ([2], 6)


def test_the_steps_of_a_recurrence_are_one_layer():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(2, 3, nonlinearity="relu", batch_first=True)
            with torch.no_grad():
                self.rnn.bias_ih_l0[0] = -1e3

        def forward(self, x):
            return self.rnn(x)[0][:, -1]

    x = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    (layer,) = hs.dead_units(evaluator(Last(), x)).layers
    assert (layer.name, layer.dead.tolist()) == ("rnn", [0])


def test_each_block_of_a_residual_network_has_two():
    model = build_model("resnet20", input_shape=(3, 8, 8), width=0.25)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    found = hs.dead_units(evaluator(model, x))
    widths = [len(layer.activity) for layer in found.layers]
    assert widths == [*7 * [4], *6 * [8], *6 * [16]]
    assert len({layer.name for layer in found.layers}) == 19


def test_the_model_is_left_without_hooks():
    ev = evaluator(hinges())
    hs.dead_units(ev)
    modules = list(ev.model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_layers_whose_size_depends_on_the_minibatch_are_refused():
    class Across(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.scale * F.relu(x.T).T

    with pytest.raises(hs.InputError, match="ReLU of 3 units in one minibatch and of 1"):
        hs.dead_units(evaluator(Across()))
