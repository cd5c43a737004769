"""Pictures of surfaces, the interactive page and the VTK file say what the arrays say."""

import base64
import dataclasses
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from hand import spiral
from image_networks import evaluator
from matplotlib.colors import LogNorm
from surfaces_by_hand import bowl

import hessian_spectrum as hs
from hessian_spectrum.landscape.results import Curve, Surface
from hessian_spectrum.plotting import landscape, registry, surface_export
from hessian_spectrum.plotting.density import save_figure


@pytest.mark.parametrize("broken", [False, True])
def test_every_view_is_drawn_and_saved(broken, tmp_path):
    surface = bowl(broken=broken)
    for i, view in enumerate(
        (landscape.contour_figure, landscape.heat_figure, landscape.relief_figure)
    ):
        figure = view(surface)
        save_figure(figure, tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 10_000
        title = figure.axes[0].get_title(loc="left")
        assert "11 samples, n = 83; BatchNorm: recalibrate" in title
        assert ("2 points without a finite value" in title) == broken
    labels = landscape.contour_figure(surface).axes[0]
    assert labels.get_xlabel() == "a: random, filter-normalized, seed 3 direction"


def test_colours_are_logarithmic_where_values_span_decades():
    wide, narrow = bowl(), Surface([0, 1], [0, 1], {"loss": [[1, 2], [3, 4]]})
    for view in (landscape.contour_figure, landscape.heat_figure):
        assert isinstance(view(wide).axes[0].collections[0].norm, LogNorm)
        assert not isinstance(view(narrow).axes[0].collections[0].norm, LogNorm)
        assert isinstance(view(narrow, log=True).axes[0].collections[0].norm, LogNorm)
    with pytest.raises(hs.InputError, match="expected positive ones"):
        landscape.heat_figure(wide, "accuracy", log=True)
    landscape.contour_figure(wide, "accuracy")  # all values are equal


@pytest.mark.parametrize("cells", [False, True])
def test_panels_of_several_surfaces_share_their_colours(cells):
    deep = bowl()
    flat = Surface([-1, 0, 1], [-1, 1], {"loss": [[3, 4], [5, 6], [7, np.nan]]})
    lost = Surface([-1, 1], [-1, 1], {"loss": np.full((2, 2), np.inf)})
    figure = landscape.panels_figure({"deep": deep, "flat": flat, "lost": lost}, cells=cells)
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    titles = [axes.get_title(loc="left").split("\n") for axes in panels]
    assert titles[0] == ["deep", "11 samples, n = 83; BatchNorm: recalibrate"]
    assert titles[1:] == [
        ["flat", "1 points without a finite value"],
        ["lost", "4 points without a finite value"],
    ]
    assert panels[0].get_ylabel() == "b"  # they are along different directions
    alike = landscape.panels_figure({"one": deep, "other": deep}, cells=cells).axes
    assert [axes.get_xlabel()[:9] for axes in alike[:2]] == 2 * ["a: random"]
    norms = [axes.collections[0].norm for axes in panels[:2]]
    low, high = deep.values["loss"].min(), deep.values["loss"].max()
    assert all(isinstance(norm, LogNorm) for norm in norms)
    assert all((norm.vmin, norm.vmax) == (low, high) for norm in norms)
    assert [len(axes.patches) for axes in panels] == [0, 1, 4]
    with pytest.raises(hs.InputError, match="no surfaces"):
        landscape.panels_figure({})
    with pytest.raises(hs.InputError, match="has no area"):
        landscape.panels_figure({"a": Surface([0], [0], {"loss": [[1.0]]})})


def test_what_is_no_surface_is_not_drawn_beside_one(tmp_path):
    with pytest.raises(hs.InputError, match="line holds a curve; expected a surface"):
        registry.save_beside({"bowl": bowl(), "line": bowl().row()}, tmp_path / "a.png")
    with pytest.raises(hs.InputError, match="expected a picture"):
        registry.save_beside({"bowl": bowl(), "again": bowl()}, tmp_path / "a.html")


def test_cells_that_are_not_finite_are_hatched_and_not_filled():
    axes = landscape.heat_figure(bowl(broken=True)).axes[0]
    assert len(axes.patches) == 2
    assert axes.patches[0].get_hatch() == "///"
    drawn = axes.collections[0].get_array()
    assert drawn.mask.sum() == 2
    assert landscape.heat_figure(Surface([0], [0], {"loss": [[np.nan]]})).axes[0].patches


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_grids_without_area_are_cells(shape):
    a, b = (np.arange(k, dtype=float) for k in shape)
    surface = Surface(a, b, {"loss": 1 + np.add.outer(a, b)})
    landscape.heat_figure(surface)
    for view in (landscape.contour_figure, landscape.relief_figure):
        with pytest.raises(hs.InputError, match="has no area"):
            view(surface)


def test_a_trajectory_lies_on_its_surface():
    track = hs.trajectory(spiral())
    axes = landscape.contour_figure(bowl(), path=track).axes[0]
    line = axes.get_lines()[-1].get_xydata()
    np.testing.assert_array_equal(line, track.coordinates)
    assert axes.get_xlim()[0] <= track.coordinates[:, 0].min()
    assert f"{track.explained_variance[0]:.0%}" in axes.get_xlabel()
    assert len(landscape.trajectory_figure(track).axes) == 3


def test_curves_show_both_sets_and_what_is_not_finite():
    t = np.linspace(0, 1, 5)
    values = {"loss": [1e-3, 1, np.inf, 1, 1e-2], "test_loss": 1 + t, "accuracy": t}
    curve = Curve(t, 2 * t, values, {"path": "linear"})
    figure = landscape.curve_figure(curve)
    top, bottom = figure.axes
    assert top.get_yscale() == "log"
    assert bottom.get_xlabel() == "alpha"
    labels = [text.get_text() for text in top.get_legend().get_texts()]
    assert labels == ["loss", "test_loss"]
    assert np.isnan(top.get_lines()[0].get_ydata()[2])
    figure = landscape.curve_figure({"a": curve, "b": curve}, by_distance=True, log=False)
    assert figure.axes[0].get_yscale() == "linear"
    assert figure.axes[0].get_lines()[0].get_xdata()[-1] == 2.0
    with pytest.raises(hs.InputError, match="no 'ratio' was evaluated; there is: accuracy, loss"):
        landscape.curve_figure(curve, "ratio")


# -- VTK -----------------------------------------------------------------------------------------


def numbers(element):
    content = base64.b64decode(element.text)
    assert int.from_bytes(content[:8], "little") == len(content) - 8
    return np.frombuffer(content[8:], "<f8")


@pytest.mark.parametrize("positions", [True, False])
def test_a_vtk_file_holds_points_and_values_in_vtks_order(positions, tmp_path):
    surface = bowl(4, 3, broken=True, positions=positions)
    path = tmp_path / "surface.vts"
    surface_export.save_vtk(surface, path)
    grid = ElementTree.parse(path).getroot().find("StructuredGrid")
    assert grid.get("WholeExtent") == "0 3 0 2 0 0"
    points = numbers(grid.find("Piece/Points/DataArray")).reshape(3, 4, 3)
    loss, accuracy = (numbers(e).reshape(3, 4) for e in grid.findall("Piece/PointData/DataArray"))
    np.testing.assert_array_equal(loss, surface.loss.T)
    assert not accuracy.any()
    expected = (
        surface.positions
        if positions
        else np.stack(np.meshgrid(surface.a, surface.b, indexing="ij"), -1)
    )
    np.testing.assert_array_equal(points[..., :2], expected.swapaxes(0, 1))
    finite = np.isfinite(loss)
    heights = points[..., 2][finite]
    assert heights.min() == 0
    assert np.argmax(heights) == np.argmax(loss[finite])
    assert np.isfinite(points).all()


def test_vtk_itself_reads_the_file(tmp_path):
    vtk = pytest.importorskip("vtk", reason="no VTK here; pip install vtk", exc_type=ImportError)
    surface = bowl(4, 3, broken=True)
    path = tmp_path / "surface.vts"
    surface_export.save_vtk(surface, path)
    reader = vtk.vtkXMLStructuredGridReader()
    reader.SetFileName(str(path))
    reader.Update()
    found = reader.GetOutput().GetPointData().GetArray("loss")
    values = [found.GetValue(i) for i in range(found.GetNumberOfTuples())]
    np.testing.assert_array_equal(values, surface.loss.T.ravel())


def test_a_point_alone_is_seen():
    loss = np.array([1.0, np.nan, 2.0, 3.0])
    (axes,) = landscape.curve_figure(Curve(np.arange(4), np.arange(4), {"loss": loss})).axes
    dots = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[[0.0, 1.0]]]


def test_a_triangle_is_drawn_in_its_own_plane():
    """All of alpha = 0 is one corner: on the unit square it would be a side."""
    ev = evaluator()
    corners = [ev.theta, 2 * ev.theta + 0.1, 3 * ev.theta.roll(1)]
    found = hs.barycentric(ev, corners, 5, 4)
    values = {name: array.copy() for name, array in found.values.items()}
    values["loss"][2, 1] = np.inf
    for surface in (found, dataclasses.replace(found, values=values)):
        axes = landscape.contour_figure(surface).axes[0]
        (filled,) = (c for c in axes.collections if c.get_facecolor().size)
        drawn = np.concatenate([path.vertices for path in filled.get_paths()])
        assert np.abs(drawn).max() <= np.abs(found.positions).max() * (1 + 1e-12)
        named = {text.get_text(): text.xy for text in axes.texts if "theta" in text.get_text()}
        lengths = [np.linalg.norm(np.subtract(named[f"theta{i}"], named["theta0"])) for i in (1, 2)]
        expected = [(corner - corners[0]).norm().item() for corner in corners[1:]]
        assert lengths == pytest.approx(expected)
        marked = [line for line in axes.lines if line.get_marker() == "x"]
        assert len(marked) == surface.num_invalid
    assert marked[0].get_xydata()[0] == pytest.approx(found.positions[2, 1])
    axes = landscape.heat_figure(found).axes[0]
    (cells,) = (c for c in axes.collections if c.get_array() is not None)
    borders = cells.get_coordinates()
    np.testing.assert_allclose(borders[0], np.broadcast_to(named["theta0"], (5, 2)), atol=1e-12)
    ends = [named["theta2"], named["theta1"]]
    np.testing.assert_allclose(borders[-1, [0, -1]], ends, atol=1e-12)


# -- the page ------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_from_outside(tmp_path):
    pytest.importorskip("plotly")
    page = tmp_path / "surface.html"
    surface_export.save_page(bowl(), page)
    text = page.read_text()
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", text[:20_000] + text[-20_000:])


def test_exports_refuse_what_they_cannot_write(tmp_path, monkeypatch):
    with pytest.raises(hs.InputError, match=r"ends in \.vts"):
        surface_export.save_vtk(bowl(), tmp_path / "x.vtk")
    with pytest.raises(hs.InputError, match="does not exist"):
        surface_export.save_vtk(bowl(), tmp_path / "no" / "x.vts")
    line = Surface([0.0, 1.0], [0.0], {"loss": [[1.0], [2.0]]})
    surface_export.save_vtk(line, tmp_path / "line.vts")
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(hs.InputError, match="pip install"):
        surface_export.save_page(bowl(), tmp_path / "x.html")
