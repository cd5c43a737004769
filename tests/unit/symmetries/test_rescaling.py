"""Scalings of ReLU units, and the balanced network."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import hessian_spectrum as hs
from hessian_spectrum.symmetries.rescaling import Rescalings


def network(*hidden, bias=True, activation=nn.ReLU):
    torch.manual_seed(0)
    sizes, layers = [3, *hidden, 2], []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1]).double()


NETWORKS = {
    "one layer": network(4),
    "three layers": network(4, 5, 3),
    "without biases": network(4, 3, bias=False),
    "leaky": network(4, 3, activation=nn.LeakyReLU),
}


def theta_of(net):
    return parameters_to_vector(net.parameters()).detach().clone()


def outputs(net, theta):
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    before = theta_of(net)
    vector_to_parameters(theta, net.parameters())
    with torch.no_grad():
        found = net(x)
    vector_to_parameters(before, net.parameters())
    return found


def random_scales(group, seed, spread=3.0):
    random = torch.Generator().manual_seed(seed)
    widths = [layer.fan_out for layer, _ in group.network.hidden]
    return [(spread * torch.randn(m, generator=random, dtype=torch.float64)).exp() for m in widths]


@pytest.mark.parametrize("name", NETWORKS)
def test_scalings_and_balancing_leave_the_function_as_it_is(name):
    net = NETWORKS[name]
    group, theta = Rescalings.of(net), theta_of(net)
    expected = outputs(net, theta)
    scaled = group.apply(random_scales(group, 1), theta)
    for other in (scaled, group.balanced(scaled).theta):
        assert (outputs(net, other) - expected).abs().max() <= 1e-12 * expected.abs().max()
        assert not torch.allclose(other, theta)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_orbit_has_one_balanced_member_and_it_is_the_smallest(name):
    group, theta = Rescalings.of(NETWORKS[name]), theta_of(NETWORKS[name])
    found = group.balanced(theta)
    assert found.unbalanced == [[] for _ in group.network.hidden]
    torch.testing.assert_close(group.apply(found.scales, theta), found.theta, rtol=0, atol=0)
    for layer, behind in group.network.hidden:
        incoming = layer.incoming(found.theta).norm(dim=1)
        outgoing = behind.weights(found.theta).norm(dim=0)
        torch.testing.assert_close(incoming, outgoing, rtol=1e-12, atol=0)
    for seed in range(6):
        member = group.apply(random_scales(group, seed), theta)
        torch.testing.assert_close(
            group.balanced(member).theta, found.theta, rtol=1e-10, atol=1e-12
        )
        near = group.apply(random_scales(group, seed, spread=0.01), found.theta)
        assert min(near.norm(), member.norm(), theta.norm()) > found.theta.norm()
    if len(group.network.hidden) == 1:
        assert found.sweeps == 2  # of which the second changes nothing


def test_units_that_are_0_on_one_side_are_listed_and_left():
    net = network(4, 3)
    group, theta = Rescalings.of(net), theta_of(net)
    (first, second), (_, last) = group.network.hidden
    first.weights(theta)[1] = 0
    first.biases(theta)[1] = 0
    last.weights(theta)[:, 2] = 0
    found = group.balanced(theta)
    assert found.unbalanced == [[1], [2]]
    assert (found.scales[0][1], found.scales[1][2]) == (1, 1)
    assert second.fan_out == 3


def test_what_is_no_scaling_is_refused():
    group, theta = Rescalings.of(network(4)), theta_of(network(4))
    for wrong in (
        [torch.ones(3)],
        [],
        [torch.tensor([1.0, 2, 0, 1])],
        [torch.full((4,), torch.inf)],
    ):
        with pytest.raises(hs.InputError, match="scales"):
            group.apply(wrong, theta)
    with pytest.raises(hs.InputError, match="a Tanh in the network"):
        Rescalings.of(network(4, activation=nn.Tanh))
    three = Rescalings.of(network(4, 5, 3))
    with pytest.raises(FloatingPointError, match="after 2 sweeps"):
        three.balanced(theta_of(network(4, 5, 3)), max_sweeps=2)
