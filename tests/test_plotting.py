"""Figures: what they show is the measure's own answer, in every format, written whole."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from hessian_spectrum import plotting
from hessian_spectrum.errors import InputError
from hessian_spectrum.measure import EigenPairs, SpectralMeasure


def some_measure(num_probes=4, scale=1.0, n=5000):
    rng = np.random.default_rng(1)
    nodes = scale * np.sort(np.concatenate([rng.normal(0, 0.1, 40), [-1.0, 4.0, 9.0]]))
    certified = np.abs(nodes) > 0.8 * scale
    weights = np.where(certified, 1 / n, rng.random((num_probes, 43)))
    bulk = np.where(certified, 0, weights)
    weights = np.where(certified, 1 / n, bulk * (1 - 3 / n) / bulk.sum(axis=1, keepdims=True))
    return SpectralMeasure(nodes, weights, n, np.zeros(43), certified)


def texts(figure):
    return " | ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_the_curve_is_the_density_and_the_band_two_standard_errors():
    measure, sigma2 = some_measure(), 0.04
    top = plotting.density_figure(measure, sigma2).axes[0]
    t, y = top.lines[0].get_data()
    floor, ceiling = top.get_ylim()
    shown = y >= floor
    np.testing.assert_allclose(y[shown], measure.density(t, sigma2)[shown])
    assert shown.sum() > 100 and y.max() < ceiling and top.get_yscale() == "log"
    band = top.collections[0].get_paths()[0].vertices[:, 1].max()
    two = measure.density(t, sigma2) + 2 * measure.standard_error("density", t, sigma2)
    assert band == pytest.approx(two.max())


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
    assert "eigenvalue of the Hessian of the mean loss" in shown
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
