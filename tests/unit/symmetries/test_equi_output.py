"""Permutations and sign flips of hidden units: a group, its orbits and their representatives."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import hessian_spectrum as hs
from hessian_spectrum.symmetries.equi_output import EquiOutputGroup
from hessian_spectrum.zoo.models import build_model


def dense(*sizes, bias=True, activation=nn.Tanh):
    torch.manual_seed(0)
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(nn.Flatten(), *layers[:-1]).double()


NETWORKS = {
    "one layer": dense(3, 4, 2),
    "three layers": dense(3, 4, 5, 3, 2),
    "without biases": dense(3, 4, 3, 2, bias=False),
    "other activation": dense(3, 4, 3, 2, activation=nn.Softsign),
}


SHARED = nn.Linear(3, 3)


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


@pytest.mark.parametrize("name", NETWORKS)
def test_elements_leave_the_function_and_the_norm_as_they_are(name):
    net = NETWORKS[name]
    group, theta = EquiOutputGroup.of(net), theta_of(net)
    expected = outputs(net, theta)
    for seed in range(5):
        moved = group.apply(group.random(seed), theta)
        assert not torch.equal(moved, theta)
        assert (outputs(net, moved) - expected).abs().max() <= 1e-12 * expected.abs().max()
        assert moved.norm() == pytest.approx(theta.norm().item(), rel=1e-14)
        assert sorted(moved.abs().tolist()) == sorted(theta.abs().tolist())


@pytest.mark.parametrize("name", NETWORKS)
def test_elements_form_a_group_that_acts_on_parameters(name):
    group, theta = EquiOutputGroup.of(NETWORKS[name]), theta_of(NETWORKS[name])
    g, h, k = (group.random(seed) for seed in (1, 2, 3))
    assert g == group.random(1) != h
    assert torch.equal(group.apply(g.after(h), theta), group.apply(g, group.apply(h, theta)))
    assert g.after(h) != h.after(g)
    assert g.after(h).after(k) == g.after(h.after(k))
    assert g.after(g.inverse()) == g.inverse().after(g) == group.identity()
    assert torch.equal(group.apply(g.inverse(), group.apply(g, theta)), theta)


def test_the_order_is_exact():
    group = EquiOutputGroup.of(dense(2, 3, 2, 1))
    assert group.order == (6 * 8) * (2 * 4)
    theta = theta_of(dense(2, 3, 2, 1))
    orbit = {tuple(group.apply(g, theta).tolist()) for g in group.elements()}
    assert len(orbit) == group.order  # of generic parameters all members differ
    wide = EquiOutputGroup.of(build_model("mlp-784-100-50-10", activation="tanh"))
    assert wide.order == math.factorial(100) * math.factorial(50) * 2**150


@pytest.mark.parametrize("name", NETWORKS)
def test_all_members_of_an_orbit_have_one_representative(name):
    group, theta = EquiOutputGroup.of(NETWORKS[name]), theta_of(NETWORKS[name])
    found = group.canonical(theta)
    assert found.ties == ()
    assert torch.equal(group.apply(found.element, theta), found.theta)
    assert group.is_in_wedge(found.theta)
    assert group.canonical(found.theta).element == group.identity()
    for seed in range(8):
        assert torch.equal(
            group.canonical(group.apply(group.random(seed), theta)).theta, found.theta
        )


@pytest.mark.parametrize("bias", [True, False])
def test_one_member_of_an_orbit_is_in_the_wedge(bias):
    net = dense(2, 3, 2, 1, bias=bias)
    group, theta = EquiOutputGroup.of(net), theta_of(net)
    inside = [g for g in group.elements() if group.is_in_wedge(group.apply(g, theta))]
    assert inside == [group.canonical(theta).element]
    for keys in group.keys(group.canonical(theta).theta):
        assert keys.tolist() == sorted(keys.abs().tolist(), reverse=True)


def parts(net):
    """theta, and views of it: hidden weights, biases and outgoing weights."""
    theta = theta_of(net)
    hidden, behind = EquiOutputGroup.of(net).network.hidden[0]
    return theta, hidden.weights(theta), hidden.biases(theta), behind.weights(theta)


def same_representative(group, theta, expected):
    members = [group.apply(group.random(seed), theta) for seed in range(8)]
    return all(torch.equal(group.canonical(member).theta, expected) for member in members)


@pytest.mark.parametrize("sizes", [(3, 4, 2), (3, 4, 3, 2)])
def test_equal_keys_are_decided_by_the_weights_behind_them(sizes):
    net = dense(*sizes)
    group = EquiOutputGroup.of(net)
    theta, weights, biases, _ = parts(net)
    biases[1], biases[2] = -biases[0], 0  # keys of equal magnitude, and of 0
    found = group.canonical(theta)
    assert not found.ties
    assert not group.is_in_wedge(found.theta)  # but on its boundary
    assert same_representative(group, theta, found.theta)
    weights[1] = -weights[0]  # equal in all incoming weights: the outgoing ones decide
    found = group.canonical(theta)
    assert not found.ties
    assert same_representative(group, theta, found.theta)


def test_equal_units_are_listed_and_their_exchange_is_in_the_stabilizer():
    net = dense(3, 4, 2)
    group = EquiOutputGroup.of(net)
    theta, weights, biases, outgoing = parts(net)
    for tensor in (weights, biases, outgoing.T):
        tensor[2] = -tensor[0]
        tensor[3] = 0
    found = group.canonical(theta)
    assert same_representative(group, theta, found.theta)
    equal, zero = sorted((tie.units for tie in found.ties), key=len, reverse=True)
    stabilizer = [
        g for g in group.elements() if torch.equal(group.apply(g, found.theta), found.theta)
    ]
    assert len(stabilizer) == 4  # an exchange, and a flip of the unit that is 0
    exchanged = group.random(0)
    order = np.arange(4)
    order[list(equal)] = equal[::-1]
    assert any(np.array_equal(g.orders[0], order) for g in stabilizer)
    assert any(g.signs[0][zero[0]] == -1 for g in stabilizer)
    assert exchanged not in stabilizer


def test_units_in_front_of_others_that_even_magnitudes_do_not_tell_apart_are_listed():
    net = dense(3, 2, 2, 2)
    group = EquiOutputGroup.of(net)
    theta, weights, biases, outgoing = parts(net)
    weights[1], biases[1], outgoing[:, 1] = weights[0], biases[0], outgoing[:, 0].flip(0)
    assert [(tie.layer, tie.units) for tie in group.canonical(theta).ties] == [(0, (0, 1))]


def test_the_members_of_the_cone_are_nearest_to_its_axis():
    net = dense(2, 3, 2)
    group, theta = EquiOutputGroup.of(net), theta_of(net)
    reference = torch.randn(group.network.n, dtype=torch.float64)
    found = group.in_cone(theta, reference)
    orbit = [group.apply(g, theta) for g in group.elements()]
    nearest = min(orbit, key=lambda member: (member - reference).norm())
    assert torch.equal(found.theta, nearest)
    for seed in range(8):
        member = group.apply(group.random(seed), theta)
        assert torch.equal(group.in_cone(member, reference).theta, nearest)
    images = [group.apply(g, reference) @ found.theta for g in group.elements()]
    assert max(images) == images[0] == reference @ found.theta  # the inequalities of the cone
    axis = torch.zeros_like(theta)
    layer, _ = group.network.hidden[0]
    layer.biases(axis).copy_(torch.tensor([3.0, 2.0, 1.0]))
    assert torch.equal(group.in_cone(theta, axis).theta, group.canonical(theta).theta)
    with pytest.raises(hs.InputError, match="2 hidden layers"):
        EquiOutputGroup.of(dense(2, 3, 3, 2)).in_cone(torch.zeros(29), torch.zeros(29))


@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_members_of_an_orbit_are_an_exchange_or_a_flip(seed):
    net = dense(2, 3, 2)
    group = EquiOutputGroup.of(net)
    torch.manual_seed(seed)
    theta = torch.randn(group.network.n, dtype=torch.float64)
    layer, behind = group.network.hidden[0]
    if seed % 2:  # otherwise the flip of a small unit is the nearest
        layer.weights(theta)[1] = -layer.weights(theta)[0] + 0.1
        layer.biases(theta)[1] = -layer.biases(theta)[0]
        behind.weights(theta)[:, 1] = -behind.weights(theta)[:, 0]
    else:
        for view in (layer.weights(theta)[2], layer.biases(theta)[2:], behind.weights(theta)[:, 2]):
            view.mul_(0.05)
    distances = sorted(
        (group.apply(g, theta) - theta).norm().item()
        for g in group.elements()
        if g != group.identity()
    )
    found = group.neighbours(theta, 6)
    assert found[0].distance == pytest.approx(distances[0], rel=1e-7)
    for neighbour in found:
        moved = group.apply(neighbour.element, theta)
        assert (moved - theta).norm() == pytest.approx(neighbour.distance, rel=1e-7)
        assert moved.norm() == pytest.approx(theta.norm().item(), rel=1e-14)
    assert [n.distance for n in found] == sorted(n.distance for n in found)
    assert len(found) == 6  # three flips and three exchanges


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (dense(3, 4, 2, activation=nn.ReLU), "a ReLU in the network"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "without an activation between"),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh()), "1 Linear layers"),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh()), "the last of them"),
        (nn.Sequential(SHARED, nn.Tanh(), SHARED), "parameters of their own"),
    ],
)
def test_other_networks_are_refused(net, said):
    with pytest.raises(hs.InputError, match=said):
        EquiOutputGroup.of(net)


def test_other_parameters_are_refused():
    group = EquiOutputGroup.of(dense(3, 4, 2))
    with pytest.raises(hs.InputError, match=r"expected \(26,\)"):
        group.apply(group.identity(), torch.zeros(25))
