"""Pictures of the loss between iterates."""

import numpy as np
import pytest

import hessian_spectrum as hs
from hessian_spectrum.plotting.barrier_views import MOST_WINDOWS, barriers_figure

T = np.linspace(0, 1, 5)


def barriers(start, **options):
    """Valleys of depth 1 below ends of 2; after step 1 a barrier of height 3."""
    start = np.asarray(start, float)
    ones = np.ones(len(start))
    loss = np.where(start[:, None] == 1, [2, 2, 5, 2, 2], [2, 1.5, 1, 1.5, 2])
    return hs.Barriers(
        T, start, start + 1, ones, ones, 0.5 * ones, 0 * ones, {"loss": loss}, **options
    )


def drawn(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_the_loss_is_one_curve_through_iterates_floors_and_barriers():
    found = barriers([0, 1, 2])
    figure = barriers_figure(found, "a net", view="loss")
    (axes,) = figure.axes
    lines = drawn(axes)
    curve = lines["loss of all data"]
    curve = curve[np.isfinite(curve[:, 1])]
    assert curve[:, 0].min() == 0 and curve[:, 0].max() == 3
    at = {float(x): float(y) for x, y in curve}
    assert (at[0.5], at[1.0], at[1.5]) == (1.0, 2.0, 5.0)
    assert lines["floor"].tolist() == [[0.5, 1.0], [1.0, 2.0], [2.5, 1.0]]
    assert lines["barriers"].tolist() == [[1.5, 5.0]]
    (vertical,) = axes.collections
    assert [segment[0][0] for segment in vertical.get_segments()] == [0, 1, 2, 3]
    assert figure.get_suptitle() == "a net: 1 barriers on 3 segments"


def test_windows_are_columns_and_many_of_them_one_panel_with_gaps():
    apart = barriers([0, 1, 50, 51])
    figure = barriers_figure(apart)
    assert len(figure.axes) == 3 * 2
    first, second = (drawn(axes)["loss of all data"][:, 0] for axes in figure.axes[:2])
    assert (first.max(), second.min(), second.max()) == (2, 50, 52)
    many = barriers(10 * np.arange(MOST_WINDOWS + 1) + 2)
    (axes,) = barriers_figure(many, view="loss").axes
    y = drawn(axes)["loss of all data"][:, 1]
    assert np.isnan(y).sum() == MOST_WINDOWS + 1


def test_heights_and_cosines():
    found = barriers([0, 1, 2])
    heights, cosines = (barriers_figure(found, view=view).axes[0] for view in ("heights", "cosine"))
    lines = drawn(heights)
    assert lines["of the iterates, above the floor"].tolist() == [[0.5, 1], [1.5, 0], [2.5, 1]]
    assert lines["of barriers, above the higher end"].tolist() == [[1.5, 3]]
    assert drawn(cosines)["of an update and the one before"].tolist() == [
        [0, 0.5],
        [1, 0.5],
        [2, 0.5],
    ]
    without = barriers_figure(barriers([0, 2]), view="heights").axes[0]
    labels = [text.get_text() for text in without.get_legend().get_texts()]
    assert labels == ["of the iterates, above the floor"]


@pytest.mark.parametrize("axis", ["step", "index"])
def test_the_axis_is_named(axis):
    figure = barriers_figure(barriers([0, 1], about={"axis": axis}))
    assert figure.axes[-1].get_xlabel() == {"index": "index of the iterate"}.get(axis, axis)
