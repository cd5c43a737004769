"""Low-loss curves, trajectories, functional distances and valleys against what is known of them."""

import math

import numpy as np
import pytest
import torch
from hand import bowl, objective, product, spiral, tensor
from image_networks import PLANS, conv, evaluator, images, plane
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.analyses import (
    asymmetric_valleys,
    functional_distance,
    mode_connectivity,
    trajectory,
)
from hessian_spectrum.landscape import directions
from hessian_spectrum.landscape.parameter_points import Points

EXACT = {"rtol": 1e-12, "atol": 1e-14}


# -- low-loss curves -----------------------------------------------------------------------------


def ring(theta=(1.0, 0.0)):
    """(|theta|^2 - 1)^2: its solutions are a circle, with a barrier inside."""
    return objective(lambda t: (t.square().sum() - 1) ** 2, theta)


@pytest.mark.parametrize(("kind", "num_bends"), [("bezier", 1), ("polygon", 1), ("polygon", 3)])
def test_a_curve_goes_around_the_barrier_that_the_line_crosses(kind, num_bends):
    ends = tensor([1.0, 0.0]), tensor([-0.6, 0.8])
    ev = ring()
    line = hs.interpolate(ev, *ends, 51)
    found = hs.connect(ev, *ends, kind=kind, num_bends=num_bends, num_steps=50, lr=0.08)
    assert line.barrier() == pytest.approx((0.2 - 1) ** 2, abs=0.01)  # |midpoint|^2 = 0.2
    assert found.curve.barrier() < {1: 0.2, 3: 0.05}[num_bends]
    assert found.curve.loss[0] == pytest.approx(ev.loss(ends[0]).item(), abs=1e-15)
    assert found.curve.loss[-1] == pytest.approx(ev.loss(ends[1]).item(), abs=1e-15)
    assert found.curve.distance[-1] > line.distance[-1]


def test_the_gradient_of_the_mean_over_the_curve_is_that_of_its_definition():
    ev = ring()
    state = mode_connectivity.start(ev, tensor([1.0, 0.0]), tensor([-0.6, 0.8]), "bezier", 1)
    after = mode_connectivity.step(ev, state, lr=0.0, num_samples=3, seed=5)
    t = (np.arange(3) + np.random.Generator(np.random.Philox(key=[5, 0])).random(3)) / 3
    bend = state.bends.clone().requires_grad_()
    total = 0.0
    for s in t:
        theta = (1 - s) ** 2 * state.ends[0] + 2 * s * (1 - s) * bend[0] + s**2 * state.ends[1]
        total = total + (theta.square().sum() - 1) ** 2 / 3
    (slope,) = torch.autograd.grad(total, bend)
    assert torch.allclose(after.first_moment, 0.1 * slope, rtol=1e-12)
    assert after.loss == pytest.approx(total.item(), rel=1e-12)
    # Each step has other t: where nothing moves the loss differs all the same.
    assert mode_connectivity.step(ev, after, lr=0.0, num_samples=3, seed=5).loss != after.loss


def test_a_search_that_is_continued_takes_the_same_steps():
    ev, ends = ring(), (tensor([1.0, 0.0]), tensor([-0.6, 0.8]))
    whole = hs.connect(ev, *ends, num_steps=9)
    states = []
    hs.connect(ev, *ends, num_steps=4, on_step=states.append)
    again = hs.connect(ev, *ends, num_steps=9, state=states[-1])
    assert torch.equal(whole.bends.bends, again.bends.bends)
    assert np.array_equal(whole.curve.loss, again.curve.loss)


# -- trajectories --------------------------------------------------------------------------------


def test_a_trajectory_is_what_its_definitions_say():
    rows = spiral()
    found = hs.trajectory(rows, steps=range(0, 24, 2), num_components=3)
    w = rows.numpy()
    u = w[-1] - w[0]
    alpha = (w - w[0]) @ u / (u @ u)
    np.testing.assert_allclose(found.alpha, alpha, **EXACT)
    beta = np.linalg.norm(w - w[0] - alpha[:, None] * u, axis=1)
    np.testing.assert_allclose(found.beta[1:-1], beta[1:-1], rtol=1e-12)
    assert found.beta[[0, -1]] == pytest.approx(0, abs=1e-7)
    np.testing.assert_allclose(
        found.distance_from_start, np.linalg.norm(w - w[0], axis=1), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(
        found.distance_to_end, np.linalg.norm(w - w[-1], axis=1), rtol=1e-12, atol=1e-12
    )
    steps = np.linalg.norm(np.diff(w, axis=0), axis=1)
    np.testing.assert_allclose(found.step_length, [0, *steps], rtol=1e-11, atol=1e-12)
    assert found.length == pytest.approx(steps.sum())
    # Components by a singular value decomposition of the centred iterates.
    _, s, v = np.linalg.svd(w - w.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.explained_variance, (s**2 / (s**2).sum())[:-1], atol=1e-12)
    places = (w - w[-1]) @ v[:3].T
    np.testing.assert_allclose(np.abs(found.coordinates), np.abs(places), rtol=1e-8, atol=1e-9)
    assert list(found.steps[:2]) == [0, 2]


def test_principal_directions_span_the_plane_of_the_coordinates():
    rows = spiral(n=83)
    ev = evaluator()
    found = directions_of = hs.principal_directions(ev, rows, 2)
    gram = directions_of.vectors @ directions_of.vectors.T
    assert torch.allclose(gram, torch.eye(2, dtype=torch.float64), atol=1e-10)
    assert torch.equal(found.origin, rows[-1])
    places = (rows - rows[-1]) @ found.vectors.T
    np.testing.assert_allclose(places, hs.trajectory(rows).coordinates, atol=1e-9)
    # A trajectory in a plane lies on the surface: its losses are the surface's at its coordinates.
    flat = rows[-1] + places @ found.vectors
    exact = hs.along_trajectory(ev, flat).values["loss"]
    point = hs.surface(ev, found, ([float(places[4, 0])], [float(places[4, 1])]))
    assert point.loss[0, 0] == pytest.approx(exact[4], rel=1e-10)
    with pytest.raises(hs.InputError, match="span fewer than 2"):
        hs.principal_directions(ev, torch.stack([rows[0], (rows[0] + rows[1]) / 2, rows[1]]), 2)


def test_random_walks_have_the_steps_and_the_spectrum_of_random_walks():
    rows = spiral(count=120, n=5000)
    walk = trajectory.random_walk(rows, seed=3)
    ours, theirs = hs.trajectory(rows), hs.trajectory(walk)
    np.testing.assert_allclose(theirs.step_length, ours.step_length, rtol=1e-9)
    assert torch.equal(walk[0], rows[0])
    # Antognini & Sohl-Dickstein 2018: 6 / (pi k)^2 for steps of equal length.
    equal = hs.trajectory(
        trajectory.random_walk(torch.arange(120.0).double()[:, None].expand(120, 5000))
    )
    k = np.arange(1, 4)
    np.testing.assert_allclose(equal.explained_variance[:3], 6 / (math.pi * k) ** 2, rtol=0.15)


def test_the_family_of_lines_leads_from_the_straight_path_to_the_iterates():
    ev, rows = evaluator(), spiral(count=5, n=83)
    found = hs.family_of_lines(ev, rows, [0.0, 1.0, 2.0])
    track = hs.trajectory(rows)
    straight = [(rows[0] + a * (rows[-1] - rows[0])) for a in tensor(track.alpha)]
    np.testing.assert_allclose(found.loss[:, 0], ev.loss(torch.stack(straight)), rtol=1e-12)
    np.testing.assert_allclose(found.loss[:, 1], ev.loss(rows), rtol=1e-12)
    beyond = torch.stack([2 * w - s for w, s in zip(rows, straight)])
    np.testing.assert_allclose(found.loss[:, 2], ev.loss(beyond), rtol=1e-12)
    length = float((rows[-1] - rows[0]).norm())
    np.testing.assert_allclose(found.positions[2, 2], [track.alpha[2] * length, 2 * track.beta[2]])


def test_a_quadratic_bowl_in_alpha_and_beta_is_round():
    """For L = |w|^2 / 2 and wT = 0 the loss is ((1 - alpha)^2 |u|^2 + beta^2) / 2."""
    rows = torch.cat([spiral(count=6, n=3), torch.zeros(1, 3, dtype=torch.float64)])
    found = hs.along_trajectory(bowl(torch.eye(3, dtype=torch.float64)), rows)
    length = found.distance_from_start[-1]
    expected = (((1 - found.alpha) * length) ** 2 + found.beta**2) / 2
    np.testing.assert_allclose(found.values["loss"], expected, rtol=1e-12, atol=1e-14)


# -- functional distances ------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["softmax", "logits"])
def test_functional_distances_are_the_root_mean_square_of_outputs(of):
    ev = evaluator()
    networks = {"a": ev.theta, "b": 2 * ev.theta, "c": -ev.theta}
    found = hs.functional_distances(ev, networks, of=of)
    x, _ = images(11)
    outputs = []
    for theta in networks.values():
        torch.nn.utils.vector_to_parameters(theta, ev.model.parameters())
        out = ev.model(x).detach()
        outputs.append(out.softmax(1) if of == "softmax" else out)
    for i, a in enumerate(outputs):
        for j, b in enumerate(outputs):
            exact = (a - b).square().sum(1).mean().sqrt().item()
            assert found.distance[i, j] == pytest.approx(exact, rel=1e-12, abs=1e-15)
            exact = (a.argmax(1) != b.argmax(1)).double().mean().item()
            assert found.disagreement[i, j] == exact
    assert found.between("a", "c") == found.distance[0, 2]


def test_functional_paths_begin_and_end_at_zero():
    ev = evaluator()
    curve = hs.functional_path(ev, ev.theta, -ev.theta, 5)
    assert curve.values["distance_to_start"][0] == 0
    assert curve.values["distance_to_end"][-1] == 0
    whole = hs.functional_distances(ev, {"a": ev.theta, "b": -ev.theta})
    assert curve.values["distance_to_end"][0] == pytest.approx(whole.distance[0, 1], rel=1e-12)
    assert curve.values["disagreement_with_start"][-1] == whole.disagreement[0, 1]


def test_functional_values_are_a_function_of_the_range():
    ev = evaluator()
    some = plane(ev, 9)
    references = Points.of(ev.theta[None])
    exact = functional_distance.functional_values(ev, some, references)
    for plan in PLANS.values():
        joined = [
            functional_distance.functional_values(ev, some, references, *r, plan=plan)["distance"]
            for r in ((0, 4), (4, 9))
        ]
        np.testing.assert_allclose(np.concatenate(joined), exact["distance"], rtol=1e-10)


def test_recalibrated_networks_are_compared_with_their_own_statistics():
    model = conv()
    ev = hs.Evaluator(
        model, F.cross_entropy, images(9, 2, 5), batch_norm="recalibrate", batch_size=4
    )
    first = list(ev.layout.names).index("0.weight")
    theta = ev.layout.unflatten(ev.theta)
    scaled = ev.layout.flatten([3 * t if i == first else t for i, t in enumerate(theta.values())])
    # BatchNorm undoes the scale of the convolution before it, up to its eps and the bias.
    found = hs.functional_distances(ev, {"a": ev.theta, "b": scaled})
    eval_mode = hs.Evaluator(model, F.cross_entropy, images(9, 2, 5), batch_size=4)
    assert found.distance[0, 1] < 1e-4
    assert hs.functional_distances(eval_mode, {"a": ev.theta, "b": scaled}).distance[0, 1] > 1e-2


def test_triangles_of_a_table_are_all_choices():
    ev = product(2)
    table = {
        name: tensor(w)
        for name, w in {"sgd": [0.0, 0.1], "adam": [1, 1], "rms": [2, 0.5], "ada": [0.3, 3]}.items()
    }
    found = hs.triangles(ev, table, resolution=3)
    assert set(found) == {
        ("sgd", "adam", "rms"),
        ("sgd", "adam", "ada"),
        ("sgd", "rms", "ada"),
        ("adam", "rms", "ada"),
    }
    assert found["sgd", "adam", "rms"].loss[2, 2] == pytest.approx(0.0, abs=1e-15)  # adam
    (four,) = hs.triangles(ev, table, 4, resolution=2).values()
    assert four.loss[1, 0] == pytest.approx(0.0, abs=1e-15)
    assert four.loss[0, 1] == pytest.approx(0.0, abs=1e-15)


# -- valleys -------------------------------------------------------------------------------------


def asymmetric(steep=4.0, theta=(0.0, 0.0)):
    """x^2/2 for x > 0 and steep x^2/2 for x < 0, and y^2/2."""
    return objective(
        lambda t: torch.where(t[0] > 0, 1.0, steep) * t[0] ** 2 / 2 + t[1] ** 2 / 2, theta
    )


def test_slopes_on_both_sides_are_the_derivatives():
    ev = asymmetric()
    found = hs.asymmetry(ev, 5 * torch.eye(2, dtype=torch.float64), [0.1, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(found.forward, [[0.1, 0.5, 1, 2], [0.1, 0.5, 1, 2]], **EXACT)
    np.testing.assert_allclose(found.backward, [[0.4, 2, 4, 8], [0.1, 0.5, 1, 2]], **EXACT)
    # On (0.4, 1.5): slopes 0.5 to 1 ahead, 2 to 4 behind.
    assert found.is_asymmetric(1.5, 1.1, 1.5, 0.4).tolist() == [True, False]
    assert found.is_asymmetric(1.5, 0.9, 1.5, 0.4).tolist() == [False, False]
    assert found.is_asymmetric(1.5, 1.1, 2.0, 0.4).tolist() == [False, False]
    np.testing.assert_allclose(found.ratio(1.5, 0.4), [2.0, 0.5], **EXACT)
    with pytest.raises(hs.InputError, match="c > 1"):
        found.is_asymmetric(1.5, 1.0, 0.5, 0.4)
    with pytest.raises(hs.InputError, match="no distance lies in"):
        found.ratio(0.3, 0.2)


def test_the_search_finds_the_asymmetric_direction():
    ev = asymmetric(steep=9.0)
    found = hs.find_asymmetric(ev, distance=[0.5, 1.0], seed=2, num_steps=40)
    assert found.vectors[0, 0] == pytest.approx(1.0, abs=1e-3)
    recipe = found.recipes[0]
    assert recipe["after"] > recipe["before"]
    # A at the optimum: sum over l of (9 - 1) l^2 / 2 / l.
    assert recipe["after"] == pytest.approx(4 * 1.5, rel=1e-3)


def test_the_asymmetry_of_the_search_has_the_gradient_of_its_definition():
    ev = evaluator()
    u = torch.nn.functional.normalize(torch.randn(ev.n, dtype=torch.float64), dim=0)
    distance = np.array([0.3, 0.7])
    value, slope = asymmetric_valleys._asymmetry_and_slope(ev, ev.theta, u, distance)
    v, h = torch.randn(ev.n, dtype=torch.float64), 1e-5
    numeric = (
        asymmetric_valleys._asymmetry_and_slope(ev, ev.theta, u + h * v, distance)[0]
        - asymmetric_valleys._asymmetry_and_slope(ev, ev.theta, u - h * v, distance)[0]
    ) / (2 * h)
    assert (slope @ v).item() == pytest.approx(numeric, rel=1e-6)
    rises = [(ev.loss(ev.theta - l * u) - ev.loss(ev.theta + l * u)).item() / l for l in distance]
    assert value == pytest.approx(sum(rises), rel=1e-12)


def test_averaged_iterates_are_biased_to_the_flat_side():
    """SGD with noise, coordinate by coordinate (He et al. 2019, section 4)."""
    ev = asymmetric(steep=16.0)
    generator = torch.Generator().manual_seed(0)
    theta, rows = torch.zeros(2, dtype=torch.float64), []
    for _ in range(500):
        noise = torch.rand(2, generator=generator, dtype=torch.float64) - 0.5
        slope = torch.stack([torch.where(theta[0] > 0, 1.0, 16.0) * theta[0], theta[1]])
        theta = theta - 0.05 * (slope + 8 * noise)
        rows.append(theta)
    found = hs.averaging_bias(
        ev, rows, torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    )
    assert found.bias[0] > 5 * found.standard_error[0]
    assert abs(found.bias[1]) < 4 * found.standard_error[1]
    assert found.loss_at_average < found.losses.mean()
    assert found.loss_at_minimum == 0
    np.testing.assert_allclose(found.coordinates, torch.stack(rows), atol=1e-15)


def series(rng, r, t):
    """Numbers whose consecutive ones have the correlation r, from their stationary law."""
    x = np.empty((t, 1))
    x[0] = rng.standard_normal() / np.sqrt(1 - r * r)
    for i in range(1, t):
        x[i] = r * x[i - 1] + rng.standard_normal()
    return x


@pytest.mark.parametrize(("r", "t"), [(0.0, 100), (0.5, 100), (0.9, 400), (0.97, 900)])
def test_batch_means_know_that_iterates_are_correlated(r, t):
    rng = np.random.default_rng(0)
    walks = [series(rng, r, t) for _ in range(200)]
    errors = [asymmetric_valleys._batch_means_error(walk)[0] for walk in walks]
    spread = np.std([walk.mean() for walk in walks])
    # Of sqrt(t) batches alone 0.6 to 0.9 of it; 200 series know it to 5 %.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.2)


def test_a_series_shorter_than_its_memory_is_warned_of(caplog):
    ev, minimum = evaluator(), evaluator().theta
    direction = torch.ones(1, ev.n, dtype=torch.float64)
    for r, is_told in ((0.999, True), (0.5, False)):
        caplog.clear()
        walk = torch.from_numpy(series(np.random.default_rng(0), r, 200))
        hs.averaging_bias(ev, minimum + 1e-3 * walk * direction, minimum, direction)
        assert ("may be much too small" in caplog.text) == is_told


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ev: hs.connect(ev, ev.theta, ev.theta, kind="spline"), "one of bezier, polygon"),
        (lambda ev: hs.connect(ev, ev.theta, ev.theta, num_bends=0), "num_bends=0"),
        (lambda ev: hs.trajectory(torch.ones(1, 3)), "t >= 2"),
        (lambda ev: hs.trajectory(torch.ones(2, 3)), "the last iterate equals the first"),
        (lambda ev: hs.functional_distances(ev, {"a": ev.theta}), "1 networks"),
        (lambda ev: hs.functional_path(ev, ev.theta, 2 * ev.theta, of="labels"), "of='labels'"),
        (lambda ev: hs.asymmetry(ev, ev.theta[None], [0.0, 1.0]), "above 0"),
        (lambda ev: hs.averaging_bias(ev, ev.theta[None], ev.theta, ev.theta), "1 iterates"),
        (lambda ev: hs.triangles(ev, {"a": ev.theta}, 5), "num_vertices=5"),
    ],
)
def test_unusable_input_is_refused(make, message):
    with pytest.raises(hs.InputError, match=message):
        make(evaluator())


def test_a_search_that_diverges_says_so():
    ev = objective(lambda t: (t**4).sum(), [1.0, 0.0])
    with pytest.raises(FloatingPointError, match="smaller lr"):
        hs.connect(ev, tensor([1.0, 0.0]), tensor([0.0, 1.0]), lr=1e200, num_steps=9)


def test_networks_without_class_outputs_are_refused():
    model = nn.Linear(3, 1).double()
    ev = hs.Evaluator(lambda_module(model), nn.MSELoss(), (torch.ones(4, 3), torch.ones(4)))
    with pytest.raises(hs.InputError, match="one tensor of outputs"):
        hs.functional_distances(ev, {"a": ev.theta, "b": ev.theta})
    assert directions.gradient(ev).recipes[0]["kind"] == "gradient"


def lambda_module(model):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x)[:, 0]

    return Flat()
