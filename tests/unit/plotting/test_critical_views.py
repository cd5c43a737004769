"""Pictures of critical points: which points are where, and what is told apart how."""

import numpy as np
import pytest

import hessian_spectrum as hs
from hessian_spectrum.landscape.results.critical_points import KINDS, NUMBERS
from hessian_spectrum.plotting.critical_views import MARKERS, critical_figure

LOSS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
INDEX = [0, 1, 2, 2, 3, np.nan]
OF_KIND = ["minimum", "saddle", "saddle", "saddle", "maximum", "not critical"]


def points(spectra=True, **about):
    numbers = {name: np.zeros(6) for name in NUMBERS}
    numbers |= {"loss": np.array(LOSS), "negative": np.array(INDEX)}
    numbers |= {"negative_most": np.array(INDEX) + [0, 0, 1, 0, 0, 0]}
    numbers["outcome"] = np.array([0, 0, 0, 1, 0, 1.0])
    rows = np.array([[-1.0] * k + [1.0] * (3 - k) for k in (0, 1, 2, 2, 3, 1)])
    kinds = [KINDS.index(kind) for kind in OF_KIND]
    about = {"n": 3, "outcomes": ["found", "steps"], **about}
    return hs.CriticalPoints(kinds, np.zeros(6), numbers, about, None, rows if spectra else None)


def drawn(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_each_point_is_a_marker_of_its_kind_at_its_index_and_loss():
    (axes,) = critical_figure(points(), "a net", view="index").axes
    lines = drawn(axes)
    places = {label: line.get_xydata().tolist() for label, line in lines.items()}
    assert places["minimum (1)"] == [[0, 0.1]]
    assert np.allclose(places["saddle (2)"], [[1 / 3, 0.2], [2 / 3, 0.3]])
    assert np.allclose(places["saddle, search not converged (1)"], [[2 / 3, 0.4]])
    # Without certified eigenvalues, those below 0 of the stored spectrum.
    assert np.allclose(places["not critical, search not converged (1)"], [[1 / 3, 0.6]])
    assert lines["saddle, search not converged (1)"].get_markerfacecolor() == "none"
    assert len({marker for marker, _ in MARKERS.values()}) == len(MARKERS)  # not by colour alone
    for label, line in lines.items():
        assert line.get_marker() == MARKERS[label.partition(" (")[0].partition(",")[0]][0]
    (spans,) = axes.collections
    (segment,) = spans.get_segments()  # of the one point whose index is not known exactly
    assert np.allclose(segment, [[2 / 3, 0.3], [1, 0.3]])
    assert axes.figure.get_suptitle().startswith("a net: 5 critical points of 6; rank correlation")


def test_spectra_are_shares_of_all_eigenvalues_by_level_of_the_loss():
    (axes,) = critical_figure(points(), view="spectra").axes
    shares = {patch.get_label(): patch.get_data() for patch in axes.patches if patch.get_label()}
    found = {label: data for label, data in shares.items() if label.startswith("loss")}
    assert list(found) == [
        "loss 0.1 to 0.2 (2 points)",
        "loss 0.3 to 0.3 (1 points)",
        "loss 0.4 to 0.4 (1 points)",
        "loss 0.5 to 0.5 (1 points)",
    ]
    negative = [data.values[: len(data.values) // 2].sum() for data in found.values()]
    assert np.allclose(negative, [1 / 6, 2 / 3, 2 / 3, 1])
    assert np.allclose([data.values.sum() for data in found.values()], 1)
    assert len({patch.get_linestyle() for patch in axes.patches if patch.get_fill() is False}) > 1


def test_without_whole_spectra_there_is_the_index_alone():
    assert len(critical_figure(points()).axes) == 2
    assert len(critical_figure(points(spectra=False)).axes) == 1
    with pytest.raises(hs.InputError, match="no whole spectrum is stored"):
        critical_figure(points(spectra=False), view="spectra")
    found = points(spectra=False)
    unknown = dict(found.values) | {"negative": np.full(6, np.nan)}
    with pytest.raises(hs.InputError, match="no index to draw"):
        critical_figure(hs.CriticalPoints(found.kind, found.reason, unknown, found.about))


def test_losses_that_are_zero_to_rounding_leave_room_for_the_others():
    found = points()
    losses = dict(found.values) | {"loss": np.array([1e-24, *LOSS[1:]])}
    found = hs.CriticalPoints(found.kind, found.reason, losses, found.about)
    (axes,) = critical_figure(found).axes
    assert axes.get_yscale() == "symlog"
