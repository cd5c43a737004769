"""Results of surfaces and curves in run files, and without torch."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
import torch
from hand import bowl, tensor
from hostile_files import unseal
from image_networks import evaluator
from landscape_results import results_of_all_analyses

import hessian_spectrum as hs
from hessian_spectrum.cli import main as cli
from hessian_spectrum.commands import report
from hessian_spectrum.landscape import directions
from hessian_spectrum.landscape.results import Curve, Surface
from hessian_spectrum.storage import hdf5_schema


@pytest.fixture(scope="module")
def results():
    return results_of_all_analyses()


def equal(found, expected):
    for field in dataclasses.fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "values":
            assert list(a) == sorted(b)
            assert all(np.array_equal(a[name], b[name], equal_nan=True) for name in b)
        elif field.name == "about":
            assert a == b
        else:
            np.testing.assert_array_equal(a, b, err_msg=field.name)


def test_every_kind_is_read_as_it_was_written(results, tmp_path):
    others = {"density", "eigenpairs", "alignment", "noise", "values", "track"}
    assert set(results) == set(hdf5_schema.KINDS) - others
    path = tmp_path / "run.h5"
    hs.save(path, **results, **{"surface/other": results["surface"]})
    with hs.open(path) as run:
        assert set(run) == {*results, "surface/other"}
        for kind, result in results.items():
            assert type(run[kind]) is type(result)
            equal(run[kind], result)
        hs.save(tmp_path / "copy.h5", **run)


def test_arrays_say_what_they_are(results, tmp_path):
    path = tmp_path / "run.h5"
    hs.save(path, **results)
    with h5py.File(path) as file:
        loss = file["surface/main/values/loss"]
        assert [dimension.label for dimension in loss.dims] == ["a", "b"]
        assert np.array_equal(loss.dims[1][0], file["surface/main/b"])
        assert file["trajectory/main/beta"].attrs["units"] == "theta"
        assert file["trajectory/main/beta"].dims[0].label == "iterate"


def test_damaged_results_are_named(results, tmp_path):
    path = tmp_path / "run.h5"
    hs.save(path, results["curve"])
    with h5py.File(path, "a") as file:
        del file["curve/main/distance"]
    unseal(path)
    with pytest.raises(hs.InputError, match="/curve/main/distance is missing"):
        hs.open(path)
    hs.save(path, results["surface"], overwrite=True)
    with h5py.File(path, "a") as file:
        del file["surface/main/a"]
        file["surface/main/a"] = np.zeros(7)
    unseal(path)
    with pytest.raises(hs.InputError, match="is damaged: /surface/main"):
        hs.open(path)


def test_directions_in_a_file_are_read_or_made_again(tmp_path):
    ev = evaluator()
    for found in (directions.random(ev, seed=3), directions.differences(ev, [2 * ev.theta])):
        path = tmp_path / f"{len(found)}.h5"
        kept = found.stored()
        assert len(kept.vectors) == (0 if found.recipes[0]["kind"] == "random" else 1)
        hs.save(path, kept)
        with hs.open(path) as run:
            again = directions.from_stored(ev, run["directions"])
        assert torch.equal(again.vectors, found.vectors)
        assert torch.equal(again.origin, found.origin)
        assert again.recipes == found.recipes


# -- queries by name -----------------------------------------------------------------------------


def asked(capsys, *words):
    """The answer, and the sentence."""
    assert cli.main(["query", *words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert cli.main(["query", *words]) == 0
    return answer, capsys.readouterr().out.strip()


def test_curves_and_surfaces_are_asked_by_name(tmp_path, capsys):
    t = np.linspace(-1, 2, 13)
    loss = 1 + t - 4 * t * (t - 1)
    curve = Curve(t, 2 * (t + 1), {"loss": loss, "accuracy": 1 - t**2}, {"ends": [0.0, 1.0]})
    a, b = np.array([0.0, 1.0]), np.array([0.0, 2.0, 4.0])
    surface = Surface(a, b, {"loss": np.array([[3.0, 1.0, np.nan], [5.0, 2.0, 4.0]])})
    line, plane = str(tmp_path / "line.h5"), str(tmp_path / "plane.h5")
    hs.save(line, curve)
    hs.save(plane, surface)

    answer, text = asked(capsys, line, "barrier")
    assert answer["value"] == pytest.approx(curve.barrier(), rel=1e-15)
    assert answer["ends"] == [0.0, 1.0]
    assert text == "barrier of the loss = 1, between t = 0 and 1"
    answer, text = asked(capsys, line, "basin", "1.5", "2")
    found = curve.basin(1.5, near=2)
    assert (answer["value"], answer["left"], answer["bounded"]) == (found.width, found.left, False)
    assert text.endswith("; it goes on beyond the points")
    assert asked(capsys, line, "minimum", "--value", "accuracy")[0]["value"] == -3.0
    assert asked(capsys, line, "at", "0.25")[0]["value"] == pytest.approx(2.0)
    assert asked(capsys, plane, "minimum")[1] == "minimum of the loss = 1 at 0, 2"
    assert asked(capsys, plane, "at", "0.5", "1")[0]["value"] == 2.75
    assert asked(capsys, plane, "share_below", "3")[0]["value"] == 0.5
    for words, said in (
        ([plane, "barrier"], "no query 'barrier' of a surface"),
        ([line, "share_below", "1"], "no query 'share_below' of a curve"),
        ([line, "at"], "at takes 1 numbers (T), got 0"),
        ([line, "at", "3"], "beyond the points"),
        ([plane, "at", "0", "4"], "beside one that is not finite"),
        ([line, "minimum", "--value", "test_loss"], "no 'test_loss' was evaluated"),
        ([line, "trace"], "holds no 'density'"),
    ):
        assert cli.main(["query", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_summary_names_the_best_of_each_value():
    values = {"loss": [1.0, 2.0, 0.5], "accuracy": [0.2, 0.9, 0.5], "converged": [1.0, 0.0, 1.0]}
    t = np.array([0.0, 0.5, 1.0])
    curve = Curve(t, t, {name: np.array(array) for name, array in values.items()})
    lines = {
        line[:24].strip(): line[24:] for line in report.values(curve, {"loss": 1.0}).split("\n")
    }
    assert lines["loss"].endswith("(smallest at t = 1)")
    assert lines["accuracy"].endswith("(largest at t = 0.5)")
    assert lines["not converged"].strip() == "1 points"
    assert "barrier of the loss" in lines
    zoom = Curve(t, t, {"loss": 1 + t}, {"ends": [0.0, 2.0]})
    assert "barrier" not in report.values(zoom, {"loss": 1.0})


def test_critical_points_are_asked_counted_and_told_of(tmp_path, capsys):
    points = [hs.classify(bowl(torch.diag(tensor(d))), tensor(at)) for d, at in MADE]
    path = str(tmp_path / "critical.h5")
    found = hs.CriticalPoints.of(points)
    hs.save(path, found)
    counts = {"minima": 1, "maxima": 1, "saddles": 1, "undecided": 0, "not_critical": 1}
    for query, count in counts.items():
        answer, text = asked(capsys, path, query)
        assert (answer["value"], answer["points"]) == (count, 4)
        assert text == f"{query.replace('_', ' ')}: {count} of 4 points"
    answer, text = asked(capsys, path, "point", "1", "--value", "smallest")
    assert (answer["value"], answer["kind"]) == (-2.0, "saddle")
    assert text == f"point 1 of the smallest = -2. {points[1]}"
    answer, text = asked(capsys, path, "minimum", "--value", "smallest")
    assert (answer["value"], answer["place"]) == (-3.0, [2.0])
    assert text == "minimum of the smallest = -3 at point 2"
    several = hs.CriticalPoints.of(
        [dataclasses.replace(points[i % 3], loss=i * i % 5) for i in range(9)], n=2
    )
    hs.save(tmp_path / "several.h5", several)
    answer, text = asked(capsys, str(tmp_path / "several.h5"), "rank_correlation")
    told = several.rank_correlation()
    assert (answer["value"], answer["low"], answer["high"]) == (told.value, *told.fisher)
    assert answer["points"] == 9 and text.endswith(f"Of index and loss, Spearman's: {told}.")
    assert cli.main(["plot", str(tmp_path / "several.h5"), "--view", "index"]) == 0
    assert (tmp_path / "several.png").stat().st_size > 10_000
    capsys.readouterr()
    for words, message in [
        (["rank_correlation"], "at least 4"),
        (["rank_correlation", "--value", "smallest"], "points are counted"),
        (["point", "4"], "expected a number from 0 to 3"),
        (["point", "0.5"], "expected a number from 0 to 3"),
        (["minima", "--value", "smallest"], "points are counted"),
        (["basin", "1"], "no query 'basin' of critical points"),
    ]:
        assert cli.main(["query", path, *words]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["info", path]) == 0
    line = "critical: 4 point(s): 1 not critical, 1 minimum, 1 maximum, 1 saddle"
    assert line in capsys.readouterr().out
    assert report.critical(hs.CriticalPoints.of(points[:1])) == str(points[0])
    told = report.critical(found).splitlines()
    assert "  minimum                1   (loss 0 to 0)" in told
    assert told[-1] == f"   3  {points[3]}"


MADE = [([1.0, 2.0], [0.0, 0.0]), ([1.0, -2.0], [0.0, 0.0])]  # diagonals, and where
MADE += [([-1.0, -3.0], [0.0, 0.0]), ([1.0, 2.0], [1.0, 0.0])]
