"""Planes that show a picture: the gradient of the fit, fits of quadratics, scale and refusals."""

import numpy as np
import pytest
import torch
from hand import objective, tensor
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum.analyses import fit_section as module

PICTURE = np.array([[0.0, 1, 0, 0], [1, 1, 0, 2], [0, 0, 0, 1]])


def network(weight_decay=0.0, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 3, generator=generator).to(dtype)
    labels = (x[:, 0] > 0).long()
    options = {"weight_decay": weight_decay, "batch_size": 10, **options}
    return hs.Evaluator(net, nn.CrossEntropyLoss(), (x, labels), **options)


def test_the_values_are_those_of_the_plane_and_so_is_the_correlation():
    ev, other = network(0.1), network(0.1, seed=1)
    found = hs.fit_section(ev, PICTURE, test=other, num_steps=3, block=5)
    surface = found.surface
    for name, of in (("loss", ev), ("test_loss", other)):
        for i, a in enumerate(surface.a):
            for j, b in enumerate(surface.b):
                point = found.origin + a * found.directions[0] + b * found.directions[1]
                expected = of.loss(point).item()
                assert surface.values[name][i, j] == pytest.approx(expected, rel=1e-12)
    scores = [
        np.corrcoef(surface.values[name].ravel(), PICTURE.ravel())[0, 1]
        for name in ("loss", "test_loss")
    ]
    assert (found.correlation, found.test_correlation) == pytest.approx(scores, rel=1e-12)
    assert np.array_equal(surface.values["picture"], PICTURE)
    assert "on other data, 3 x 4 points, 3 steps" in str(found)


@pytest.mark.parametrize("block", [1, 5, 100])
def test_the_gradient_of_the_fit_is_that_of_finite_differences(block):
    """In every entry of a random direction of the plane, with several minibatches and decay."""
    ev = network(0.1)
    a, b = (np.linspace(-1, 1, size) for size in PICTURE.shape)
    along = np.stack([np.ones(PICTURE.shape), *np.meshgrid(a, b, indexing="ij")]).reshape(3, -1)
    along, wanted = tensor(along.T), module._standardized(tensor(PICTURE).flatten())
    plane = module._start(ev, 0)
    with module._parts(ev) as parts:
        _, slope = module._correlation(module._losses(ev, parts, along @ plane, block), wanted)
        gradient = module._pulled_back(ev, parts, along, plane, slope, block)
        for seed in range(3):
            step = torch.from_numpy(np.random.default_rng(seed).standard_normal(plane.shape))
            ends = [
                -module._correlation(module._losses(ev, parts, along @ p, block), wanted)[0]
                for p in (plane - 1e-6 * step, plane + 1e-6 * step)
            ]
            expected = (ends[1] - ends[0]) / 2e-6
            assert (gradient * step).sum().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_saddle_is_found_in_a_quadratic_at_every_scale(scale):
    """Of x^2 - y^2 + 3 z^2 in 3 dimensions a plane shows a^2 - b^2: correlation 1."""
    signs = tensor([1.0, -1.0, 3.0])
    ev = objective(lambda t: scale * (signs * t.square()).sum(), (0.5, 0.3, 0.2))
    t = np.linspace(-1, 1, 7)
    found = hs.fit_section(ev, t[:, None] ** 2 - t**2, num_steps=200, lr=0.03)
    assert found.history[0] < 0.9 < 0.999 < found.correlation
    assert len(found.history) == 200


def test_a_network_shows_a_picture_better_than_a_random_plane_does():
    found = hs.fit_section(network(), PICTURE, num_steps=100)
    assert found.history[0] < 0.5 and found.correlation > 0.95


def test_what_has_no_picture_is_refused():
    ev = network()
    for picture in (np.ones((4, 4)), np.ones(4), [[0.0, np.nan], [1.0, 2.0]], [[0.0, 1.0]]):
        with pytest.raises(hs.InputError, match="a picture of shape"):
            hs.fit_section(ev, picture)
    for options in ({"num_steps": -1}, {"lr": 0.0}, {"block": 0}):
        with pytest.raises(hs.InputError, match=next(iter(options))):
            hs.fit_section(ev, PICTURE, **options)
    with pytest.raises(hs.InputError, match="constant on the plane"):
        module._correlation(tensor([1.0, 1.0]), tensor([0.6, -0.8]))
    with pytest.raises(FloatingPointError, match="smaller lr"):
        hs.fit_section(objective(lambda t: t.exp().exp().sum(), (5.0, 5.0)), PICTURE)
