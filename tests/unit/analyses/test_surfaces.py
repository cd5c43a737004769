"""Lines, triangles, planes and directions against formulas that can be worked out by hand."""

import numpy as np
import pytest
import torch
from hand import bowl, product, tensor
from image_networks import conv, evaluator, images
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.analyses import interpolate
from hessian_spectrum.landscape import directions, paths
from hessian_spectrum.landscape.direction_grid import grid_task
from hessian_spectrum.landscape.results import Curve, Surface

EXACT = {"rtol": 1e-12, "atol": 1e-14}


# -- formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(0, 1), (-1, 2), (0, 0.01), (0.99, 1)])
def test_a_quadratic_along_a_line_is_a_parabola(window):
    a = tensor([[2.0, 0.3], [0.3, 5.0]])
    theta0, theta1 = tensor([1.0, -2.0]), tensor([0.5, 1.5])
    curve = hs.interpolate(bowl(a), theta0, theta1, 200, window=window)
    d = theta1 - theta0
    alpha, spread = curve.t, np.linspace(*window, 200)
    c0, c1, c2 = (float(x) for x in (theta0 @ a @ theta0, theta0 @ a @ d, d @ a @ d))
    np.testing.assert_allclose(curve.loss, c0 / 2 + c1 * alpha + c2 / 2 * alpha**2, **EXACT)
    moved = alpha != spread  # onto the networks
    assert set(alpha[moved]) == ({0.0, 1.0} if window == (-1, 2) else set())
    assert np.abs(alpha - spread).max() <= (spread[1] - spread[0]) / 2
    length = float(d.norm())
    np.testing.assert_allclose(curve.distance, (alpha - alpha[0]) * length, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_deep_linear_networks_have_the_analytic_curves(depth):
    """Goodfellow et al. 2015, section 5: the loss along a line is a polynomial."""
    rng = np.random.default_rng(depth)
    w0, w1 = 0.1 * rng.normal(size=depth), 1 + 0.1 * rng.normal(size=depth)
    curve = hs.interpolate(product(depth), tensor(w0), tensor(w1), window=(-0.5, 1.5))
    along = np.prod(w0 + curve.t[:, None] * (w1 - w0), axis=1)
    np.testing.assert_allclose(curve.loss, (1 - along) ** 2, **EXACT)


def test_the_plane_of_two_weights_is_its_product_squared():
    ev = product(2)
    found = hs.surface(ev, torch.eye(2, dtype=torch.float64), (np.linspace(-2, 1, 13), [-1, 0, 2]))
    w = ev.theta.numpy()
    expected = (1 - np.outer(w[0] + found.a, w[1] + found.b)) ** 2
    np.testing.assert_allclose(found.loss, expected, **EXACT)
    assert found.shape == (13, 3)


def test_corners_edges_and_centres_of_rectangles_and_triangles():
    ev = bowl(torch.diag(tensor([1.0, 4.0, 9.0])))
    rng = np.random.default_rng(0)
    v = [tensor(row) for row in rng.normal(size=(4, 3))]

    def value(*weights):
        return ev.loss(sum(w * t for w, t in zip(weights, v))).item()

    found = hs.bilinear(ev, v, 3, 5)
    corners = [value(1), value(0, 1), value(0, 0, 1), value(0, 0, 0, 1)]
    ours = found.loss[[0, -1, 0, -1], [0, 0, -1, -1]]
    np.testing.assert_allclose(ours, corners, **EXACT)
    np.testing.assert_allclose(found.loss[1, 2], value(0.25, 0.25, 0.25, 0.25), **EXACT)
    np.testing.assert_allclose(found.at(0.5, 0.25), value(0.375, 0.375, 0.125, 0.125), **EXACT)

    found = hs.barycentric(ev, v[:3], [0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    np.testing.assert_allclose(found.loss[0], value(1), **EXACT)
    np.testing.assert_allclose(found.loss[2], [value(0, 0, 1), value(0, 0.5, 0.5), value(0, 1)])
    np.testing.assert_allclose(found.loss[1, 1], value(0.5, 0.25, 0.25), **EXACT)
    sides = [float((v[2] - v[0]).norm()), float((v[1] - v[0]).norm())]
    places = found.positions[2, [0, 2]]
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), sides, rtol=1e-12)
    assert np.linalg.norm(places[0] - places[1]) == pytest.approx(float((v[2] - v[1]).norm()))

    found = hs.plane(ev, v[:3], [-0.5, 0.0, 1.0], [0.0, 2.0])
    np.testing.assert_allclose(found.loss[0, 1], value(-0.5, -0.5, 2.0), **EXACT)
    np.testing.assert_allclose(found.loss[2, 0], value(0, 1), **EXACT)


def test_distances_are_absolute_on_lines_and_rays():
    ev = bowl(torch.eye(3, dtype=torch.float64))
    theta0, theta1 = tensor([3.0, 4.0, 0.0]), tensor([0.0, 0.0, 0.0])
    distance = np.linspace(-3, 7, 11)
    curve = hs.by_distance(ev, theta0, theta1, distance)
    np.testing.assert_allclose(curve.loss, distance**2 / 2, **EXACT)
    np.testing.assert_allclose(curve.distance, distance + 3, **EXACT)
    ray = hs.along_ray(ev, theta1, 10 * theta0, distance)
    np.testing.assert_allclose(ray.loss, distance**2 / 2, **EXACT)
    np.testing.assert_allclose(ray.distance, distance + 3, **EXACT)
    basin = ray.basin(2.0)
    assert basin.bounded
    assert basin.width == pytest.approx(4.0, abs=0.3)  # linear between points
    fine = hs.along_ray(ev, theta1, theta0, np.linspace(-3, 5, 2001)).basin(2.0)
    assert fine.width == pytest.approx(4.0, abs=1e-5)
    assert hs.along_ray(ev, theta1, theta0, distance).basin(5.0, near=0).bounded is False


# -- queries -------------------------------------------------------------------------------------


def test_barriers_are_above_the_chord_the_mean_or_the_higher_end():
    t = np.linspace(0, 1, 5)
    curve = Curve(t, t, {"loss": [1.0, 2.0, 4.0, 3.0, 2.0]})
    assert curve.barrier() == pytest.approx(2.5)
    assert curve.barrier(reference="mean") == 2.5
    assert curve.barrier(reference="max") == 2.0
    assert Curve(t, t, {"loss": 1 + t}).barrier() == 0.0
    assert np.isnan(Curve(t, t, {"loss": [1, np.nan, 1, 1, 1]}).barrier())
    assert curve.minimum() == (1.0, (0.0,), (0,))
    assert curve.at(0.125) == 1.5
    assert np.isnan(curve.at(1.5))


def test_a_barrier_is_between_the_networks_wherever_the_path_begins_and_ends():
    def curve(*t):
        t = np.array(t)
        loss = np.where((t < 0) | (t > 1), 99.0, 1 + t - 4 * t * (t - 1))
        return Curve(t, t, {"loss": loss}, {"ends": [0.0, 1.0]})

    assert curve(0, 0.5, 1).barrier() == 1.0
    assert curve(-1, 0, 0.5, 1, 1.5).barrier() == 1.0
    assert curve(-1, 0, 1, 2).barrier() == 0.0
    for zoom in (curve(0, 0.5), curve(0.5, 1), curve(0.9, 1.1)):
        assert not zoom.holds_ends
        with pytest.raises(hs.InputError, match="networks are at t = 0 and 1"):
            zoom.barrier()
    broken = Curve([-1, 0, 0.5, 1], range(4), {"loss": [np.inf, 1, 3, 1]}, {"ends": [0.0, 1.0]})
    assert broken.barrier() == 2.0


def test_basins_end_where_the_level_is_reached():
    s = np.arange(7.0)
    curve = Curve(s, s, {"loss": [5, 1, 0, 1, 3, 0, 9]})
    assert curve.basin(2.0) == (0.75, 3.5, 2.75, True)
    assert curve.basin(2.0, near=5) == pytest.approx((4 + 1 / 3, 5 + 2 / 9, 8 / 9, True))
    assert curve.basin(6.0).bounded is False
    invalid = Curve(s, s, {"loss": [5, 1, 0, 1, np.inf, 0, 9]})
    assert invalid.basin(2.0) == (0.75, 3.0, 2.25, False)
    with pytest.raises(hs.InputError, match="above the level"):
        curve.basin(2.0, near=0)


def test_the_networks_themselves_are_among_the_points_of_a_window_that_holds_them():
    """Else a barrier's ends would be values beside them, as far off as the points are apart."""
    ev = product(2)
    ends = tensor([1.0, 1.0]), tensor([-1.0, -1.0])  # (1 - w1 w2)^2: 0 at both, 1 between
    for window in ((-0.5, 1.5), (-0.2, 1.3), (0.0, 1.7)):
        line = hs.interpolate(ev, *ends, 12, window=window)
        assert len(line.t) == 12
        assert (line.t[0], line.t[-1]) == window
        assert (np.diff(line.t) > 0).all()
        at = [line.loss[line.t == alpha].item() for alpha in (0.0, 1.0)]
        assert at == [ev.loss(end).item() for end in ends]
        assert line.barrier() == pytest.approx(line.loss[(line.t > 0) & (line.t < 1)].max())
    asked = np.linspace(-0.5, 1.5, 12)
    assert np.array_equal(hs.interpolate(ev, *ends, alpha=asked).t, asked)
    assert np.array_equal(paths.through(np.array([-5.0, 0.2, 5.0]), 0.0, 1.0), [-5.0, 0.0, 5.0])
    assert np.array_equal(paths.through(np.array([0.0, 0.01]), 0.0, 1.0), [0.0, 0.01])


def test_queries_of_surfaces_with_a_region_of_nan():
    ev = product(2)
    found = hs.surface(
        ev, torch.eye(2, dtype=torch.float64), ([-1.0, 0.0, 1e200], [-1.0, 0.0, 1.0, 1e200])
    )
    assert found.num_invalid == 6  # wherever a coordinate is 1e200
    assert np.isposinf(found.loss[2, 3])
    assert np.isfinite(found.loss[:2, :3]).all()
    assert found.minimum().value == found.loss[:2, :3].min()
    assert not np.isfinite(found.at(1e199, 1e199))
    assert found.share_below(1e300) == pytest.approx(np.isfinite(found.loss).mean())
    row = found.row(0.1)
    assert np.array_equal(row.loss, found.loss[:, 1])
    assert row.about["b"] == 0.0


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 1), 1])
def test_grids_of_one_point_and_of_one_row(grid):
    ev = product(2)
    found = hs.surface(ev, torch.eye(2, dtype=torch.float64), grid)
    assert found.shape == ((grid, grid) if isinstance(grid, int) else grid)
    i, j = (np.flatnonzero(axis == 0) for axis in (found.a, found.b))
    if len(i) and len(j):
        assert found.loss[i[0], j[0]] == ev.loss().item()
    assert found.at(found.a[0], found.b[0]) == found.loss[0, 0]


def test_one_direction_makes_a_line():
    ev = product(2)
    found = hs.surface(ev, torch.eye(2, dtype=torch.float64)[:1], np.linspace(-1, 1, 9))
    w = ev.theta.numpy()
    np.testing.assert_allclose(found.row().loss, (1 - (w[0] + found.a) * w[1]) ** 2, **EXACT)
    np.testing.assert_allclose(found.row().distance, found.a + 1, **EXACT)


def test_positions_are_euclidean():
    ev = evaluator()
    pair = directions.random(ev, seed=3)
    found = hs.surface(ev, pair, (3, 5))
    task = grid_task(ev, pair, (3, 5))
    rows = task.points.rows(0, 15).numpy()
    places = found.positions.reshape(15, 2)
    for i, j in ((0, 14), (3, 8), (2, 10)):
        exact = np.linalg.norm(rows[i] - rows[j])
        assert np.linalg.norm(places[i] - places[j]) == pytest.approx(exact, rel=1e-10)


def test_random_planes_are_controls_of_their_own_seeds():
    ev = evaluator()
    first, second = hs.random_planes(ev, num_planes=2, grid=3, seed=5)
    assert first.loss[1, 1] == second.loss[1, 1] == pytest.approx(ev.loss().item(), rel=1e-14)
    assert not np.allclose(first.loss, second.loss)
    recipes = [recipe["index"] for plane in (first, second) for recipe in plane.about["directions"]]
    assert recipes == [0, 1, 2, 3]


# -- directions ----------------------------------------------------------------------------------


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 3, 2)
        self.dense = nn.Linear(3, 5)
        self.dead = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.norm.weight.normal_()
            self.dead.weight[1] = 0

    def forward(self, x):
        return self.dense(self.up(self.norm(self.conv(x))).mean((2, 3)))


def everything():
    x, y = images(4, 2, 4)
    return hs.Evaluator(Everything().double(), F.cross_entropy, (x, y))


def split(ev, vector):
    return ev.layout.unflatten(vector)


def test_filters_have_the_norms_of_the_parameters_filters():
    ev = everything()
    found = directions.random(ev, count=2, seed=7)
    theta = split(ev, ev.theta)
    for row in found.vectors:
        d = split(ev, row)
        for name, axis in (("conv.weight", 0), ("up.weight", 1), ("dense.weight", 0)):
            ours = d[name].movedim(axis, 0).flatten(1).norm(dim=1)
            assert torch.allclose(ours, theta[name].movedim(axis, 0).flatten(1).norm(dim=1))
        assert d["dead.weight"][1].abs().max() == 0  # as is the filter
        for name in ("conv.bias", "up.bias", "dense.bias", "norm.weight", "norm.bias"):
            assert d[name].abs().max() == 0


def test_filter_normalization_undoes_a_rescaling_of_filters():
    """Li et al. 2018, section 3: a ReLU network whose filters are scaled is the same function."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)
    )
    ev = hs.Evaluator(model.double(), F.cross_entropy, images(8))
    scale = torch.rand(6, dtype=torch.float64) + 0.5
    theta = split(ev, ev.theta)
    factor = torch.cat(
        [scale[:, None].expand(6, 12).flatten(), torch.ones(18, dtype=torch.float64)]
    )
    scaled = ev.theta * factor
    d = directions.random(ev, seed=1)
    e = directions.random(ev, scaled, seed=1)
    first = d.vectors[:, :72] * factor[:72]
    assert torch.allclose(e.vectors[:, :72], first)  # the first layer's filters scale with it
    assert theta["1.weight"].shape == (6, 12)


@pytest.mark.parametrize("normalize", ["layer", "weight", "none"])
def test_other_normalizations(normalize):
    ev = everything()
    d = split(ev, directions.random(ev, count=1, seed=7, normalize=normalize).vectors[0])
    raw = split(ev, directions.random(ev, count=1, seed=7, normalize="none", ignore=()).vectors[0])
    theta = split(ev, ev.theta)
    for name in ("conv.weight", "up.weight", "dense.weight", "dead.weight"):
        expected = {
            "layer": raw[name] * theta[name].norm() / raw[name].norm(),
            "weight": raw[name] * theta[name].abs() / raw[name].square().mean().sqrt(),
            "none": raw[name],
        }[normalize]
        assert torch.allclose(d[name], expected)


def test_biases_and_normalization_layers_are_kept_by_choice():
    ev = everything()
    theta = split(ev, ev.theta)
    for ignore, kept in (((), ("bias", "norm")), (("bias",), ("norm",)), (("norm",), ("bias",))):
        d = split(ev, directions.random(ev, count=1, ignore=ignore).vectors[0])
        for kind, name in (("bias", "dense.bias"), ("norm", "norm.weight"), ("norm", "norm.bias")):
            norm = d[name].norm() if kind in kept else 0.0
            expected = theta[name].norm() if kind in kept else 0.0
            assert norm == pytest.approx(float(expected), rel=1e-12)


def test_directions_are_rebuilt_from_their_recipes():
    ev = everything()
    made = directions.random(ev, count=3, seed=9, normalize="layer", ignore=("norm",))
    both = made.joined(directions.gradient(ev))
    again = directions.rebuild(ev, ev.theta, both.recipes)
    assert torch.equal(again.vectors, both.vectors)
    assert again.recipes == both.recipes
    assert torch.equal(
        made[1:].vectors,
        directions.random(ev, first=1, seed=9, normalize="layer", ignore=("norm",)).vectors,
    )
    with pytest.raises(hs.InputError, match="cannot be made from its recipe"):
        directions.rebuild(ev, ev.theta, [{"kind": "difference", "index": 0}])


def test_gradients_eigenvectors_and_differences():
    a = torch.diag(tensor([1.0, 4.0, -9.0]))
    ev = bowl(a)
    gradient = a @ ev.theta
    assert torch.allclose(directions.gradient(ev).vectors[0], gradient / gradient.norm())
    assert torch.allclose(directions.gradient(ev, unit=False).vectors[0], gradient)
    pairs = hs.EigenPairs(
        values=np.array([-9.0, 1.0, 4.0]),
        vectors=np.eye(3)[[2, 0, 1]],
        residuals=np.zeros(3),
        converged=np.ones(3, bool),
    )
    sharp = directions.eigenvectors(ev, pairs)
    found = hs.surface(ev, sharp, ([0.0, 1.0], [0.0, 1.0]))
    rise = found.loss - found.loss[0, 0]
    theta = ev.theta.numpy()
    assert rise[1, 0] == pytest.approx(4 * theta[1] + 2)
    assert rise[0, 1] == pytest.approx(-9 * theta[2] - 4.5)
    assert [recipe["value"] for recipe in sharp.recipes] == [4.0, -9.0]
    others = [tensor([1.0, 2.0, 3.0]), tensor([0.0, 1.0, 0.0])]
    found = hs.surface(ev, directions.differences(ev, others), ([0.0, 1.0], [0.0, 1.0]))
    assert found.loss[1, 0] == pytest.approx(ev.loss(others[0]).item(), rel=1e-12)
    assert found.loss[0, 1] == pytest.approx(ev.loss(others[1]).item(), rel=1e-12)


def test_batch_norm_is_said_with_the_result():
    ev = hs.Evaluator(conv(), F.cross_entropy, images(6, 2, 5), batch_norm="recalibrate")
    found = hs.surface(ev, directions.random(ev), 2)
    assert found.about["batch_norm"] == "recalibrate"
    assert found.about["num_samples"] == 6


def test_weights_of_curves():
    t = np.linspace(0, 1, 7)
    np.testing.assert_allclose(
        paths.bezier(t), np.column_stack([(1 - t) ** 2, 2 * t * (1 - t), t**2]), **EXACT
    )
    np.testing.assert_allclose(paths.bezier(t, 3).sum(1), 1.0, **EXACT)
    assert np.array_equal(
        paths.polygon([0, 0.25, 0.5, 1], 3), [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]
    )
    h = 1e-6
    for weights, slope in (
        (paths.bezier, paths.bezier_slope),
        (lambda t: paths.polygon(t, 4), lambda t: paths.polygon_slope(t, 4)),
    ):
        inside = np.array([0.1, 0.45, 0.8])
        numeric = (weights(inside + h) - weights(inside - h)) / (2 * h)
        np.testing.assert_allclose(slope(inside), numeric, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ev, d: hs.surface(ev, d, (3, 3, 3)), "a grid of 3 axes for 2 directions"),
        (lambda ev, d: hs.surface(ev, d, (0, 3)), "axis 0 has 0 points"),
        (lambda ev, d: hs.surface(ev, d, ([1.0, 0.0], 3)), "not ascending"),
        (lambda ev, d: directions.random(ev, normalize="filters"), "expected one of filter"),
        (lambda ev, d: directions.random(ev, ignore="bias"), "in a tuple"),
        (lambda ev, d: hs.bilinear(ev, [ev.theta] * 3), "3 parameter vectors; expected 4"),
        (lambda ev, d: hs.interpolate(ev, ev.theta, torch.ones(3)), r"expected \(83,\)"),
        (lambda ev, d: hs.by_distance(ev, ev.theta, ev.theta, [1.0]), "are equal"),
        (
            lambda ev, d: hs.by_distance(ev, ev.theta, 2 * ev.theta, 3),
            "sequence of ascending distances",
        ),
        (lambda ev, d: hs.by_distance(ev, ev.theta, 2 * ev.theta, [1, 0]), "not ascending"),
        (lambda ev, d: hs.interpolate(ev, ev.theta, 2 * ev.theta, 5.0), "alpha=5.0: expected a"),
        (lambda ev, d: hs.interpolate(ev, ev.theta, 2 * ev.theta, "5"), "alpha='5': expected a"),
        (lambda ev, d: hs.interpolate(ev, ev.theta, 2 * ev.theta, True), "whole number of points"),
        (lambda ev, d: hs.interpolate(ev, ev.theta, ev.theta, alpha=[0, 1, 0.5]), "not ascending"),
        (lambda ev, d: hs.interpolate(ev, ev.theta, ev.theta, alpha=[]), "expected a whole number"),
        (lambda ev, d: hs.interpolate(ev, ev.theta, ev.theta, window=(1, 0)), "two finite ends"),
        (lambda ev, d: hs.interpolate(ev, ev.theta, None), "theta1 is None"),
        (lambda ev, d: hs.interpolate(ev, ev.theta, "net.pt"), "theta is a str"),
        (lambda ev, d: hs.bilinear(ev, [ev.theta] * 4, [1, 0], 2), "axis 0 is not ascending"),
        (lambda ev, d: hs.surface(ev, d, 5.0), "grid=5.0: expected a whole number"),
        (lambda ev, d: hs.surface(ev, d[:1], None), "grid=None: expected a whole number"),
        (lambda ev, d: hs.surface(ev, 0 * ev.theta, 3), "direction 0 is zero"),
        (lambda ev, d: hs.surface(ev, torch.stack([ev.theta, -3 * ev.theta]), 3), "are parallel"),
        (lambda ev, d: hs.random_planes(ev, num_planes=-1), "num_planes=-1"),
        (lambda ev, d: directions.random(ev, count=0), "count=0: expected a whole number"),
        (lambda ev, d: directions.random(ev, seed=1.5), "seed=1.5: expected a whole number"),
        (lambda ev, d: directions.differences(ev, []), "others is empty"),
        (lambda ev, d: hs.family_of_lines(ev, [ev.theta, 2 * ev.theta], "3"), "reach='3'"),
        (lambda ev, d: hs.find_asymmetric(ev, distance=[0.0, 1.0]), "lengths above 0"),
        (lambda ev, d: hs.find_asymmetric(ev, distance=[1.0], num_steps=-2), "num_steps=-2"),
        (lambda ev, d: hs.connect(ev, ev.theta, 2 * ev.theta, num_steps=2.5), "num_steps=2.5"),
        (lambda ev, d: hs.connect(ev, ev.theta, 2 * ev.theta, lr=-1), "lr=-1: expected a finite"),
        (lambda ev, d: hs.functional_distances(ev, {"a": ev.theta, "b": None}), "'b' is None"),
        (lambda ev, d: hs.along_ray(ev, ev.theta, 0 * ev.theta, [1.0]), "direction is zero"),
        (lambda ev, d: Surface([0.0], [0.0], {"loss": [1.0]}).values["x"], "points has values"),
    ],
)
def test_unusable_input_is_refused(make, message):
    ev = evaluator()
    with pytest.raises(hs.InputError, match=message):
        make(ev, directions.random(ev))


def test_a_task_can_be_handed_out_in_ranges():
    """What a runner does: the plan once, ranges in any order, the result at the end."""
    from hessian_spectrum.landscape.point_evaluation import evaluate, ranges
    from hessian_spectrum.landscape.point_passes import PointPlan

    ev = evaluator()
    task = interpolate.linear_task(ev, ev.theta, 2 * ev.theta, 20)
    plan = PointPlan(chunk=4, together=2, superposed=True)
    parts = {
        r.start: evaluate(ev, task.points, r.start, r.stop, plan=plan)
        for r in reversed(ranges(20, plan, 8))
    }
    joined = {name: np.concatenate([parts[i][name] for i in sorted(parts)]) for name in parts[0]}
    expected = hs.interpolate(ev, ev.theta, 2 * ev.theta, 20, plan=plan)
    assert np.array_equal(task.finish(joined).loss, expected.loss)


def test_numbers_and_vectors_of_numpy_are_taken_like_pythons_and_torchs():
    ev = evaluator()
    theta, other = ev.theta, 2 * ev.theta
    for count in (5, np.int64(5), np.array(5)[()]):
        assert len(hs.interpolate(ev, theta, other, count).t) == 5
        assert hs.surface(ev, directions.random(ev), count).shape == (5, 5)
    curve = hs.interpolate(ev, theta.numpy(), other.tolist(), 3)
    assert np.array_equal(curve.loss, hs.interpolate(ev, theta, other, 3).loss)
    vectors = directions.random(ev).vectors
    for given in (vectors.numpy(), list(vectors), list(vectors.numpy())):
        found = hs.surface(ev, given, 3)
        assert np.array_equal(found.loss, hs.surface(ev, vectors, 3).loss)
    walked = hs.along_trajectory(ev, [theta.numpy(), 1.5 * theta.numpy(), other.numpy()])
    again = hs.along_trajectory(ev, [theta, 1.5 * theta, other])
    assert np.array_equal(walked.values["loss"], again.values["loss"])
    row = hs.surface(ev, directions.random(ev, count=1), [0, 1, 2])
    assert np.array_equal(row.a, [0, 1, 2])
