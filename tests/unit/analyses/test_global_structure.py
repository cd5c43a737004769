"""Fitness against distance and ultrametricity, on points that can be worked out by hand."""

import itertools

import numpy as np
import pytest

import hessian_spectrum as hs


def test_the_correlation_of_loss_and_distance_by_hand():
    """Distances 5, 10, 13, 17 and losses 1, 3, 2, 4: r = 16.5 / sqrt(76.75 x 5)."""
    points = np.array([[3.0, 4.0], [6.0, 8.0], [5.0, 12.0], [8.0, 15.0]]) + [1, 2]
    found = hs.fitness_distance([1, 3, 2, 4], points, [1, 2])
    assert found.value == pytest.approx(16.5 / np.sqrt(76.75 * 5), rel=1e-12)
    assert found.count == 4
    assert hs.fitness_distance([1, 3, 2, 4], points, [1, 2], rank=True).value == pytest.approx(0.8)


def test_a_bowl_has_correlation_one_and_a_ridge_minus_one():
    points = np.random.default_rng(0).standard_normal((30, 5))
    distances = np.linalg.norm(points - 1, axis=1)
    bowl = hs.fitness_distance(2 * distances + 3, points, np.ones(5))
    assert bowl.value == pytest.approx(1, abs=1e-12)
    ridge = hs.fitness_distance(-distances, points, np.ones(5))
    assert ridge.value == pytest.approx(-1, abs=1e-12)


def test_points_without_structure_have_an_interval_around_zero():
    rng = np.random.default_rng(1)
    found = hs.fitness_distance(
        rng.standard_normal(200), rng.standard_normal((200, 8)), np.zeros(8)
    )
    for low, high in (found.fisher, found.bootstrap):
        assert low < 0 < high and high - low < 0.3


def test_leaves_of_a_tree_are_ultrametric_at_every_scale():
    """Leaves of a binary tree whose edges are orthogonal: distances depend on the join alone."""
    edges = np.diag([3.0, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    leaves = []
    for a, b, c in itertools.product(range(2), repeat=3):
        leaves.append(edges[a] + edges[2 + 2 * a + b] + edges[6 + 4 * a + 2 * b + c])
    for scale in (1e-8, 1.0, 1e8):
        found = hs.ultrametricity(scale * np.array(leaves))
        assert found.mean < 1e-15 and found.interval[1] < 1e-15
        assert len(found.differences) == 56 and found.share_below(1e-12) == 1


def test_points_on_a_line_by_hand():
    """0, 1, 3, 7 on a line: (a - b) / a = c / a of 1/3, 1/7, 3/7, 4/6 -> 2/6."""
    found = hs.ultrametricity(np.array([[0.0], [1], [3], [7]]))
    assert np.allclose(found.differences, sorted([1 / 3, 1 / 7, 3 / 7, 2 / 6]))
    assert found.mean == pytest.approx(np.mean([1 / 3, 1 / 7, 3 / 7, 1 / 3]), rel=1e-12)
    assert found.share_below(0.2) == 0.25
    assert found.interval[0] < found.mean < found.interval[1]


def test_the_interval_covers_the_mean_of_new_points():
    """Of 24 points in the plane; triangles that share points are not independent."""

    def drawn(seed):
        return np.random.default_rng(seed).standard_normal((24, 2))

    truth = np.mean(
        [hs.ultrametricity(drawn(seed), resamples=1).mean for seed in range(1000, 1200)]
    )
    found = [hs.ultrametricity(drawn(seed), resamples=200) for seed in range(100)]
    covered = np.mean([f.interval[0] <= truth <= f.interval[1] for f in found])
    assert 0.85 <= covered <= 1.0
    width = np.mean([f.interval[1] - f.interval[0] for f in found])
    scatter = np.std([f.mean for f in found])
    assert width > 3 * scatter  # over triangles instead of points it is a third of that


def test_many_dimensions_are_nearly_ultrametric_without_any_tree():
    rng = np.random.default_rng(0)
    means = [hs.ultrametricity(rng.standard_normal((20, n)), resamples=1).mean for n in (2, 2000)]
    assert means[0] > 0.15 and means[1] < 0.02


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.eye(3), "at least 4"),
        (np.zeros((4, 2)), "coincide"),
        (np.full((4, 2), np.inf), "not finite"),
        (np.ones(4), "expected"),
    ],
)
def test_points_that_make_no_triangles_are_refused(points, message):
    with pytest.raises(hs.InputError, match=message):
        hs.ultrametricity(points)


def test_references_and_options_of_no_use_are_refused():
    with pytest.raises(hs.InputError, match="a reference of shape"):
        hs.fitness_distance([1, 2, 3, 4], np.eye(4), np.zeros(3))
    with pytest.raises(hs.InputError, match="all equal"):
        hs.fitness_distance([1, 2, 3, 4], np.eye(4), np.zeros(4))  # as far as each other
    with pytest.raises(hs.InputError, match="level"):
        hs.ultrametricity(np.eye(5), level=2.0)
