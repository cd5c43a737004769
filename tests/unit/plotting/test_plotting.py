"""Figures: what they show is the measure's own answer, in every format, written whole."""

import math
import warnings

import numpy as np
import pytest
import torch
from figures import texts
from matplotlib.colors import to_hex
from prescribed_spectra import OUTLIERS, space_of, with_spectrum
from scipy.integrate import trapezoid

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.plotting import density as plotting
from hessian_spectrum.plotting import density_views
from hessian_spectrum.plotting.certified import certified_eigenvalues
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.held_out_probes import certified
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import BlockRule


def some_measure(num_probes=4, scale=1.0, n=5000):
    rng = np.random.default_rng(1)
    nodes = scale * np.sort(np.concatenate([rng.normal(0, 0.1, 40), [-1.0, 4.0, 9.0]]))
    certified = np.abs(nodes) > 0.8 * scale
    weights = np.where(certified, 1 / n, rng.random((num_probes, 43)))
    bulk = np.where(certified, 0, weights)
    weights = np.where(certified, 1 / n, bulk * (1 - 3 / n) / bulk.sum(axis=1, keepdims=True))
    return SpectralMeasure(nodes, weights, n, np.zeros(43), certified)


@pytest.mark.parametrize("steps", [None, 3])
def test_the_curve_is_the_density_and_the_band_its_interval(steps):
    """With what the last steps changed, where that is known."""
    sigma2 = 0.04
    if steps is None:
        measure = some_measure()
    else:
        measure = hs.spectral_density(hs.Dense(with_spectrum(np.linspace(-1, 2, 60))), 4, steps)
    top = plotting.density_figure(measure, sigma2).axes[0]
    t, y = top.lines[0].get_data()
    floor, ceiling = top.get_ylim()
    shown = y >= floor
    np.testing.assert_allclose(y[shown], measure.density(t, sigma2)[shown])
    assert shown.sum() > 100 and y.max() < ceiling and top.get_yscale() == "log"
    low, high = band_of(top.collections[0], t)
    expected = np.maximum(measure.interval("density", t, sigma2), floor)
    np.testing.assert_allclose([low, high], expected, rtol=1e-12)
    assert (high > 1.01 * low).any()
    assert np.isnan(measure.truncation("density", t, sigma2)).all() == (steps is None)
    assert "95 % interval (4 probes)" in texts(top.figure)


def test_one_probe_has_no_band():
    assert not plotting.density_figure(some_measure(num_probes=1)).axes[0].collections


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_single_eigenvalue_stands_above_the_floor(scale):
    measure = some_measure(scale=scale)
    floor, ceiling = plotting.density_figure(measure).axes[0].get_ylim()
    assert floor < measure.density(9.0 * scale) / 5
    assert 1e3 < ceiling / floor < 1e14


def test_smoothing_finer_than_the_grid_loses_no_peak():
    measure, sigma2 = some_measure(), 1e-10
    t, y = plotting.density_figure(measure, sigma2).axes[0].lines[0].get_data()
    peak = 1 / (measure.n * math.sqrt(2 * math.pi * sigma2))
    assert y[np.argmin(np.abs(t - 9.0))] == pytest.approx(peak, rel=1e-6)


def test_axes_have_units_and_the_extremes_are_named():
    figure = plotting.density_figure(some_measure(), title="epoch 5")
    shown = texts(figure)
    assert "eigenvalue (of the mean loss)" in shown
    assert "density per unit eigenvalue" in shown and "epoch 5" in shown
    assert "min} = -1$" in shown and "max} = 9$" in shown


def test_the_rug_marks_the_certified_nodes():
    measure = some_measure()
    top = plotting.density_figure(measure).axes[0]
    (rug,) = (line for line in top.lines if line.get_marker() == "|")
    np.testing.assert_array_equal(rug.get_xdata(), measure.nodes[measure.certified])


def test_the_cumulative_share_climbs_from_zero_to_one_at_the_nodes():
    measure = some_measure()
    (line,) = plotting.density_figure(measure).axes[1].lines
    x, y = line.get_data()
    assert line.get_drawstyle() == "steps-post"  # closed: a node counts from itself on
    assert y[0] == 0 and y[-1] == pytest.approx(1)
    for node, share in zip(x[1:-1], y[1:-1]):
        assert share == pytest.approx(measure.mass(-np.inf, node))


def test_converged_and_not_converged_pairs_differ_in_marker_and_colour():
    residuals = np.array([1e-9, 0.3, 0.0])
    pairs = EigenPairs(np.array([-1.0, 2.0, 5.0]), residuals, residuals < 0.1)
    figure = plotting.eigenpairs_figure(pairs)
    done, undone = figure.axes[0].containers
    np.testing.assert_array_equal(done.lines[0].get_data(), [[1, 3], [-1, 5]])
    np.testing.assert_array_equal(undone.lines[0].get_data(), [[2], [2]])
    (bar,) = undone.lines[2][0].get_segments()
    np.testing.assert_allclose(bar[:, 1], [1.7, 2.3])
    looks = [(d.lines[0].get_marker(), to_hex(d.lines[0].get_color())) for d in (done, undone)]
    assert looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]
    assert "3 eigenpairs, 2 converged" in texts(figure)
    plotted = np.concatenate([line.get_ydata() for line in figure.axes[1].lines])
    assert (plotted > 0).all()  # a residual of 0 has no place on a log axis


@pytest.mark.parametrize(
    "extension, magic", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_the_extension_chooses_the_format(tmp_path, extension, magic):
    path = tmp_path / f"figure.{extension}"
    plotting.save_figure(plotting.density_figure(some_measure()), path)
    assert path.read_bytes().startswith(magic)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["figure.xyz", "figure"])
def test_an_unknown_extension_is_refused_with_the_known_ones(tmp_path, name):
    with pytest.raises(InputError, match=r"expected one of .*\.pdf.*\.png"):
        plotting.save_figure(plotting.density_figure(some_measure()), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_picture(tmp_path, monkeypatch):
    path, figure = tmp_path / "figure.png", plotting.density_figure(some_measure())
    path.write_bytes(b"old")

    def fail(file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plotting.save_figure(figure, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_and_a_bad_variance_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        plotting.save_figure(plotting.density_figure(some_measure()), tmp_path / "no" / "f.png")
    with pytest.raises(InputError, match=r"sigma2=-1.*positive"):
        plotting.density_figure(some_measure(), -1)


@pytest.mark.parametrize("sigma2", [None, 1e-10])
def test_the_extreme_eigenvalues_are_not_on_the_frame(sigma2):
    measure = some_measure()
    left, right = plotting.density_figure(measure, sigma2).axes[0].get_xlim()
    low, high = measure.support
    assert min(low - left, right - high) >= 0.0199 * (right - left) / 1.04


# -- eigenvalues per decade ------------------------------------------------------------------------


def decades_measure(num_probes=4, scale=1.0, n=5000):
    """0.003 is the largest node within its residual of 0; far ones have larger residuals."""
    rng = np.random.default_rng(2)
    sizes = np.geomspace(0.01, 20, 40)
    nodes = np.sort(np.concatenate([-sizes[:25], [-0.001, 0.0, 0.003], sizes]))
    weights = rng.random((num_probes, len(nodes)))
    weights /= weights.sum(axis=1, keepdims=True)
    residuals = np.where(np.abs(nodes) > 0.005, 0.9 * np.abs(nodes), 0.004)
    certified = np.zeros(len(nodes), dtype=bool)
    return SpectralMeasure(scale * nodes, weights, n, scale * residuals, certified)


def curves(axes):
    return {line.get_label().partition(":")[0]: line.get_data() for line in axes.lines}


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("decades", [0.01, 0.1, 0.5])
def test_log_curves_and_what_is_below_the_floor_add_up_to_n(scale, decades):
    measure = decades_measure(scale=scale)
    axes = plotting.log_figure(measure, decades).axes[0]
    share = measure.weights.mean(axis=0)
    for name, inside in (
        ("positive", measure.nodes > 0.005 * scale),
        ("negative", measure.nodes < -0.005 * scale),
    ):
        t, y = curves(axes)[name]
        area = trapezoid(y, np.log10(t))
        assert area == pytest.approx(measure.n * share[inside].sum(), rel=1e-5)  # 6e-7: +-5 sigma
    below = measure.n * share[np.abs(measure.nodes) < 0.005 * scale].sum()
    assert f"{below:,.0f} ± " in texts(axes.figure) and "at or below" in texts(axes.figure)
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_the_floor_is_the_largest_node_that_its_own_residual_does_not_tell_from_0():
    measure = decades_measure()
    assert density_views.resolution(measure) == 0.003 < measure.residuals.max()
    exact = SpectralMeasure(
        measure.nodes, measure.weights, measure.n, 0 * measure.residuals, measure.certified
    )
    assert density_views.resolution(exact) == np.finfo(float).eps * 20
    assert r"\lambda| = 0.003$" in texts(plotting.log_figure(measure))
    (grey,) = plotting.log_figure(measure, floor=0).axes[0].patches  # says so if asked for more
    assert grey.get_extents().transformed(grey.axes.transData.inverted()).x1 == pytest.approx(0.003)
    assert not plotting.log_figure(exact).axes[0].patches


def test_a_node_without_weight_raises_no_floor():
    nodes, weights = np.array([0.001, 0.5, 1.0]), np.array([[0.5, 0.0, 0.5]])
    measure = SpectralMeasure(nodes, weights, 7, np.full(3, 0.6) * [0, 1, 1], np.zeros(3, bool))
    assert density_views.resolution(measure) < 0.001


def test_the_log_band_is_one_standard_error_and_holds_the_curve():
    measure, width = decades_measure(), 0.2
    axes = plotting.log_figure(measure, width).axes[0]
    t, y = curves(axes)["positive"]
    kernel = np.exp(-0.5 * ((np.log10(t)[:, None] - np.log10(measure.nodes[28:])) / width) ** 2)
    probes = measure.n * kernel @ measure.weights[:, 28:].T / (width * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(y, probes.mean(axis=1), rtol=1e-10)
    error = probes.std(axis=1, ddof=1) / 2  # of four probes
    low, high = band_of(axes.collections[0], t)
    np.testing.assert_allclose(low, y - error, atol=1e-9 * y.max())
    np.testing.assert_allclose(high, y + error, atol=1e-9 * y.max())
    assert (low <= y).all() and (y <= high).all() and (high > y).any()


def band_of(collection, t):
    """Lower and upper edge of a fill_between over these t."""
    vertices = collection.get_paths()[0].vertices
    assert len(vertices) == 2 * len(t) + 3
    return vertices[1 : len(t) + 1, 1], vertices[len(t) + 2 : -1, 1][::-1]


def test_positive_and_negative_eigenvalues_are_told_apart_without_colour():
    axes = plotting.log_figure(decades_measure()).axes[0]
    positive, negative = axes.lines[:2]
    assert positive.get_color() != negative.get_color()
    assert positive.get_linestyle() == "-" and negative.get_linestyle() == "--"
    assert "eigenvalues per decade" in texts(axes.figure)
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(entries) == 4 and sum("standard error" in entry for entry in entries) == 1


@pytest.mark.parametrize(
    "arguments", [{"decades": 0}, {"decades": 2}, {"floor": -1}, {"floor": math.nan}]
)
def test_widths_and_floors_that_cannot_be_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(InputError, match=rf"log_figure\({name}=.*expected"):
        plotting.log_figure(decades_measure(), **arguments)


# -- summed up -------------------------------------------------------------------------------------


def test_the_cumulative_steps_are_the_masses_and_the_band_their_standard_errors():
    measure = some_measure()
    axes = plotting.cumulative_figure(measure).axes[0]
    (line,) = axes.lines
    x, y = line.get_data()
    assert axes.get_xscale() == "symlog" and line.get_drawstyle() == "steps-post"
    assert y[0] == 0 and y[-1] == pytest.approx(1)
    corners = axes.collections[0].get_paths()[0].vertices
    for node, share in zip(x[1:-1], y[1:-1]):
        assert share == pytest.approx(measure.mass(-np.inf, node))
        error = measure.standard_error("mass", -np.inf, node)
        drawn = corners[corners[:, 0] == node, 1]
        assert np.abs(drawn - (share + error)).min() < 1e-12
        assert np.abs(drawn - (share - error)).min() < 1e-12


def test_the_second_axis_counts_eigenvalues():
    figure = plotting.cumulative_figure(some_measure(n=5000))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    (numbers,) = axes.child_axes
    np.testing.assert_allclose(numbers.get_ylim(), 5000 * np.array(axes.get_ylim()))
    assert "number of eigenvalues" in texts(figure) and "4,000" in texts(figure)


def many_decades(scale):
    nodes = scale * np.array([-1.0, -1e-9, 0.0, 1e-15, 1e-12, 1e-3, 1.0])
    return SpectralMeasure(nodes, np.full((2, 7), 1 / 7), 7, np.zeros(7), np.zeros(7, bool))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("some", [some_measure, decades_measure, many_decades])
def test_all_nodes_are_inside_a_symlog_axis_with_few_labels(some, scale):
    measure = some(scale=scale)
    fine = plotting.certified_figure(measure, sigma2=(1e-10 * scale) ** 2)
    for figure in (plotting.cumulative_figure(measure), fine):
        axes = figure.axes[0]
        left, right = axes.get_xlim()
        assert axes.get_xscale() == "symlog"
        assert left < measure.nodes[0] and measure.nodes[-1] < right
        ticks = [t for t in axes.get_xticks() if left <= t <= right]
        assert 0 in ticks and 3 <= len(ticks) <= 13  # measured: 8 to 12


def test_six_decades_are_left_on_the_axis_of_nodes_that_have_more():
    axes = plotting.cumulative_figure(many_decades(1.0)).axes[0]
    assert axes.xaxis.get_transform().linthresh == 1e-6


# -- one by one ------------------------------------------------------------------------------------


def block_measure(num_probes=6, steps=12):
    """Eight outliers, 0.5 among them twice, on a bulk that no other probe resolves."""
    matrix = with_spectrum(torch.tensor([*np.linspace(-0.01, 0.01, 400), *OUTLIERS]))
    space, _ = space_of(matrix, num_probes, steps)
    rule = BlockRule(space.t, space.first, space.off[-1], space.num_steps)
    return certified(rule, len(matrix))


def bars_of(axes):
    """(k, 2): place and height of each."""
    segments = np.array(axes.collections[0].get_segments())
    assert (segments[:, 0, 1] == 0).all() and (segments[:, 0, 0] == segments[:, 1, 0]).all()
    return segments[:, 1]


def test_each_certified_eigenvalue_is_one_bar_and_a_double_one_a_bar_of_two():
    measure = block_measure()
    assert np.count_nonzero(measure.certified) == len(OUTLIERS)
    places, heights = bars_of(plotting.certified_figure(measure).axes[0]).T
    np.testing.assert_allclose(places, sorted(set(OUTLIERS)), atol=1e-10)
    expected = [OUTLIERS.count(place) for place in sorted(set(OUTLIERS))]
    np.testing.assert_allclose(heights, expected, atol=1e-6)


def test_bars_and_the_area_of_the_unresolved_part_add_up_to_n():
    measure = block_measure()
    top, bottom = plotting.certified_figure(measure).axes
    t, y = bottom.lines[0].get_data()
    area = trapezoid(y, t)
    assert area == pytest.approx(400, abs=0.01)
    assert area + bars_of(top)[:, 1].sum() == pytest.approx(measure.n, rel=1e-5)
    assert top.get_xscale() == bottom.get_xscale() == "symlog" and bottom.get_yscale() == "log"
    said = texts(top.figure)
    assert "certified: 8 eigenvalues in 7 bars" in said and "unresolved: 400 eigenvalues" in said


def test_the_band_of_the_unresolved_part_is_one_standard_error_of_n_times_the_density():
    measure = some_measure()
    _, bottom = plotting.certified_figure(measure, sigma2=0.04).axes
    t, y = bottom.lines[0].get_data()
    # The certified weights of this measure are the same for each probe: all error is the rest's.
    error = measure.n * measure.standard_error("density", t, 0.04)
    low, high = band_of(bottom.collections[0], t)
    np.testing.assert_allclose(high - y, error, atol=1e-9 * y.max())
    np.testing.assert_allclose(y - low, error, atol=1e-9 * y.max())
    assert error.max() > 0


def chained(residuals, gap=0.1):
    """Certified nodes 1, 1 + gap, 1 + 2 gap of two probes in turn, and a rest at 0."""
    nodes = np.array([0.0, 1.0, 1 + gap, 1 + 2 * gap, 3.0])
    weights = np.array([[0.7, 0.1, 0.1, 0.0, 0.1], [0.7, 0.1, 0.0, 0.1, 0.1]])
    certified = np.array([False, True, True, True, True])
    return SpectralMeasure(nodes, weights, 10, np.array([0.0, *residuals, 0.0]), certified)


def test_nodes_nearer_than_the_sum_of_their_residuals_are_one_bar_as_high_as_their_mean_weight():
    known = certified_eigenvalues(chained([0.06, 0.06, 0.06]))
    np.testing.assert_allclose(known.counts, [2, 1])
    np.testing.assert_allclose(known.places, [(1.0 + 0.5 * 1.1 + 0.5 * 1.2) / 2, 3])
    np.testing.assert_allclose((known.low[0], known.high[0]), (0.94, 1.26))
    np.testing.assert_allclose(certified_eigenvalues(chained([0.04] * 3)).counts, [1, 0.5, 0.5, 1])
    # A wide interval reaches over a narrow one to the next.
    np.testing.assert_allclose(certified_eigenvalues(chained([0.3, 0, 0])).counts, [2, 1])
    # Rounding may tear apart what has no residual at all.
    np.testing.assert_allclose(certified_eigenvalues(chained([0] * 3, 1e-15)).counts, [2, 1])


def test_residuals_that_can_be_seen_are_drawn_and_others_are_not():
    top = plotting.certified_figure(chained([0.06] * 3)).axes[0]
    (span,) = top.collections[1].get_segments()
    np.testing.assert_allclose(span, [[0.94, 2], [1.26, 2]])
    assert len(plotting.certified_figure(block_measure()).axes[0].collections) == 1


def test_without_a_certified_node_the_title_says_so_and_the_bulk_is_alone():
    measure = decades_measure()
    figure = plotting.certified_figure(measure, title="epoch 5")
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "epoch 5; no eigenvalue is certified"
    assert "unresolved: 5,000 eigenvalues" in texts(figure)
    t, y = axes.lines[0].get_data()
    np.testing.assert_allclose(y, measure.n * measure.density(t), atol=1e-12 * y.max())


def test_where_all_is_certified_there_is_no_bulk():
    nodes = np.array([1.0, 1.5, 2.0])
    measure = SpectralMeasure(nodes, np.full((2, 3), 1 / 3), 3, np.zeros(3), np.ones(3, bool))
    (axes,) = plotting.certified_figure(measure).axes
    assert len(bars_of(axes)) == 3 and "unresolved" not in texts(axes.figure)
    assert axes.get_xscale() == "linear"  # decades below 1 would be empty


# -- all views -------------------------------------------------------------------------------------

ZERO = SpectralMeasure(np.zeros(2), np.full((2, 2), 0.5), 9, np.zeros(2), np.zeros(2, bool))
SINGLE = SpectralMeasure(np.ones(1), np.ones((1, 1)), 1, np.zeros(1), np.ones(1, bool))
UNKNOWN = SpectralMeasure(-np.ones(1), np.ones((2, 1)), 4, np.full(1, 2.0), np.zeros(1, bool))


@pytest.mark.parametrize("view", plotting.VIEWS)
@pytest.mark.parametrize("measure", [ZERO, SINGLE, UNKNOWN], ids=["zero", "single", "unknown"])
def test_the_smallest_measures_are_drawn_without_a_warning(view, measure, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plotting.save_figure(plotting.VIEWS[view](measure), tmp_path / "figure.png")


@pytest.mark.parametrize("view", ["log", "cumulative", "certified"])
def test_the_band_needs_two_probes(view):
    for num_probes in (1, 2):
        figure = plotting.VIEWS[view](some_measure(num_probes=num_probes))
        bands = [c for axes in figure.axes for c in axes.collections if "Fill" in type(c).__name__]
        assert bool(bands) == (num_probes > 1) == ("standard error (2 probes)" in texts(figure))


@pytest.mark.parametrize("view", plotting.VIEWS)
def test_every_view_names_its_units_and_takes_a_title(view):
    said = texts(plotting.VIEWS[view](some_measure(), title="epoch 5"))
    assert "eigenvalue (of the mean loss)" in said and "epoch 5" in said


def test_nothing_is_said_to_be_known_of_a_spectrum_within_its_residuals():
    said = texts(plotting.log_figure(UNKNOWN))
    assert "4 at or below" in said and "nothing to draw" in said
