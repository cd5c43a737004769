"""The command interpolate --pairs: all pairs of a folder's networks, on ranks and resumed."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
from launching import TORCHRUN, launch
from stopping import StopOnceThere

import hessian_spectrum as hs
from hessian_spectrum._core.errors import Warned
from hessian_spectrum.cli import main as cli
from hessian_spectrum.commands import runner
from hessian_spectrum.commands.network_files import networks_in
from hessian_spectrum.commands.pairs import PairsRun
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.config import InterpolateConfig
from hessian_spectrum.landscape import point_planner
from hessian_spectrum.zoo import problem_loader

OPTIONS = {"model": "mlp-64-6-10", "dataset": "digits", "limit": 60, "dtype": "float64"}
MODEL = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
NAMES = ["adam", "rk2-heun", "sgd"]  # in the order of their folders
PAIRS = list(itertools.combinations(NAMES, 2))
POINTS = 4


@pytest.fixture(scope="module", autouse=True)
def one_plan():
    """Points one after another, in every run of this process: bits depend on the plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point_planner, "WORTH", 1e12)
        yield


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid") / "nets"
    grid = ["--grid", "optimizer=sgd:0.2,adam:0.02,rk2-heun:0.2", "--epochs", "4", "--every", "2"]
    assert cli.main(["train", *MODEL, *grid, "--keep-steps", "1:1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def alone(nets, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "pairs.h5"
    assert cli.main(words(nets, out)) == 0
    return out


def words(nets, out, *more):
    given = ["--pairs", str(nets), "--num-points", str(POINTS), *more]
    return ["interpolate", *MODEL, *given, "--out", str(out)]


def stored(out):
    with hs.open(out) as run:
        assert run.finished
        return hs.Pairs.of(run)


def evaluator(checkpoint):
    """The problem of the command, and theta in a file."""
    return problem_loader.load(
        InterpolateConfig(**OPTIONS, checkpoint=checkpoint, device="cpu")
    ).evaluator(hs.World())


def theta_in(checkpoint):
    return evaluator(checkpoint).theta


def equal(found, expected, rtol=0.0):
    ours, theirs = found.by_key(), expected.by_key()
    assert list(ours) == list(theirs)
    for key, result in theirs.items():
        arrays = getattr(result, "values", None) or dataclasses.asdict(result)
        others = getattr(ours[key], "values", None) or dataclasses.asdict(ours[key])
        for name, array in arrays.items():
            if name in ("names", "about"):
                assert np.array_equal(others[name], array)
            else:
                np.testing.assert_allclose(others[name], array, rtol, 1e-14, err_msg=key + name)


def test_each_part_is_what_the_function_of_that_name_gives(nets, alone):
    found = stored(alone)
    assert found.names == NAMES
    assert list(found.lines) == list(found.triangles) == PAIRS
    ev = evaluator(nets / "adam" / "epoch-0004.pt")
    ends = {name: theta_in(nets / name / "epoch-0004.pt") for name in NAMES}
    start = theta_in(nets / "sgd" / "step-000000.pt")
    expected = hs.functional_distances(ev, ends)
    np.testing.assert_allclose(found.functional.distance, expected.distance, atol=1e-14)
    np.testing.assert_array_equal(found.functional.disagreement, expected.disagreement)
    assert expected.disagreement.max() > 0.05
    for a, b in PAIRS:
        line = hs.functional_path(ev, ends[a], ends[b], POINTS)
        loss = hs.interpolate(ev, ends[a], ends[b], POINTS)
        for name, values in {**line.values, **loss.values}.items():
            np.testing.assert_allclose(found.lines[a, b].values[name], values, atol=1e-14)
        np.testing.assert_allclose(found.lines[a, b].distance, loss.distance, rtol=1e-12)
        triangle = hs.barycentric(ev, [start, ends[a], ends[b]], POINTS, POINTS)
        np.testing.assert_allclose(found.triangles[a, b].loss, triangle.loss, rtol=1e-13)
        np.testing.assert_allclose(found.triangles[a, b].positions, triangle.positions, atol=1e-12)
        assert "distance_to_end" not in found.triangles[a, b].values
    for name in NAMES:
        line = hs.interpolate(ev, start, ends[name], POINTS)
        np.testing.assert_allclose(found.from_start[name].loss, line.loss, rtol=1e-13)


def test_pairs_on_ranks(nets, alone, tmp_path):
    launch([*TORCHRUN, "3", "-m", "hessian_spectrum", *words(nets, "run.h5")], tmp_path)
    equal(stored(tmp_path / "run.h5"), stored(alone), 1e-12)


def compute(config, stop=None):
    located = PairsRun.located(config)
    problem = problem_loader.load(located)
    runner.run(PairsRun, located, problem, hs.World(), stop or StopRequest(), quiet=True)


def test_a_resumed_run_is_the_straight_one(nets, alone, tmp_path):
    out = tmp_path / "run.h5"
    given = {**OPTIONS, "pairs": nets, "num_points": POINTS, "out": out, "device": "cpu"}
    config = InterpolateConfig(**given, checkpoint_minutes=0.0)

    def done():
        with hs.open(out) as run:
            assert not run.finished
            return run["values/progress"]["done"]

    with pytest.raises(Interrupted):
        compute(config, StopOnceThere(out, lambda out: done().sum() >= 30))
    assert not done().all()
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(hs.InputError, match=r"cannot resume|points are not those"):
        compute(dataclasses.replace(again, num_points=POINTS + 1))
    compute(again)
    equal(stored(out), stored(alone))


def test_networks_of_different_starts_have_lines_and_no_triangle(nets, tmp_path):
    folder = tmp_path / "nets"
    shutil.copytree(nets, folder)
    shutil.copy(folder / "sgd" / "epoch-0002.pt", folder / "sgd" / "step-000000.pt")
    (folder / "rk2-heun" / "step-000000.pt").unlink()
    assert cli.main(words(folder, tmp_path / "p.h5")) == 0
    found = stored(tmp_path / "p.h5")
    assert list(found.lines) == PAIRS
    assert not found.triangles
    assert list(found.from_start) == ["adam", "sgd"]
    # The start that is named is that of all.
    start = nets / "sgd" / "step-000000.pt"
    assert cli.main(words(folder, tmp_path / "q.h5", "--start", str(start))) == 0
    assert list(stored(tmp_path / "q.h5").triangles) == PAIRS


def test_a_folder_of_checkpoints_is_a_folder_of_networks(nets, tmp_path):
    for name in NAMES[:2]:
        shutil.copy(nets / name / "epoch-0002.pt", tmp_path / f"{name}.pt")
    shutil.copy(nets / "sgd" / "step-000000.pt", tmp_path)
    found = networks_in(tmp_path)
    assert {name: network.end.name for name, network in found.items()} == {
        "adam": "adam.pt",
        "rk2-heun": "rk2-heun.pt",
    }
    assert {network.start for network in found.values()} == {tmp_path / "step-000000.pt"}


def test_an_unfinished_training_is_left_out(nets, tmp_path):
    folder = tmp_path / "nets"
    shutil.copytree(nets, folder)
    shutil.copy(folder / "sgd" / "epoch-0002.pt", folder / "sgd" / "training.pt")
    with pytest.warns(Warned, match="sgd is left out: its training has not ended"):
        assert list(networks_in(folder)) == NAMES[:2]
    shutil.rmtree(folder / "adam")
    with pytest.warns(Warned), pytest.raises(hs.InputError, match="1 networks, rk2-heun"):
        networks_in(folder)


def test_the_last_epoch_is_the_end(nets, tmp_path):
    for epoch in (9999, 10000):
        for name in NAMES[:2]:
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.copy(nets / name / "epoch-0004.pt", tmp_path / name / f"epoch-{epoch:04d}.pt")
            shutil.copy(nets / name / "epoch-0004.pt", tmp_path / name / "swa-10001.pt")
    ends = [network.end.name for network in networks_in(tmp_path).values()]
    assert ends == ["epoch-10000.pt"] * 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--between", "a.pt", "b.pt"], "leave --between out"),
        (["--by-distance"], "leave out --low, --high, --by-distance"),
        (["--curve", "bezier"], "leave out --low, --high, --by-distance"),
        (["--num-points", "1"], "expected 2 or more"),
    ],
)
def test_options_that_pairs_do_not_take(more, said, nets, tmp_path, capsys):
    given = ["interpolate", *MODEL, "--pairs", str(nets), *more, "--out", str(tmp_path / "x.h5")]
    assert cli.main(given) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert cli.main(["interpolate", *MODEL, "--between", "a", "b", "--start", "c"]) == 2
    assert "--start c: is for --pairs" in capsys.readouterr().err


def test_pairs_are_asked_told_and_drawn(alone, tmp_path, capsys):
    found = stored(alone)
    assert cli.main(["query", str(alone), "barrier", "--json"]) == 0
    captured = capsys.readouterr()
    assert "epochs" not in captured.err
    answers = {row["label"]: row["value"] for row in json.loads(captured.out)}
    assert answers["adam--sgd"] == found.lines["adam", "sgd"].barrier()
    key = "surface/adam--sgd"
    assert cli.main(["query", str(alone), "minimum", "--result", key, "--json"]) == 0
    smallest = found.triangles["adam", "sgd"].minimum().value
    assert json.loads(capsys.readouterr().out)["value"] == smallest
    sizes = set()
    for more in ([], ["--view", "lines"], ["--value", "accuracy"], ["--result", key]):
        out = tmp_path / f"{len(sizes)}.png"
        assert cli.main(["plot", str(alone), *more, "--out", str(out)]) == 0
        sizes.add(out.stat().st_size)
    assert len(sizes) == 4
    assert cli.main(["plot", str(alone), "--out", str(tmp_path / "x.html")]) == 2
    assert "expected a picture" in capsys.readouterr().err
