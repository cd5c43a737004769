"""Runs of many points: whole, interrupted, resumed, on any number of ranks the same table."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_oracles import dense_hessian
from launching import TORCHRUN, launch
from small_networks import data, mlp
from stopping import StopOnceThere
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum.cli import main as cli
from hessian_spectrum.commands import curvature_map as maps
from hessian_spectrum.commands import plane_vectors, runner, surfaces
from hessian_spectrum.commands.points_computation import PointsComputation
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.config import (
    InterpolateConfig,
    MapConfig,
    SurfaceConfig,
    TrackConfig,
)
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.storage.writer_lock import LockLost

COMMANDS = {
    SurfaceConfig: surfaces.SurfaceRun,
    MapConfig: maps.CurvatureMap,
    InterpolateConfig: surfaces.Interpolate,
    TrackConfig: surfaces.Track,
}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run.h5"


def problem(loss_fn=F.cross_entropy, **options):
    torch.manual_seed(0)
    return {"model": mlp(), "loss_fn": loss_fn, "data": data(), "batch_size": 4, **options}


def compute(config, stop=None, arguments=None):
    chosen = Problem(**(arguments or problem()))
    runner.run(COMMANDS[type(config)], config, chosen, hs.World(), stop or StopRequest())
    return stored(config.out)


def stored(out):
    """The finished result's arrays, by name."""
    with hs.open(out) as run:
        assert run.finished
        assert "values/progress" not in run
        return dict(next(run[kind] for kind in ("surface", "curve") if kind in run).values)


def surface(out, **options):
    # 35 points, a chunk of 8: five tasks. Minutes of 0: the file is replaced after each.
    fields = {"x_points": 7, "y_points": 5, "checkpoint_minutes": 0.0}
    return SurfaceConfig(out=out, **{**fields, **options})


def curvature_map(out, **options):
    fields = {"x_points": 3, "y_points": 4, "checkpoint_minutes": 0.0, "hvp": "reverse"}
    return MapConfig(out=out, **{**fields, **options})


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def after_points(out, count):
    """A signal as soon as that many points are in the file."""
    return StopOnceThere(out, lambda out: progress(out)["done"].sum() >= count)


def progress(out):
    with hs.open(out) as run:
        assert not run.finished
        return run["values/progress"]


# -- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "y"), [(7, 5), (1, 1), (3, 1)])
def test_a_surface_is_the_loss_on_its_grid(out, x, y):
    found = compute(surface(out, x_points=x, y_points=y, seed=3))
    ev = hs.Evaluator(**problem())
    along = hs.directions.random(ev, seed=3)
    axes = [np.linspace(-1, 1, k) if k > 1 else np.zeros(1) for k in (x, y)]
    for i, j in np.ndindex(x, y):
        a, b = axes[0][i], axes[1][j]
        theta = along.origin + a * along.vectors[0] + b * along.vectors[1]
        assert found["loss"][i, j] == pytest.approx(ev.loss(theta).item(), rel=1e-12)


def test_a_map_is_both_ends_of_the_dense_hessian(out):
    samples = data()
    found = compute(curvature_map(out))
    ev = hs.Evaluator(**problem())
    along = hs.directions.random(ev)
    model = ev.model
    for i, a in enumerate(np.linspace(-1, 1, 3)):
        for j, b in enumerate(np.linspace(-1, 1, 4)):
            theta = along.origin + a * along.vectors[0] + b * along.vectors[1]
            nn.utils.vector_to_parameters(theta, model.parameters())
            whole = dense_hessian(model, lambda m: F.cross_entropy(m(samples[0]), samples[1]))
            exact = torch.linalg.eigvalsh(whole).numpy()
            scale = np.abs(exact).max()
            for name, value in (("smallest", exact[0]), ("largest", exact[-1])):
                assert abs(found[name][i, j] - value) <= found[f"{name}_residual"][i, j] + 1e-12
                assert abs(found[name][i, j] - value) <= 1e-8 * scale  # measured: 1e-10
                assert found[f"{name}_residual"][i, j] <= 1e-5 * scale
            ratio = abs(exact[0] / exact[-1])
            assert abs(found["ratio"][i, j] - ratio) <= found["ratio_error"][i, j] + 1e-12
    assert found["converged"].all()


def exploding(outputs, y):
    """Not finite where a minibatch's loss is large."""
    loss = F.cross_entropy(outputs, y)
    return loss + torch.where(loss > 1.6, torch.inf, 0.0)


@pytest.mark.parametrize("config", [surface, curvature_map])
def test_points_that_overflow_are_recorded_and_the_run_goes_on(out, config):
    options = {"x_low": -2.0, "x_high": 2.0}
    found = compute(config(out, **options), arguments=problem(exploding))
    sane = compute(config(out, overwrite=True, **options))
    invalid = ~np.isfinite(found["loss"])
    assert 0 < invalid.sum() < invalid.size
    for name in {"loss", "accuracy", "smallest", "largest", "ratio"} & found.keys():
        valid = found[name][~invalid]
        assert np.isfinite(valid).all()
        # A path that a hole interrupts starts from other vectors.
        np.testing.assert_allclose(valid, sane[name][~invalid], rtol=1e-4, atol=1e-6)
    if "largest" in found:
        assert np.isnan(found["largest"][invalid]).all()


# -- interrupted and resumed ---------------------------------------------------------------------


@pytest.mark.parametrize("directions", [("random", "random"), ("gradient", "largest"), ("random",)])
def test_a_resumed_surface_is_the_straight_one(out, directions):
    straight = compute(surface(out.with_name("straight.h5"), directions=directions))
    stops = 0
    while True:
        config = surface(out, directions=directions, resume=stops > 0)
        before = progress(out)["done"].sum() if stops else 0
        try:
            found = compute(config, after_points(out, before + 1))
            break
        except Interrupted as stopped:
            assert stopped.agreed
            stops += 1
            kept = progress(out)
            # Only whole chunks are computed, none twice.
            assert kept["done"].sum() == min(before + 8, straight["loss"].size)
            assert np.isnan(kept["rows"][~kept["done"]]).all()
    assert stops == (straight["loss"].size - 1) // 8
    same(found, straight)
    with hs.open(out) as run:
        assert run.provenance["passes"] >= stops + 1


def test_a_resumed_map_goes_on_with_the_next_point(out, monkeypatch):
    straight = compute(curvature_map(out.with_name("straight.h5")))
    with pytest.raises(Interrupted):
        compute(curvature_map(out), after_points(out, 5))
    done = progress(out)["done"]
    assert done.sum() == 5
    real, visited = maps.maps.along, []

    def along(ev, points, path, **options):
        visited.extend(path)
        return real(ev, points, path, **options)

    monkeypatch.setattr(maps.maps, "along", along)
    found = compute(curvature_map(out, resume=True))
    assert sorted(visited) == np.flatnonzero(~done).tolist()
    for name in ("loss", "smallest", "largest"):
        np.testing.assert_allclose(found[name], straight[name], rtol=1e-7)
        # What was done was not done again.
        np.testing.assert_array_equal(found[name].ravel()[done], straight[name].ravel()[done])


def twice(outputs, y):
    return 2 * F.cross_entropy(outputs, y)


def test_what_another_run_left_is_refused(out):
    with pytest.raises(Interrupted):
        compute(surface(out), after_points(out, 1))
    before = out.read_bytes()
    for message, config, arguments in (
        ("--seed was 0 and is now 1", surface(out, seed=1), None),
        ("--x-points was 7 and is now 8", surface(out, x_points=8), None),
        ("is not what an interrupted map has left", curvature_map(out), None),
        (
            "the loss was .* and is now",
            surface(out),
            problem(lambda o, y: 2 * F.cross_entropy(o, y)),
        ),
    ):
        with pytest.raises(hs.InputError, match=message):
            compute(dataclasses.replace(config, resume=True), arguments=arguments)
        assert out.read_bytes() == before
    compute(surface(out, resume=True))
    with pytest.raises(hs.InputError, match="is finished: there is nothing to resume"):
        compute(surface(out, resume=True))


def test_checkpoints_that_have_changed_are_refused(out, tmp_path):
    names = [tmp_path / f"{i}.pt" for i in range(2)]
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        torch.save(mlp().state_dict(), name)
    config = InterpolateConfig(out=out, between=tuple(names), checkpoint_minutes=0.0)
    with pytest.raises(Interrupted):
        compute(config, after_points(out, 1))
    torch.save(mlp().state_dict(), names[1])
    with pytest.raises(hs.InputError, match="the points are not those of the interrupted run"):
        compute(dataclasses.replace(config, resume=True))


def test_a_failure_leaves_what_was_finished(out, monkeypatch):
    calls = []
    real = surfaces.evaluate

    def failing(*args, **options):
        calls.append(args)
        if len(calls) == 4:  # the first asks for names only
            raise RuntimeError("out of luck")
        return real(*args, **options)

    monkeypatch.setattr(surfaces, "evaluate", failing)
    with pytest.raises(RuntimeError, match="out of luck"):
        compute(surface(out, checkpoint_minutes=60.0))
    assert progress(out)["done"].sum() == 16


def test_a_lost_lock_ends_the_run(out, monkeypatch):
    real = PointsComputation.commit

    def commit(*given, **options):
        real(*given, **options)
        out.with_name("run.h5.lock").unlink()

    monkeypatch.setattr(PointsComputation, "commit", commit)
    with pytest.raises(LockLost):
        compute(surface(out))


# -- the command line, on ranks ------------------------------------------------------------------

MODEL = ["--model", "mlp-64-6-10", "--dataset", "digits", "--limit", "60", "--dtype", "float64"]
SURFACE = ["surface", *MODEL, "--x-points", "9", "--y-points", "4", "--batch-size", "16"]
MAP = [
    "map",
    *MODEL,
    "--x-points",
    "3",
    "--y-points",
    "5",
    "--batch-size",
    "16",
    "--hvp",
    "reverse",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for name, words in (("surface", SURFACE), ("map", MAP)):
        assert cli.main([*words, "--out", str(folder / f"{name}.h5")]) == 0
    return folder


@pytest.mark.parametrize(
    ("ranks", "per_point"), [(3, 1), pytest.param(2, 2, marks=pytest.mark.slow)]
)
def test_surfaces_on_ranks(ranks, per_point, alone, tmp_path):
    words = [*SURFACE, "--ranks-per-point", str(per_point), "--out", "run.h5"]
    launch([*TORCHRUN, str(ranks), "-m", "hessian_spectrum", *words], tmp_path)
    found, expected = stored(tmp_path / "run.h5"), stored(alone / "surface.h5")
    if per_point == 1:
        same(found, expected)  # every bit, whoever computed it
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)
    with hs.open(tmp_path / "run.h5") as run:
        assert (run.plan["groups"], run.plan["ranks_per_point"]) == (ranks // per_point, per_point)


def killed(words, folder, ranks, after):
    """SIGKILL to all, once that many points are in the file."""
    start = [*TORCHRUN, str(ranks)] if ranks > 1 else [sys.executable]
    command = [*start, "-m", "hessian_spectrum", *words]
    with subprocess.Popen(command, cwd=folder, start_new_session=True) as process:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            if (folder / "run.h5").exists() and progress_or_none(folder / "run.h5", after):
                break
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)


def progress_or_none(out, after):
    with hs.open(out) as run:
        return run.finished or run["values/progress"]["done"].sum() >= after


@pytest.mark.slow
def test_a_map_killed_on_three_ranks_and_resumed_on_two_is_the_map(alone, tmp_path):
    words = [*MAP, "--out", "run.h5", "--checkpoint-minutes", "0"]
    killed(words, tmp_path, 3, after=4)
    with hs.open(tmp_path / "run.h5") as run:
        finished = run.finished
    if not finished:
        launch([*TORCHRUN, "2", "-m", "hessian_spectrum", *words, "--resume"], tmp_path)
    found, expected = stored(tmp_path / "run.h5"), stored(alone / "map.h5")
    for name in ("loss", "smallest", "largest", "ratio"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    np.testing.assert_array_equal(found["loss"], expected["loss"])


def test_dry_run_says_what_it_would_cost(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*SURFACE, "--dry-run", "--directions", "gradient", "largest"]) == 0
    assert "36 points of 460 parameters on 60 samples, 1 rank(s): about" in capsys.readouterr().out
    assert cli.main([*MAP, "--dry-run"]) == 0
    assert "15 points of 460 parameters on 60 samples" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Three of a short walk."""
    folder = tmp_path_factory.mktemp("walk")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    names = []
    for i in range(3):
        names.append(str(folder / f"epoch-{i}.pt"))
        state = in_zoo_names(model)
        torch.save(state, names[-1])
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return names


def in_zoo_names(model):
    """The state of the zoo's model, in its names."""
    from hessian_spectrum import zoo

    small = zoo.load_dataset("digits", limit=10)
    own = zoo.model_for(small, "mlp-64-6-10", "tanh", 0)
    return dict(zip(own.state_dict(), model.state_dict().values()))


def test_interpolations_on_the_command_line(checkpoints, tmp_path, capsys):
    out = str(tmp_path / "line.h5")
    words = ["interpolate", *MODEL, "--num-points", "5", "--low", "-0.5", "--high", "1.5"]
    assert cli.main([*words, "--between", *checkpoints[:2], "--test", "--out", out]) == 0
    assert "barrier of the loss" in capsys.readouterr().out
    with hs.open(out) as run:
        curve = run["curve"]
    assert curve.t.tolist() == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert set(curve.values) == {"loss", "accuracy", "test_loss", "test_accuracy"}
    # At the ends of the line stand the checkpoints themselves.
    alone = ["surface", *MODEL, "--x-points", "1", "--x-low", "0", "--directions", "random"]
    for i in range(2):
        path = str(tmp_path / f"{i}.h5")
        assert cli.main([*alone, "--checkpoint", checkpoints[i], "--out", path]) == 0
        with hs.open(path) as run:
            assert run["surface"].loss.item() == curve.loss[2 * i + 1]
    for corners, shape in ((3, (5, 5)), (4, (5, 5))):
        between = [*checkpoints, checkpoints[0]][:corners]
        path = str(tmp_path / f"{corners}-corners.h5")
        assert cli.main([*words, "--between", *between, "--out", path]) == 0
        with hs.open(path) as run:
            assert run["surface"].shape == shape
            assert run["surface"].loss[1, 1] == curve.loss[1]  # (0, 0) is the first of them
    distance = [*words, "--by-distance", "--between", *checkpoints[:2], "--out"]
    assert cli.main([*distance, str(tmp_path / "distance.h5")]) == 0
    with hs.open(tmp_path / "distance.h5") as run:
        assert run["curve"].loss[1] == curve.loss[3]  # at distance 0 is the second


def test_of_many_checkpoints_the_one_that_diverged_is_named(checkpoints, tmp_path, capsys):
    state = torch.load(checkpoints[1], weights_only=True)
    state["1.weight"][0, :3] = torch.nan
    broken = str(tmp_path / "broken.pt")
    torch.save(state, broken)
    among = [checkpoints[0], broken, checkpoints[2]]
    for words in (["interpolate", "--between"], ["track", "--checkpoints"]):
        out = ["--out", str(tmp_path / "x.h5")]
        assert cli.main([words[0], *MODEL, *words[1:], *among, *out]) == 2
        said = capsys.readouterr().err
        assert f"{broken}: the model's parameter 1.weight has 3 entries that are NaN" in said


def test_networks_with_running_statistics_of_their_own_are_warned_of(tmp_path, capsys):
    data = zoo.load_dataset("digits", limit=12)
    for i in range(2):
        torch.save(zoo.model_for(data, "cnn", "tanh", i).state_dict(), tmp_path / f"{i}.pt")
    words = ["interpolate", "--model", "cnn", "--dataset", "digits", "--limit", "12"]
    words += ["--between", str(tmp_path / "0.pt"), str(tmp_path / "1.pt"), "--num-points", "3"]
    for mode in ("eval", "recalibrate"):
        out = str(tmp_path / f"{mode}.h5")
        assert cli.main([*words, "--batch-norm", mode, "--out", out]) == 0
        assert ("--batch-norm recalibrate" in capsys.readouterr().err) == (mode == "eval")


def test_the_picture_of_an_unfinished_surface_says_so(out, tmp_path, capsys):
    with pytest.raises(Interrupted):
        compute(surface(out, seed=3), after_points(out, 8))
    assert cli.main(["plot", str(out), "--out", str(tmp_path / "x.svg")]) == 0
    assert f"{out} is not finished" in capsys.readouterr().err
    assert cli.main([*SURFACE, "--out", str(tmp_path / "whole.h5")]) == 0
    capsys.readouterr()
    assert cli.main(["plot", str(tmp_path / "whole.h5"), "--out", str(tmp_path / "y.svg")]) == 0
    assert "not finished" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--directions", "random"], "--y-points 4: there is one direction"),
        (["--x-low", "1", "--x-high", "1"], "--x-low 1.0 and --x-high 1.0: expected"),
        (["--memory", "4"], "--memory '4': expected a size such as"),
    ],
)
def test_options_without_an_effect_or_a_sense_are_refused(options, said, tmp_path, capsys):
    assert cli.main([*SURFACE, *options, "--out", str(tmp_path / "x.h5")]) == 2
    assert said in capsys.readouterr().err


CURVE = {"curve": "bezier", "num_points": 5, "num_steps": 6, "lr": 0.05, "seed": 2}


def test_a_curve_is_searched_for_on_the_command_line(checkpoints, tmp_path, capsys):
    """The same bends as in Python; the ends are the checkpoints; stopped and resumed the same."""
    between = [Path(name) for name in checkpoints[:2]]
    words = [*MODEL, "--between", *checkpoints[:2], "--out", str(tmp_path / "straight.h5")]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in CURVE.items()]
    assert cli.main(["interpolate", *words, *options]) == 0
    assert "barrier of the loss" in capsys.readouterr().out
    with hs.open(tmp_path / "straight.h5") as run:
        curve, bends = run["curve"], run["values/directions"]["vectors"]
    assert curve.about["path"] == "bezier"
    assert curve.about["num_steps"] == 6

    def loaded():
        data = zoo.load_dataset("digits", limit=60)
        model = zoo.model_for(data, "mlp-64-6-10", "tanh", 0)
        zoo.load_checkpoint(model, between[0])
        return {
            "model": model,
            "loss_fn": nn.CrossEntropyLoss(),
            "data": data.tensors,
            "dtype": torch.float64,
        }

    ev = hs.Evaluator(**loaded())
    ends = plane_vectors.of_checkpoints(ev, between)
    names = ("num_steps", "lr", "seed", "num_points")
    found = hs.connect(ev, *ends, **{name: CURVE[name] for name in names})
    np.testing.assert_allclose(bends[:1], found.bends.bends.numpy(), rtol=1e-12)
    np.testing.assert_allclose(curve.loss, found.curve.loss, rtol=1e-12)

    class After(StopRequest):
        """A signal after so many looks: in the search first, then among the points."""

        looks = 0

        @property
        def name(self):
            self.looks += 1
            return "SIGTERM" if self.looks > 3 else None

        @name.setter
        def name(self, value):
            assert value is None

    config = InterpolateConfig(out=tmp_path / "again.h5", between=tuple(between), **CURVE)
    steps = []
    while True:
        try:
            resumed = dataclasses.replace(config, resume=bool(steps))
            runner.run(surfaces.Interpolate, resumed, Problem(**loaded()), hs.World(), After())
            break
        except Interrupted:
            with hs.open(config.out) as run:
                steps.append(run.plan["how"]["search"]["num_steps"])
    assert steps[0] < 6 and steps == sorted(steps) and len(steps) > 1
    with hs.open(config.out) as run:
        np.testing.assert_allclose(run["curve"].loss, curve.loss, rtol=1e-12)
        np.testing.assert_array_equal(run["values/directions"]["vectors"], bends)
    assert cli.main(["plot", str(config.out), "--out", str(tmp_path / "curve.png")]) == 0
    for wrong in (["--low", "-1"], ["--between", checkpoints[2]], ["--by-distance"]):
        assert cli.main(["interpolate", *words, "--curve", "polygon", *wrong, "--overwrite"]) == 2
        assert "--curve polygon leads from one checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ranks", "per_point"), [(3, 1), pytest.param(2, 2, marks=pytest.mark.slow)]
)
def test_a_curve_on_ranks(ranks, per_point, checkpoints, tmp_path):
    """A step is one computation of all ranks; the points are then dealt to groups of them."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in CURVE.items()]
    words = ["interpolate", *MODEL, "--between", *checkpoints[:2], *options]
    assert cli.main([*words, "--out", str(tmp_path / "alone.h5")]) == 0
    words += ["--ranks-per-point", str(per_point), "--out", "run.h5"]
    launch([*TORCHRUN, str(ranks), "-m", "hessian_spectrum", *words], tmp_path)
    with hs.open(tmp_path / "run.h5") as run, hs.open(tmp_path / "alone.h5") as alone:
        for name, expected in alone["curve"].values.items():
            np.testing.assert_allclose(run["curve"].values[name], expected, rtol=1e-9)
        bends = (file["values/directions"]["vectors"] for file in (run, alone))
        np.testing.assert_allclose(*bends, rtol=1e-7, atol=1e-9)
        assert run.plan["groups"] == ranks // per_point


def test_a_plane_of_components_follows_the_checkpoints(checkpoints, tmp_path, capsys):
    """The last is the origin; each lies at its coordinates, within the window; all is stored."""
    out, picture = str(tmp_path / "plane.h5"), str(tmp_path / "plane.png")
    words = [*MODEL, "--directions", "components", "--checkpoints", *checkpoints]
    assert cli.main(["surface", *words, "--x-points", "3", "--out", out]) == 0
    with hs.open(out) as run:
        plane, way = run["surface"], run["trajectory"]
        kept = run["values/directions"]["vectors"]
    assert plane.shape == (3, 3)
    ends = np.array([plane.a[[0, -1]], plane.b[[0, -1]]]).T
    extent = way.coordinates.max(0) - way.coordinates.min(0)
    np.testing.assert_allclose(ends[0], way.coordinates.min(0) - 0.1 * extent)
    np.testing.assert_allclose(ends[1], way.coordinates.max(0) + 0.1 * extent)
    shares = [recipe["explained_variance"] for recipe in plane.about["directions"]]
    assert shares == way.explained_variance[:2].tolist()
    assert sum(shares) == pytest.approx(1)  # three points lie in a plane
    thetas = [torch.cat([p.flatten() for p in torch.load(c).values()]) for c in checkpoints]
    for theta, place in zip(thetas, way.coordinates):
        np.testing.assert_allclose(thetas[-1].numpy() + place @ kept, theta.numpy(), atol=1e-5)
    # At the place of the first checkpoint stands its loss.
    (a, b), one = way.coordinates[0], str(tmp_path / "one.h5")
    window = [f"--x-low={a}", f"--x-high={a}", f"--y-low={b}", f"--y-high={b}"]
    assert cli.main(["map", *words, *window, "--x-points", "1", "--out", one]) == 0
    first = ["surface", *MODEL, "--checkpoint", checkpoints[0], "--x-points", "1", "--x-low", "0"]
    alone = str(tmp_path / "alone.h5")
    assert cli.main([*first, "--directions", "random", "--out", alone]) == 0
    with hs.open(one) as run, hs.open(alone) as other:
        assert run["surface"].loss.item() == pytest.approx(other["surface"].loss.item(), rel=1e-5)
    assert cli.main(["plot", out, "--out", picture]) == 0
    capsys.readouterr()
    for wrong, message in (
        (["--checkpoint", checkpoints[0]], "leave --checkpoint out"),
        (["--directions", "random"], "--checkpoints with nothing else"),
    ):
        code = cli.main(["surface", *words, *wrong, "--out", str(tmp_path / "wrong.h5")])
        assert code == 2
        assert message in capsys.readouterr().err


def test_a_track_has_the_eigenvalues_of_each_checkpoint(checkpoints, tmp_path):
    words, out = ["track", *MODEL, "--checkpoints", *checkpoints], tmp_path / "track.h5"
    assert cli.main([*words, "--hvp-dtype", "float32", "--out", str(out)]) == 2
    assert not out.exists()
    assert cli.main([*words, "--eigenvalues", "--out", str(out)]) == 0
    with hs.open(out) as run:
        track = run["trajectory"]
    assert track.alpha[0] == 0
    assert track.alpha[-1] == pytest.approx(1)
    for i, name in enumerate(checkpoints):
        path = str(tmp_path / f"map-{i}.h5")
        one = ["map", *MODEL, "--x-points", "1", "--x-low", "0", "--directions", "random"]
        assert cli.main([*one, "--checkpoint", name, "--out", path]) == 0
        with hs.open(path) as run:
            found = run["surface"]
        assert found.loss.item() == track.values["loss"][i]
        for end in ("smallest", "largest"):
            assert track.values[end][i] == pytest.approx(found.values[end].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "surface.png"),
        (["--view", "relief", "--value", "accuracy"], "relief.pdf"),
        ([], "surface.vts"),
    ],
)
def test_pictures_of_surfaces(words, name, alone, tmp_path):
    out = tmp_path / name
    assert cli.main(["plot", str(alone / "surface.h5"), *words, "--out", str(out)]) == 0
    assert out.stat().st_size > 1000


def test_pictures_that_do_not_fit_are_refused(alone, tmp_path, capsys):
    out = ["--out", str(tmp_path / "a.png")]
    for words, message in (
        (["--view", "log"], "--view log of a surface: expected one of contour, heat, relief"),
        (["--value", "ratio"], "no 'ratio' was evaluated; there is: accuracy, loss"),
        (["--sigma2", "1"], "--sigma2 with --view contour"),
    ):
        assert cli.main(["plot", str(alone / "surface.h5"), *words, *out]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    shutil.copy(alone / "surface.h5", tmp_path / "other")
    same = [str(alone / "surface.h5"), "--beside", str(tmp_path / "other" / "surface.h5")]
    assert cli.main(["plot", *same, "--out", str(tmp_path / "same.svg")]) == 0
    drawn = (tmp_path / "same.svg").read_text()  # text as outlines, each with a comment of it
    assert f"<!-- {alone / 'surface.h5'} -->" in drawn
    assert f"<!-- {tmp_path / 'other' / 'surface.h5'} -->" in drawn
    assert cli.main(["plot", same[0], "--beside", same[0], *out]) == 2
    assert "names a file twice" in capsys.readouterr().err
    beside = [str(alone / "surface.h5"), "--beside", str(alone / "map.h5")]
    for words, message in (
        (["--view", "relief"], "--view relief with --beside: expected contour or heat"),
        (["--value", "ratio"], "no 'ratio' was evaluated"),
        (["--sigma2", "1"], "--sigma2 with --view contour"),
        (["--result", "curve"], "holds no 'curve'"),
    ):
        assert cli.main(["plot", *beside, *words, *out]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["plot", *beside, *out]) == 0
    assert cli.main(["plot", str(alone / "map.h5"), "--overwrite", *out]) == 0  # the ratio
