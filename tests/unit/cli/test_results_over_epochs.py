"""Questions to files of several results and to trajectories, and their pictures."""

import json

import numpy as np
import pytest
import torch

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.landscape.results import Curve, Surface


def density(scale, n=40):
    matrix = torch.diag(scale * torch.linspace(-0.1, 1, n, dtype=torch.float64))
    return hs.spectral_density(hs.Dense(matrix), 4, 6)


def pairs(scale):
    values = scale * np.array([-0.1, 0.5, 1.0])
    return hs.EigenPairs(values, np.full(3, 1e-3), np.ones(3, bool), num_lower=1)


SCALES = {"c": 1.0, "b": 2.0, "a": 4.0}  # by label
EPOCHS = {"c": 1.0, "b": 5.0, "a": 20.0}


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = {}
    for label, scale in SCALES.items():
        results[f"density/{label}"] = density(scale)
        results[f"eigenpairs/{label}"] = pairs(scale)
        results[f"values/{label}"] = {"epoch": EPOCHS[label]}
    hs.save("all.h5", **results)
    hs.save("bare.h5", **{key: found for key, found in results.items() if "values" not in key})
    track = hs.trajectory(torch.eye(4, dtype=torch.float64), steps=[1, 2, 5, 10])
    values = {"loss": np.array([3.0, 1.0, np.nan, 2.0]), "largest": np.array([5.0, 7.0, 6.0, 4.0])}
    values["largest_residual"] = np.full(4, 0.1)
    hs.save("track.h5", track.with_values(values, {"axis": "epoch"}))
    return tmp_path


def asked(capsys, *words):
    assert main(["query", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, words, reason):
    assert main(words) == 2
    assert reason in capsys.readouterr().err


def test_a_question_is_answered_for_each_label_by_epoch(inside, capsys):
    found = asked(capsys, "all.h5", "trace")
    assert [(row["epoch"], row["label"]) for row in found] == [(1, "c"), (5, "b"), (20, "a")]
    with hs.open("all.h5") as run:
        for row in found:
            measure = run[row["result"]]
            assert row["value"] == measure.trace
            assert row["interval"] == measure.interval("trace").tolist()
    assert main(["query", "all.h5", "trace"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["epoch", "label", "trace()", "95", "%", "interval"]
    assert [line.split()[:2] for line in lines[1:]] == [["1", "c"], ["5", "b"], ["20", "a"]]
    alone = asked(capsys, "all.h5", "trace", "--result", "density/b")
    assert alone["value"] == found[1]["value"]


def test_eigenpairs_of_many_checkpoints(inside, capsys):
    found = asked(capsys, "all.h5", "eigenvalue", "2")
    assert [row["value"] for row in found] == [0.5, 1.0, 2.0]
    assert [row["value"] for row in asked(capsys, "all.h5", "eigenvalues")] == [
        (scale * np.array([-0.1, 0.5, 1.0])).tolist() for scale in SCALES.values()
    ]
    assert main(["query", "all.h5", "eigenvalues"]) == 0
    assert capsys.readouterr().out.splitlines()[3].split("  ")[-1] == "4, 2, -0.4"
    # Each is refined by the density of its own label.
    rows = asked(capsys, "all.h5", "log_determinant", "1", "--result", "eigenpairs")
    with hs.open("all.h5") as run:
        for row in rows:
            refined = hs.outliers.refined(run[f"density/{row['label']}"], run[row["result"]])
            assert row["value"] == pytest.approx(refined.log_determinant(1.0))


def test_epochs_are_not_guessed_from_labels(inside, capsys):
    found = asked(capsys, "bare.h5", "trace")
    assert [(row["index"], row["label"]) for row in found] == [(0, "a"), (1, "b"), (2, "c")]
    main(["query", "bare.h5", "trace"])
    assert "do not say of which epochs they are" in capsys.readouterr().err
    main(["query", "all.h5", "trace"])
    assert not capsys.readouterr().err


def test_questions_to_a_trajectory(inside, capsys):
    found = asked(capsys, "track.h5", "minimum")
    assert (found["value"], found["place"], found["axis"]) == (1.0, [2.0], "epoch")
    found = asked(capsys, "track.h5", "maximum", "--value", "largest")
    assert (found["value"], found["place"]) == (7.0, [2.0])
    assert asked(capsys, "track.h5", "at", "10")["value"] == 2.0
    assert asked(capsys, "track.h5", "first_below", "2")["place"] == [2.0]
    distance = asked(capsys, "track.h5", "at", "1", "--value", "distance_to_end")["value"]
    assert distance == pytest.approx(2**0.5)
    assert main(["query", "track.h5", "maximum", "--value", "largest"]) == 0
    assert capsys.readouterr().out == "maximum of the largest = 7 at epoch 2\n"
    for words, reason in (
        (["at", "4"], "at 4: no checkpoint has that epoch; the nearest are 2 and 5"),
        (["first_below", "0.5"], "the loss is above that at all checkpoints"),
        (["barrier"], "no query 'barrier' of a trajectory"),
        (["minimum", "--value", "ratio"], "no 'ratio' was evaluated"),
    ):
        fails(capsys, ["query", "track.h5", *words], reason)


def test_without_a_question_those_of_the_file_are_listed(inside, capsys):
    assert main(["query", "all.h5"]) == 0
    listed = capsys.readouterr().out
    assert "density/a and 2 more:" in listed
    assert "  count A B " in listed
    assert "  eigenvalue K " in listed
    assert "first_below" not in listed
    assert main(["query", "track.h5"]) == 0
    listed = capsys.readouterr().out
    assert "first_below LEVEL" in listed
    assert "distance_from_start" in listed
    assert "count" not in listed


def test_one_dash_is_answered_by_two(inside, capsys):
    fails(capsys, ["eigenpairs", "-k", "3"], "-k: options have two dashes; expected --k")
    assert main(["query", "all.h5", "mass", "-inf", "-0.05", "--result", "density/a"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["all.h5"],
        ["all.h5", "--view", "ridge", "--sigma2", "1e-3"],
        ["all.h5", "--result", "eigenpairs"],
        ["all.h5", "--result", "density/a", "--view", "log"],
        ["bare.h5"],
        ["track.h5"],
        ["track.h5", "--value", "largest"],
    ],
)
def test_pictures(words, inside):
    assert main(["plot", *words, "--out", "x.png"]) == 0
    assert (inside / "x.png").stat().st_size > 5000


def test_pictures_beside_each_other(inside, capsys):
    t = np.linspace(0, 1, 3)
    plane = Surface(t, t, {"loss": 1 + np.add.outer(t, t)})
    for name, result in (("d", density(1.0)), ("e", density(2.0)), ("s", plane)):
        hs.save(f"{name}.h5", result)
    for name in ("l", "m"):
        hs.save(f"{name}.h5", Curve(t, t, {"loss": t, "accuracy": t}, {}))
    assert main(["plot", "d.h5", "--beside", "e.h5", "--sigma2", "1e-3"]) == 0
    assert main(["plot", "l.h5", "--beside", "m.h5", "--value", "accuracy"]) == 0
    for words, reason in (
        (["d.h5", "--beside", "s.h5"], "s.h5 holds no 'density'"),
        (["d.h5", "--beside", "e.h5", "--view", "log"], "--view log with --beside: expected"),
        (["d.h5", "--beside", "e.h5", "--value", "loss"], "--value is for surfaces and curves"),
        (["track.h5", "--beside", "track.h5"], "names a file twice"),
    ):
        fails(capsys, ["plot", *words, "--out", "y.png"], reason)


def test_views_that_several_results_do_not_have(inside, capsys):
    for words, reason in (
        (["--view", "log"], "--view log of 3 labelled results: expected heat or ridge"),
        (["--value", "loss"], "--value is for one curve"),
        (["--result", "values"], "choose one by --result: values/c, values/b, values/a"),
        (["--result", "eigenpairs", "--sigma2", "1"], "--sigma2"),
    ):
        fails(capsys, ["plot", "all.h5", *words, "--out", "y.png"], reason)
