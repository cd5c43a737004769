"""Several densities or eigenpairs in one picture."""

from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.colors import LogNorm

import hessian_spectrum as hs
from hessian_spectrum.plotting import several


@pytest.fixture(scope="module")
def measures():
    diagonal = torch.linspace(-0.1, 1, 40, dtype=torch.float64)
    return {
        f"{scale}": hs.spectral_density(hs.Dense(torch.diag(scale * diagonal)), 4, 6)
        for scale in (4.0, 2.0, 1.0)
    }


def test_a_heat_map_shows_each_density_at_its_epoch(measures):
    figure = several.heat_figure(measures, [1, 3, 9], "epoch", sigma2=1e-3)
    axes = figure.axes[0]
    (mesh,) = [found for found in axes.collections if isinstance(found.norm, LogNorm)]
    edges = mesh.get_coordinates()
    assert edges[:, 0, 1].tolist() == [0, 2, 6, 12]  # half-way between the epochs
    t = (edges[0, 1:, 0] + edges[0, :-1, 0]) / 2
    drawn = mesh.get_array().reshape(3, -1)
    for row, measure in zip(drawn, measures.values()):
        seen = ~np.ma.getmaskarray(row)
        np.testing.assert_allclose(row[seen], measure.density(t, 1e-3)[seen], rtol=1e-4)
        assert seen.any()
        assert not seen.all()
    low, high = (line.get_xdata() for line in axes.get_lines())
    assert list(zip(low, high)) == [measure.support for measure in measures.values()]
    assert axes.get_ylabel() == "epoch"
    assert "not stored" in several.heat_figure(measures).axes[0].get_ylabel()


def test_ridges_have_one_scale(measures):
    axes = several.ridge_figure(measures, [1, 3, 9], "epoch", sigma2=1e-3).axes[0]
    lines = [line.get_ydata() for line in axes.get_lines()]
    t = axes.get_lines()[0].get_xdata()
    heights = np.array([line - row for row, line in enumerate(lines)])
    values = np.array([measure.density(t, 1e-3) for measure in measures.values()])
    assert heights.max() == pytest.approx(several.OVERLAP)
    high = heights > 0
    slopes = np.polyfit(np.log10(values[high]), heights[high], 1)
    np.testing.assert_allclose(np.polyval(slopes, np.log10(values[high])), heights[high], atol=1e-9)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1", "3", "9"]


def test_curves_have_the_smoothing_of_the_widest_and_bands(measures):
    axes = several.curves_figure(measures).axes[0]
    sigma2 = max(measure.default_sigma2 for measure in measures.values())
    assert [line.get_label() for line in axes.get_lines()] == list(measures)
    assert len(axes.collections) == len(measures)
    for line, measure in zip(axes.get_lines(), measures.values()):
        expected = measure.density(line.get_xdata(), sigma2)
        seen = expected > axes.get_ylim()[0]
        np.testing.assert_allclose(line.get_ydata()[seen], expected[seen])


def test_lines_join_eigenvalues_of_one_rank():
    def pairs(values, num_lower):
        bars, converged = np.full(len(values), 0.1), np.ones(len(values), bool)
        return hs.EigenPairs(np.array(values), bars, converged, num_lower=num_lower)

    found = {"a": pairs([-1.0, 3.0, 5.0], 1), "b": pairs([-2.0, -1.5, 7.0], 2)}
    axes = several.eigenvalues_figure(found, [2, 4], "epoch").axes[0]
    drawn = [container[0].get_ydata() for container in axes.containers]
    expected = [[5, 7], [3, np.nan], [-1, -2], [np.nan, -1.5]]
    np.testing.assert_array_equal(np.array(drawn), expected)
    assert axes.containers[0][0].get_xdata().tolist() == [2, 4]


@pytest.mark.parametrize("draw", [several.heat_figure, several.ridge_figure])
def test_what_cannot_be_drawn_is_refused(draw, measures):
    for wrong, reason in (
        (({},), "nothing to draw"),
        ((measures, [1, 1, 2]), "expected one each, ascending"),
        ((measures, [1, 2]), "expected one each, ascending"),
        ((measures, None, "index", -1.0), "the variance must be positive"),
    ):
        with pytest.raises(hs.InputError, match=reason):
            draw(*wrong)


def test_a_trajectory_shows_what_was_evaluated():
    track = hs.trajectory(torch.eye(4, dtype=torch.float64), steps=[1, 2, 5, 10])
    values = {name: np.arange(4.0) for name in ("loss", "largest", "largest_residual")}
    track = track.with_values(values, {"axis": "epoch"})
    axes = hs.surface_views.trajectory_figure(track).axes
    assert [found.get_ylabel() for found in axes[:2]] == ["loss", "extreme eigenvalues"]
    assert {found.get_xlabel() for found in axes[:3]} == {"epoch"}
    one = hs.surface_views.trajectory_figure(track, name="largest").axes
    assert [found.get_ylabel() for found in one[:2]] == ["largest", "distance in parameter space"]
    with pytest.raises(hs.InputError, match="no 'ratio'"):
        hs.surface_views.trajectory_figure(track, name="ratio")


def test_the_package_lists_its_figures():
    from hessian_spectrum import plotting

    assert set(dir(plotting)) >= {"density_figure", "heat_figure", "log_figure", "save_figure"}
    for name in plotting.__all__:
        assert callable(getattr(plotting, name))


@pytest.mark.parametrize(("values", "view"), [({}, "heat"), ({"block": 0.0}, "blocks")])
def test_only_what_says_that_it_is_of_blocks_is_drawn_as_such(values, view, tmp_path, monkeypatch):
    from hessian_spectrum.plotting import registry
    from hessian_spectrum.storage import series

    drawn, figure = [], several.Figure()
    for name in several.VIEWS_OF["density"]:
        draw = partial(lambda name, *args, **options: drawn.append(name) or figure, name)
        monkeypatch.setitem(several.VIEWS_OF["density"], name, draw)
    measure = hs.SpectralMeasure(
        np.array([-1.0, 2.0]), np.full((2, 2), 0.5), 7, np.zeros(2), np.zeros(2, bool)
    )
    told = {f"values/{n}": {k: v + i for k, v in values.items()} for i, n in enumerate("ab")}
    hs.save(tmp_path / "run.h5", a=measure, b=measure, **(told if values else {}))
    with hs.open(tmp_path / "run.h5") as run:
        registry.save_series(series.of(run, "density"), tmp_path / "a.png", None, "title")
    assert drawn == [view]
