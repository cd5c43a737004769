"""Hidden units of two networks in one order: groups of channels, and how they are matched."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.symmetries.channel_groups import ChannelGroups
from hessian_spectrum.zoo.models import build_model

IMAGE = (3, 8, 8)


class Tied(nn.Module):
    """One linear layer, and one BatchNorm under two names, used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.tied, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.again = self.norm

    def forward(self, x):
        x = torch.tanh(self.norm(self.first(x)))
        return self.last(2 * torch.tanh(self.again(self.tied(x + self.tied(x)))))


class Methods(nn.Module):
    """Calls of functions and methods in place of layers."""

    def __init__(self):
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.first(x))
        y = self.depthwise(x)[:, :, ::2].relu()
        both = torch.cat([F.max_pool2d(x, 2).mean((2, 3), keepdim=True), y.mean([-2, -1], True)], 1)
        return self.last(both.view(both.size(0), -1))


def flat():
    """A convolution whose channels each become four inputs of a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(20, 6), nn.Tanh(),
        nn.Linear(6, 2),
    )  # fmt: skip


def zoo(name, **options):
    return lambda: build_model(name, input_shape=IMAGE, num_classes=10, **options)


NETWORKS = {
    "mlp": (lambda: build_model("mlp-6-5-4-3", input_shape=(6,), num_classes=3), (6,), [5, 4]),
    "cnn": (zoo("cnn"), IMAGE, [16, 32, 32]),
    "flat": (flat, IMAGE, [5, 6]),
    # A stream, three inner layers a stage, and what each later stage adds to the stream.
    "resnet20": (
        zoo("resnet20", width=0.25), IMAGE, [4, 4, 4, 4, 8, 4, 8, 8, 16, 8, 16, 16],
    ),
    "plain": (zoo("resnet8", width=0.25, shortcut=False), IMAGE, [4, 4, 4, 8, 8, 16, 16]),
    "without norms": (zoo("resnet8", width=0.25, batchnorm=False), IMAGE, [4, 4, 8, 4, 16, 8]),
    "projections": (zoo("wrn-10-1", width=0.25), IMAGE, [4, 4, 8, 8, 16, 16]),
    "concatenations": (zoo("densenet-7-3", width=1.0), IMAGE, [16, 3, 19, 3, 22, 3]),
    "tied": (Tied, (3,), [4]),
    "methods": (Methods, IMAGE, [4]),
}  # fmt: skip


def network(name, seed=0):
    """In float64 and evaluation mode, with statistics and parameters of norms that all differ."""
    torch.manual_seed(seed)
    net = NETWORKS[name][0]().double()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.weight.data.normal_()
            module.bias.data.normal_()
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(inputs(name, 40))  # the statistics are those of data
    return net.eval()


def inputs(name, count=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *NETWORKS[name][1], dtype=torch.float64, generator=generator)


def permuted(net, seed=3):
    """The network with its channels in a random order, and which order."""
    groups = ChannelGroups.of(net)
    order, other = groups.random(seed), copy.deepcopy(net)
    other.load_state_dict(groups.apply(order, net.state_dict()))
    return other, order


@pytest.mark.parametrize("name", NETWORKS)
def test_permuted_channels_leave_the_function_as_it_is(name):
    net, x = network(name), inputs(name)
    groups = ChannelGroups.of(net)
    assert [group.size for group in groups] == NETWORKS[name][2]
    other, order = permuted(net)
    assert all((p != np.arange(len(p))).any() for p in order.values())
    with torch.no_grad():
        before, after = net(x), other(x)
    assert (after - before).abs().max() <= 1e-12 * before.abs().max()
    moved = [n for n, t in net.state_dict().items() if not torch.equal(t, other.state_dict()[n])]
    fixed = {"0.weight"} if name == "mlp" else set()
    places = {place.tensor for group in groups for place in group.places}
    assert places - fixed == set(moved) - fixed  # what is said to be permuted is


def test_a_padded_stream_has_the_channels_that_came_in_and_those_that_are_new():
    groups = ChannelGroups.of(network("resnet20"))
    stem = next(iter(groups))
    (place,) = [p for p in groups["6.body.3"].places if p.tensor == "6.body.3.weight"]
    (inner,) = [p for p in stem.places if p.tensor == "6.body.3.weight"]
    assert inner.indices.ravel().tolist() == [2, 3, 4, 5]  # behind the zeros of the shortcut
    assert place.indices.ravel().tolist() == [0, 1, 6, 7]


def test_pixels_of_a_channel_stay_together():
    (place,) = [p for p in ChannelGroups.of(flat())["0"].places if p.tensor == "4.weight"]
    assert place.indices.tolist() == np.arange(20).reshape(5, 4).tolist()


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "flat", "resnet20", "projections"])
def test_a_permuted_copy_is_found_again(name, method):
    net = network(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.abs_().add_(1)  # no channel is 0 on all data
    other, order = permuted(net)
    data = (inputs(name, 40), torch.zeros(40)) if method == "activations" else None
    found = hs.match(net, other, method, data)
    assert found.distance == 0 < found.distance_before
    for group, permutation in found.permutations.items():
        assert permutation.tolist() == np.argsort(order[group]).tolist()
    assert found.num_moved > 0


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20", "tied"])
def test_the_matched_network_is_the_second_one(name, method):
    a, b, x = network(name), network(name, seed=1), inputs(name)
    states = [copy.deepcopy(net.state_dict()) for net in (a, b)]
    b.train()
    data = (x, torch.zeros(len(x))) if method == "activations" else None
    found = hs.match(a, b, method, data)
    assert b.training
    for net, state in zip((a, b), states):
        assert all(torch.equal(t, state[n]) for n, t in net.state_dict().items())
    matched = copy.deepcopy(b).eval()
    matched.load_state_dict(found.state)
    with torch.no_grad():
        expected = b.eval()(x)
        assert (matched(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    before, after = (
        sum(((p - q) ** 2).sum() for p, q in zip(a.parameters(), net.parameters())) ** 0.5
        for net in (b, matched)
    )
    assert found.distance_before == pytest.approx(before.item(), rel=1e-12)
    assert found.distance == pytest.approx(after.item(), rel=1e-12)


def one_layer(seed, units=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, units), nn.ReLU(), nn.Linear(units, 2)).double()


def test_weights_of_one_hidden_layer_are_matched_as_well_as_any_permutation_does():
    a, b = one_layer(0), one_layer(1)
    groups = ChannelGroups.of(b)
    best = min(
        sum(((p - state[n]) ** 2).sum() for n, p in a.state_dict().items()).item() ** 0.5
        for order in itertools.permutations(range(5))
        for state in [groups.apply({"0": np.array(order)}, b.state_dict())]
    )
    found = hs.match(a, b)
    assert found.distance == pytest.approx(best, rel=1e-12) != pytest.approx(found.distance_before)


@pytest.mark.parametrize("name", ["mlp", "resnet20", "tied", "concatenations"])
def test_no_exchange_of_two_units_brings_matched_weights_closer(name):
    a, b = network(name), network(name, seed=1)
    found, left = hs.match(a, b), dict(a.named_parameters())
    assert found.iterations > 1
    for group in found.groups:
        for i, j in itertools.combinations(range(group.size), 2):
            order = np.arange(group.size)
            order[[i, j]] = j, i
            state = found.groups.apply({group.name: order}, found.state)
            distance = sum(((p - state[n]) ** 2).sum().item() for n, p in left.items()) ** 0.5
            assert distance >= found.distance * (1 - 1e-12)


def test_the_seed_is_that_of_the_order_of_the_groups():
    a, b = (build_model("mlp-6-9-9-9-3", input_shape=(6,), num_classes=3) for _ in range(2))
    every = [hs.match(a, b, seed=seed) for seed in (0, 0, *range(1, 9))]
    for group in every[0].permutations:
        assert every[0].permutations[group].tolist() == every[1].permutations[group].tolist()
    assert len({found.distance for found in every}) > 1


def test_activations_are_matched_by_the_largest_sum_of_correlations():
    a, b, x = one_layer(0), one_layer(1), torch.randn(50, 3, dtype=torch.float64)
    b[0].bias.data[2] = -100  # a unit that is 0 on all data, and correlates with none
    y, z = ((net[:2](x)).detach().numpy() for net in (a, b))
    table = np.zeros((5, 5))
    alive = [0, 1, 3, 4]
    table[:, alive] = np.corrcoef(y.T, z[:, alive].T)[:5, 5:]
    orders = np.array(list(itertools.permutations(range(5))))
    best = orders[table[np.arange(5), orders].sum(1).argmax()]
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=7)
    for data in ((x, torch.zeros(50)), batches):
        assert hs.match(a, b, "activations", data).permutations["0"].tolist() == best.tolist()


def test_correlations_do_not_depend_on_the_scale_of_a_unit():
    a, x = one_layer(0), torch.randn(50, 3, dtype=torch.float64)
    b, order = permuted(a)
    scales = torch.tensor([100.0, 1e-3, 10, 1, 0.1], dtype=torch.float64)
    for tensor in (b[0].weight.data.T, b[0].bias.data):
        tensor.mul_(scales)
    found = hs.match(a, b, "activations", (x, torch.zeros(50)))
    assert found.permutations["0"].tolist() == np.argsort(order["0"]).tolist()


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x.flip(1))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.scale


REFUSED = {
    "traced": Branching(),
    "Own": Own(3, 3),
    "scale": Scaled(),
    "3 groups": nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=3)),
    "softmax": nn.Sequential(nn.Linear(3, 4), nn.Softmax(1)),
    "embedding": build_model("lstm", input_shape=(5,), num_classes=7),
    "unflatten": build_model("mlp-3-4-2", input_shape=(3,), num_classes=2, activation="maxout"),
    "which takes 8 channels and gets 4": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(8)),
    "another axis": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_not_understood_is_refused(said):
    with pytest.raises(hs.InputError, match="(?i)" + said):
        ChannelGroups.of(REFUSED[said])


def test_networks_and_data_that_do_not_fit_are_refused():
    a, b = one_layer(0), one_layer(0, units=4)
    with pytest.raises(hs.InputError, match=r"0\.weight has the shape \(5, 3\) .* \(4, 3\)"):
        hs.match(a, b)
    with pytest.raises(hs.InputError, match="needs data="):
        hs.match(a, a, "activations")
    with pytest.raises(hs.InputError, match="takes no data"):
        hs.match(a, a, data=torch.zeros(3, 3))
    with pytest.raises(hs.InputError, match="expected one of weights, activations"):
        hs.match(a, a, "gradients")


class TwoAxes(nn.Module):
    """A layer from a stream to itself: one group along both axes of its weights."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.last(x + torch.tanh(self.inner(x)))


def test_a_group_along_two_axes_of_a_tensor_never_moves_apart():
    for seed in range(20):
        torch.manual_seed(seed)
        a, b = TwoAxes().double(), TwoAxes().double()
        for net in (a, b):
            net.inner.weight.data.normal_(std=3)
        found = hs.match(a, b, seed=seed)
        assert found.distance <= found.distance_before
        matched = TwoAxes().double()
        matched.load_state_dict(found.state)
        again = hs.match(a, matched, seed=seed + 1)
        assert (again.num_moved, again.iterations) == (0, 1)
