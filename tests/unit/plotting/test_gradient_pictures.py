"""Pictures of alignment and of participation: what they show is the results' own numbers."""

import numpy as np
import pytest
from figures import texts

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.plotting.density import alignment_figure, participation_figure
from hessian_spectrum.spectral import outliers


def some_alignment(k=2):
    rng = np.random.default_rng(0)
    values = rng.random((3, 6)) + 1
    values[2, 1:] = np.nan  # all the data: one
    values[0, 3] = np.nan
    cosine = rng.random((3, 6, k)) / 2
    return hs.Alignment(
        batch_sizes=np.array([10, 100, 450]),
        alignment=values,
        gradient_norm=np.ones((3, 6)),
        cosine=cosine,
        captured=(cosine**2).sum(axis=2) if k else np.full((3, 6), np.nan),
        eigenvalues=np.array([3.0, 4.0][:k]),
        residuals=np.zeros(k),
        num_samples=450,
        seed=0,
    )


def test_the_bars_are_mean_and_standard_deviation_of_the_minibatches():
    found = some_alignment()
    figure = alignment_figure(found)
    top, bottom = figure.axes[:2]
    (bars,) = top.containers
    line, _, (segments,) = bars.lines
    np.testing.assert_allclose(line.get_data(), [[10, 100, 450], found.mean()])
    half = [np.diff(segment[:, 1])[0] / 2 for segment in segments.get_segments()]
    np.testing.assert_allclose(half, np.nan_to_num(found.std()))
    dots = top.lines[0].get_ydata()
    np.testing.assert_array_equal(dots, found.alignment.ravel())
    along = bottom.containers[1].lines[0].get_ydata()
    np.testing.assert_allclose(along, found.mean_square_cosine()[:, -1])
    figure.draw_without_rendering()
    assert "in the span of 2 eigenvectors" in texts(figure) and "(all)" in texts(figure)


def test_the_right_axis_is_the_share_of_the_largest_eigenvalue():
    figure = alignment_figure(some_alignment())
    (right,) = figure.axes[0].child_axes
    figure.draw_without_rendering()
    np.testing.assert_allclose(np.array(right.get_ylim()) * 4.0, figure.axes[0].get_ylim())


def test_without_eigenvectors_there_is_one_panel_and_no_share():
    figure = alignment_figure(some_alignment(0))
    assert len(figure.axes) == 1 and not figure.axes[0].child_axes


SIZES = {"0.weight": 6, "0.bias": 2, "2.weight": 4}


def pairs_of(vectors):
    k = len(vectors)
    return hs.EigenPairs(np.arange(1.0, k + 1), np.zeros(k), np.ones(k, bool), vectors)


def test_the_heat_map_is_the_participation_the_largest_first():
    rows = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 3)))[0].T
    figure = participation_figure(pairs_of(rows), SIZES)
    left, right = figure.axes[:2]
    parts = outliers.participation(rows, SIZES)
    np.testing.assert_allclose(left.images[0].get_array(), parts[::-1].T.clip(1e-4))
    beside = np.stack([parts.mean(axis=0), np.array([6, 2, 4]) / 12], axis=1)
    np.testing.assert_allclose(right.images[0].get_array(), beside)
    assert [label.get_text() for label in left.get_yticklabels()] == list(SIZES)


def test_many_parameters_are_joined_by_layer():
    sizes = {f"{i}.{name}": 1 for i in range(30) for name in ("weight", "bias")}
    figure = participation_figure(pairs_of(np.eye(60)[:2]), sizes)
    assert figure.axes[0].images[0].get_array().shape == (30, 2)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="have no eigenvectors"):
        participation_figure(pairs_of(np.eye(3)[:0]), {"a": 3})
    with pytest.raises(InputError, match="layers of 2 entries"):
        participation_figure(pairs_of(np.eye(3)), {"a": 2})
