"""Pictures of what a tracker recorded."""

import json

import numpy as np
import pytest
import torch

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.landscape.results import Track
from hessian_spectrum.plotting import track_views


def some_track(records=5, **more):
    track = Track.empty({"run": "x", "threshold": {"SGD": "known"}})
    for step in range(1, records + 1):
        values = {"loss": 1 / step, "lambda_max": float(step), "lambda_max_error": 0.1, "lr": 0.5}
        values |= {"distance": step**0.5, "step_length": 0.1, "threshold": 4.0, "critical": 1.0}
        values |= {"preconditioned": float(step), **more}
        found = np.array([float(step), 0.5])[: 1 + step % 2]
        track = track.with_record(step, values, found, 0.1 * found, np.empty(0), np.empty(0))
    return track


def lines(axes):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.get_lines()}


def test_sharpness_is_drawn_with_its_threshold():
    axes, *others = track_views.track_figure(some_track()).axes
    assert np.array_equal(lines(axes)["threshold"], np.full(5, 4.0))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["largest", "threshold"]  # what the optimizer sees is the Hessian's
    assert [panel.get_ylabel() for panel in others] == [
        "loss",
        "critical sharpness",
        "distance in parameter space",
    ]
    seen = track_views.track_figure(some_track(preconditioned=9.0), view="eigenvalues").axes[0]
    assert "largest, preconditioned" in [t.get_text() for t in seen.get_legend().get_texts()]


def test_the_error_is_a_band_within_which_an_eigenvalue_lies():
    axes = track_views.track_figure(some_track(), view="eigenvalues").axes[0]
    steps = np.arange(1.0, 6.0)
    assert np.array_equal(lines(axes)["largest"], steps)
    bounds = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    for step in steps:
        at = bounds[bounds[:, 0] == step, 1]
        assert (at.min(), at.max()) == pytest.approx((step - 0.1, step + 0.1))


def test_the_start_which_is_at_distance_0_has_no_place_on_a_log_axis():
    track = some_track()
    track.values["distance"][0] = 0.0
    axes = track_views.track_figure(track, view="distance").axes[0]
    assert axes.get_yscale() == "log"
    assert np.isnan(lines(axes)["from the start"]).tolist() == [True, *4 * [False]]
    track.values["step_length"][1] = 0.0
    axes = track_views.track_figure(track, view="distance").axes[0]
    assert axes.get_yscale() == "linear"
    assert lines(axes)["from the start"][0] == 0.0


def with_ten(tenths, **more):
    """Records whose largest eigenvalue is 20, with these tenth ones; NaN: nine were found."""
    track = Track.empty({"run": "x", "threshold": {}})
    for step, tenth in enumerate(tenths, 1):
        known = [20.0, 9, 8, 7, 6, 5.5, 5.4, 5.3, 5.2, tenth]
        values = np.array(known if np.isfinite(tenth) else known[:9])
        recorded = {"loss": 1.0, "lambda_max": 20.0, "preconditioned": 20.0, "threshold": 16.0}
        recorded |= more
        none = np.empty(0)
        track = track.with_record(step, recorded, values, 0.01 * values, none, none)
    return track


def test_zeta_is_the_first_over_the_tenth_eigenvalue_within_the_residuals(tmp_path, capsys):
    track = with_ten([5.0, np.nan, 4.0, -1.0])
    assert [len(pairs) for pairs in track.pairs] == [10, 9, 10, 10]
    assert track.pairs[1].values[-1] == 20.0
    axes = track_views.track_figure(track, view="zeta").axes[0]
    (line,) = axes.get_lines()
    assert line.get_ydata() == pytest.approx([4.0, np.nan, 5.0, np.nan], nan_ok=True)
    bounds = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    first = bounds[bounds[:, 0] == 1, 1]
    assert first.max() == pytest.approx(20.2 / 4.95) and first.min() == pytest.approx(19.8 / 5.05)
    with pytest.raises(hs.InputError, match="--largest 10"):
        track_views.track_figure(some_track(), view="zeta")
    path = tmp_path / "track.h5"
    hs.save(path, track)
    assert main(["plot", str(path), "--view", "zeta"]) == 0


def test_densities_of_a_tracker_are_drawn_by_its_steps(tmp_path, monkeypatch):
    import hessian_spectrum.plotting.several as several

    measures = {}
    for step in (100, 20, 3000):
        matrix = np.diag(np.arange(1.0, 7.0) + step)
        measures[f"density/step-{step:06d}"] = hs.spectral_density(
            hs.Dense(torch.from_numpy(matrix)), num_probes=2, num_steps=3
        )
    path = tmp_path / "track.h5"
    hs.save(path, some_track(), **measures)
    drawn, heat = [], several.heat_figure

    def kept(results, places, axis, **options):
        drawn.append((list(results), places, axis))
        return heat(results, places, axis, **options)

    monkeypatch.setitem(several.VIEWS_OF["density"], "density", kept)
    assert main(["plot", str(path), "--view", "density"]) == 0
    assert drawn == [(["step-000020", "step-000100", "step-003000"], (20, 100, 3000), "step")]
    assert main(["plot", str(path), "--view", "ridge", "--overwrite"]) == 0


def test_a_tracker_s_file_is_asked_by_step(tmp_path, capsys):
    path = str(tmp_path / "track.h5")
    hs.save(path, with_ten([5.0, np.nan, 4.0, 2.0]))

    def asked(*words):
        assert main(["query", path, *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert asked("at", "3", "--value", "zeta")["value"] == 5.0
    found = asked("maximum", "--value", "zeta")
    assert (found["value"], found["place"], found["axis"]) == (10.0, [4.0], "step")
    assert asked("first_above", "5", "--value", "zeta")["place"] == [3.0]
    assert asked("first_below", "4.5", "--value", "lambda_10")["place"] == [3.0]
    assert asked("mean", "2", "4", "--value", "zeta") == {
        **{"query": "mean", "arguments": [2, 4], "of": "zeta", "value": 7.5, "records": 2},
        "deviation": pytest.approx(12.5**0.5),
    }
    assert asked("mean", "1", "3", "--value", "zeta")["value"] == 4.5
    assert asked("mean", "--value", "over_threshold")["value"] == 1.25
    assert main(["query", path, "mean", "--value", "zeta"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("mean of the zeta = 6.3333333 over 3 records, deviation 3.21")
    for words, said in (
        (["at", "9"], "at 9: no record has that step; the nearest are 3 and 4"),
        (["first_above", "30"], "the loss is below that at all records"),
        (["mean", "7", "9"], "no record from 7 to 9 has the loss"),
        (["at", "1", "--value", "accuracy"], "no 'accuracy' was evaluated"),
        (["barrier"], "no query 'barrier' of a track"),
    ):
        assert main(["query", path, *words]) == 2
        assert said in capsys.readouterr().err


def test_without_a_known_threshold_the_picture_says_why():
    track = some_track(threshold=np.nan)
    track.about["threshold"] = {"Adadelta": "none is known for Adadelta"}
    axes = track_views.track_figure(track, view="eigenvalues").axes[0]
    assert "threshold" not in lines(axes)
    assert axes.texts[0].get_text() == "no threshold: none is known for Adadelta"


def test_plot_on_the_command_line(tmp_path, capsys):
    path, picture = tmp_path / "track.h5", tmp_path / "track.png"
    hs.save(path, some_track())
    assert main(["plot", str(path)]) == 0 and picture.stat().st_size > 10_000
    for view in track_views.PANELS:
        assert main(["plot", str(path), "--view", view, "--overwrite"]) == 0
    assert main(["plot", str(path), "--view", "relief", "--overwrite"]) == 2
    assert "--view relief of a track: expected eigenvalues, loss" in capsys.readouterr().err
    assert main(["plot", str(path), "--value", "loss", "--overwrite"]) == 2
    hs.save(path, Track.empty({"run": "x"}), overwrite=True)
    with pytest.raises(hs.InputError, match="no records yet"):
        track_views.track_figure(Track.empty({"run": "x"}))
