"""The density as drawn in the result file: plain arrays that any program can plot."""

import h5py
import numpy as np
import pytest

import hessian_spectrum as hs
from hessian_spectrum.plotting.density import density_figure
from hessian_spectrum.spectral.drawn import drawn_density

SPECTRUM = np.r_[-0.5, -0.3, np.linspace(-0.05, 0.2, 90), 1, 2, 4.0]


def measured(scale=1.0, num_probes=5):
    torch = pytest.importorskip("torch")
    matrix = torch.diag(torch.tensor(scale * SPECTRUM))
    return hs.spectral_density(hs.Dense(matrix), num_probes, 8, 1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_h5py_and_numpy_suffice_to_plot_it(path, scale):
    hs.save(path, measured(scale))
    with h5py.File(path) as file:
        group = file["density/main/drawn"]
        t, values, lower, upper = (group[name][()] for name in ("t", "values", "lower", "upper"))
        sigma2 = float(group.attrs["sigma2"])
        assert group["t"].is_scale and group["t"].attrs["units"] == "eigenvalue"
        for name in ("values", "lower", "upper"):
            assert group[name].dims[0].label == "t" and group[name].dims[0][0] == group["t"]
            assert group[name].attrs["units"] == "1 / eigenvalue"
    assert (np.diff(t) > 0).all() and t.shape == values.shape == lower.shape == upper.shape
    integral = (np.diff(t) * (values[1:] + values[:-1]) / 2).sum()
    assert abs(integral - 1) < 1e-5  # measured 1.5e-7: the grid ends five sigma beyond the nodes
    assert (0 <= lower).all() and (lower <= values).all() and (values <= upper).all()
    assert (upper > lower)[values > 1e-3 * values.max()].all()
    assert sigma2 == pytest.approx((4.5 * scale / 500) ** 2, rel=1e-3)
    assert t.size == 2002  # 64 kB, whatever the number of nodes


def test_it_is_what_the_figure_draws(path):
    measure = measured()
    hs.save(path, measure)
    with hs.open(path) as run:
        read = run["density"]
    for figure in (density_figure(measure), density_figure(read)):
        curve = figure.axes[0].get_lines()[0].get_xydata().T
        np.testing.assert_array_equal(curve[0], measure.drawn.t)
        shown = curve[1] > figure.axes[0].get_ylim()[0]
        np.testing.assert_array_equal(curve[1][shown], measure.drawn.values[shown])


def test_it_is_the_density_and_the_interval_of_the_measure():
    measure = measured()
    for drawn in (measure.drawn, drawn_density(measure, 1e-3)):
        np.testing.assert_array_equal(drawn.values, measure.density(drawn.t, drawn.sigma2))
        ends = measure.interval("density", drawn.t, drawn.sigma2)
        np.testing.assert_array_equal([drawn.lower, drawn.upper], ends)


def test_a_copy_takes_it_from_the_file(path, tmp_path, monkeypatch):
    hs.save(path, measured())
    monkeypatch.setattr("hessian_spectrum.spectral.measure.drawn_density", None)
    with hs.open(path) as run:
        hs.save(tmp_path / "copy.h5", **run)
    with h5py.File(path) as one, h5py.File(tmp_path / "copy.h5") as other:
        for name in ("t", "values", "lower", "upper"):
            np.testing.assert_array_equal(
                one["density/main/drawn"][name], other["density/main/drawn"][name]
            )


def test_a_run_that_is_not_finished_has_none(path):
    hs.save(path, measured(), finished=False)
    with h5py.File(path) as file:
        assert "drawn" not in file["density/main"]
    with hs.open(path) as run:
        assert run["density"].drawn.t.size == 2002  # computed when asked


def test_one_probe_has_a_curve_without_a_band(path):
    hs.save(path, measured(num_probes=1))
    with h5py.File(path) as file:
        group = file["density/main/drawn"]
        assert np.isfinite(group["values"]).all() and np.isnan(group["lower"]).all()


def test_narrow_smoothing_has_points_at_every_node():
    measure = measured()
    drawn = drawn_density(measure, 1e-10)
    assert drawn.t.size <= 2002 + 41 * len(measure.nodes)
    assert np.isin(measure.nodes, drawn.t).all()
    with pytest.raises(hs.InputError, match=r"sigma2=0\.0.*positive"):
        drawn_density(measure, 0.0)
