"""Pictures of what a tracker recorded."""

import numpy as np
import pytest

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
    assert labels == ["threshold", "largest"]  # what the optimizer sees is the Hessian's
    assert [panel.get_ylabel() for panel in others] == [
        "loss",
        "critical sharpness",
        "distance in parameter space",
    ]
    seen = track_views.track_figure(some_track(preconditioned=9.0), view="eigenvalues").axes[0]
    assert "largest, preconditioned" in [t.get_text() for t in seen.get_legend().get_texts()]


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
    for view in track_views.VIEWS:
        assert main(["plot", str(path), "--view", view, "--overwrite"]) == 0
    assert main(["plot", str(path), "--view", "relief", "--overwrite"]) == 2
    assert "--view relief of a track: expected eigenvalues, loss" in capsys.readouterr().err
    assert main(["plot", str(path), "--value", "loss", "--overwrite"]) == 2
    hs.save(path, Track.empty({"run": "x"}), overwrite=True)
    with pytest.raises(hs.InputError, match="no records yet"):
        track_views.track_figure(Track.empty({"run": "x"}))
