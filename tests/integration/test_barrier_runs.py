"""The command barriers: on ranks, resumed, in words, in queries and in a picture."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from launching import TORCHRUN, launch
from small_networks import CLASSES, INPUTS, data, mlp
from stopping import StopOnceThere
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum._core.errors import Warned
from hessian_spectrum.cli import main as cli
from hessian_spectrum.commands import runner
from hessian_spectrum.commands.barriers import BarriersRun
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.config import BarriersConfig
from hessian_spectrum.landscape import point_planner
from hessian_spectrum.loss.problem import Problem

MODEL = ["--model", "mlp-64-6-10", "--dataset", "digits", "--limit", "60", "--dtype", "float64"]
PER_EPOCH = 4  # steps


def walked(folder, model, inputs, labels, steps):
    """A checkpoint a step of SGD, with its step and its number of finished epochs."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    torch.manual_seed(0)
    paths = []
    for step in range(steps):
        paths.append(folder / f"step-{step:06d}.pt")
        zoo.save_checkpoint(paths[-1], model, sgd, step // PER_EPOCH, {})
        content = torch.load(paths[-1], weights_only=True)
        torch.save({**content, "step": step}, paths[-1])
        batch = torch.randint(0, len(labels), (5,))
        sgd.zero_grad()
        F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        sgd.step()
    return tuple(paths)


@pytest.fixture(scope="module", autouse=True)
def one_plan():
    """Points one after another, in every run of this process: bits depend on the plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point_planner, "WORTH", 1e12)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    samples = zoo.load_dataset("digits", limit=60)
    model = zoo.model_for(samples, "mlp-64-6-10", "tanh", 0)
    return walked(tmp_path_factory.mktemp("digits"), model, *samples.tensors, steps=7)


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "barriers.h5"
    assert cli.main(words(digits, out)) == 0
    return out


def words(paths, out, *more):
    files = ["--checkpoints", *map(str, paths)]
    return ["barriers", *MODEL, *files, "--batch-size", "16", *more, "--out", str(out)]


def stored(out):
    with hs.open(out) as run:
        assert run.finished
        assert "values/progress" not in run
        return run["barriers"]


def equal(found, expected, rtol=0.0):
    for field in dataclasses.fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        for name in b if field.name == "values" else ():
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, err_msg=name)
        if field.name in ("about", "values"):
            continue
        if field.name == "rounding" and rtol:  # which is made of rounding errors
            a, b = np.isfinite(a), np.isfinite(b)
        np.testing.assert_allclose(a, b, rtol=rtol, err_msg=field.name)
    assert found.about == expected.about


def test_each_segment_is_the_line_of_the_command_interpolate(digits, alone, tmp_path):
    found = stored(alone)
    assert found.about["axis"] == "step"
    assert found.start.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.epoch.tolist() == [1, 1, 1, 1, 2, 2]
    line = tmp_path / "line.h5"
    between = ["--between", str(digits[2]), str(digits[3]), "--num-points", "12"]
    assert (
        cli.main(["interpolate", *MODEL, "--batch-size", "16", *between, "--out", str(line)]) == 0
    )
    with hs.open(line) as run:
        for name, values in run["curve"].values.items():
            assert np.array_equal(found.values[name][2], values), name


@pytest.mark.parametrize(
    ("ranks", "per_point"),
    [
        pytest.param(2, 1, marks=pytest.mark.slow),
        (3, 1),
        pytest.param(2, 2, marks=pytest.mark.slow),
    ],
)
def test_barriers_on_ranks(ranks, per_point, digits, alone, tmp_path):
    command = words(digits, "run.h5", "--ranks-per-point", str(per_point))
    launch([*TORCHRUN, str(ranks), "-m", "hessian_spectrum", *command], tmp_path)
    # A point's loss depends on the plan, which is measured, and not on the rank that computes it.
    equal(stored(tmp_path / "run.h5"), stored(alone), 1e-12)


def problem(model):
    return {"model": model, "loss_fn": F.cross_entropy, "data": data(), "batch_size": 4}


def compute(config, model, stop=None):
    located = BarriersRun.located(config)
    zoo.load_checkpoint(model, located.checkpoint)
    chosen = Problem(**problem(model))
    runner.run(BarriersRun, located, chosen, hs.World(), stop or StopRequest(), quiet=True)


def test_a_resumed_run_is_the_straight_one(tmp_path):
    model, out = mlp(), tmp_path / "run.h5"
    paths = walked(tmp_path, model, *data(), steps=6)
    config = BarriersConfig(checkpoints=paths, out=out, checkpoint_minutes=0.0)
    compute(dataclasses.replace(config, out=tmp_path / "whole.h5"), model)

    def progress():
        with hs.open(out) as run:
            assert not run.finished
            return run["barriers"], run["values/progress"]["done"]

    with pytest.raises(Interrupted):
        compute(config, model, StopOnceThere(out, lambda out: progress()[1].sum() >= 20))
    partial, done = progress()
    assert not done.all() and partial.is_known.any() and not partial.is_known.all()
    assert partial.count().unknown == (~partial.is_known).sum()
    again = dataclasses.replace(config, resume=True)
    for other in (dataclasses.replace(again, points=9), others(again, paths, tmp_path)):
        with pytest.raises(hs.InputError, match=r"cannot resume|points are not those"):
            compute(other, model)
    compute(again, model)
    equal(stored(out), stored(tmp_path / "whole.h5"))


def others(config, paths, folder):
    """With one checkpoint that has moved."""
    content = torch.load(paths[2], weights_only=True)
    content["model"]["0.bias"][0] += 1e-3
    torch.save(content, folder / "moved.pt")
    moved = (*paths[:2], folder / "moved.pt", *paths[3:])
    return dataclasses.replace(config, checkpoints=moved)


def test_checkpoints_without_steps_are_numbered(tmp_path):
    model = mlp()
    paths = walked(tmp_path, model, *data(), steps=3)
    content = torch.load(paths[1], weights_only=True)
    del content["step"]
    torch.save(content, paths[1])
    config = BarriersConfig(checkpoints=paths, out=tmp_path / "x.h5", device="cpu", points=2)
    with pytest.warns(Warned, match=r"numbered 0, 1, \.\.\..*some store no step"):
        found = hs.run(config, **problem(model))
    assert found.start.tolist() == [0, 1]
    assert found.about["axis"] == "index"


def test_running_statistics_are_those_of_one_network_unless_recalibrated(tmp_path, capsys):
    def normalized():
        torch.manual_seed(3)
        layers = [nn.Linear(INPUTS, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES)]
        return nn.Sequential(*layers).double()

    model = normalized()
    paths = walked(tmp_path, model, *data(), steps=4)
    found = {}
    for mode, message in (("eval", "--batch-norm recalibrate"), ("recalibrate", None)):
        config = BarriersConfig(
            checkpoints=paths, out=tmp_path / f"{mode}.h5", device="cpu", batch_norm=mode
        )
        if message:
            with pytest.warns(Warned, match=message):
                found[mode] = hs.run(config, **problem(model))
        else:
            found[mode] = hs.run(config, **problem(model))
    for i, path in enumerate(paths[:-1]):
        for mode, source in (("eval", paths[0]), ("recalibrate", path)):
            zoo.load_checkpoint(model, source)
            ev = hs.Evaluator(**problem(model), batch_norm=mode)
            zoo.load_checkpoint(model, path)
            theta = hs.Evaluator(**problem(model)).theta
            zoo.load_checkpoint(model, source)
            expected = ev.loss(theta).item()
            assert found[mode].loss[i, 0] == pytest.approx(expected, rel=1e-12), mode


def test_barriers_are_asked_told_and_drawn(alone, digits, tmp_path, capsys):
    found, out = stored(alone), str(alone)

    def asked(*query):
        assert cli.main(["query", out, *query, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert cli.main(["query", out, *query]) == 0
        return answer, capsys.readouterr().out.strip()

    count = found.count(1)
    answer, text = asked("count", "1")
    assert (answer["value"], answer["segments"], answer["unknown"]) == count
    assert text == f"count 1 of the loss = {count.barriers} barriers on 4 segments"
    assert asked("count")[0]["segments"] == 6
    highest = np.where(found.is_barrier, found.rise, 0.0).max()
    assert asked("barrier")[0]["value"] == pytest.approx(highest, rel=1e-15)
    assert asked("floor", "3")[0]["value"] == found.floor[3]
    assert asked("floor", "3")[1].endswith("at step 3")
    heights = found.height_above_floor
    assert asked("height")[0]["value"] == pytest.approx(heights.mean(), rel=1e-15)
    assert asked("height", "2")[0]["value"] == pytest.approx(heights[4:].mean(), rel=1e-15)
    answer, text = asked("cosine")
    assert answer["value"] == pytest.approx(found.cosine[1:].mean(), rel=1e-15)
    assert text.startswith("cosine of the consecutive updates = ")
    smallest = found.values["accuracy"].min()
    assert asked("minimum", "--value", "accuracy")[0]["value"] == smallest
    for query, said in (
        (["floor", "9"], "no segment starts there; they start at 0 to 5"),
        (["count", "7"], "no segment is of epoch 7; the epochs are: 1, 2"),
        (["count", "--value", "accuracy"], "barriers are of the loss"),
        (["basin", "1"], "no query 'basin' of barriers"),
    ):
        assert cli.main(["query", out, *query]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["query", out]) == 0
    assert "count [EPOCH]" in capsys.readouterr().out
    for view in ([], ["--view", "loss"], ["--view", "heights"], ["--view", "cosine"]):
        picture = tmp_path / "x.png"
        assert cli.main(["plot", out, *view, "--overwrite", "--out", str(picture)]) == 0
        assert picture.stat().st_size > 10_000
    assert cli.main(["plot", out, "--view", "relief", "--out", str(tmp_path / "y.png")]) == 2
    assert "--view relief of barriers: expected loss, heights, cosine" in capsys.readouterr().err


def test_the_report_says_where_the_highest_barrier_is(capsys):
    from hessian_spectrum.commands import report

    t, ones = np.linspace(0, 1, 5), np.ones(3)
    loss = np.array([[4, 1, 0, 1, 2], [2, 2, 3, 1, 1], [1, 1, np.inf, 1, 1.0]])
    start, epoch = np.arange(3.0), np.array([1.0, 2.0, 2.0])
    found = hs.Barriers(t, start, start + 1, epoch, ones, ones, 0 * ones, {"loss": loss})
    said = report.barriers(found, {"loss": 4.0})
    assert "barriers                 1 of 2   (highest 1, after step 1)" in said
    assert "  in epoch 2              1 of 1" in said
    assert "not finite               1 segments" in said
