"""The command interpolate --match: lines before and after matching, on ranks and resumed."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from launching import TORCHRUN, launch
from stopping import StopOnceThere
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum.cli import main as cli
from hessian_spectrum.commands import matched_line, runner
from hessian_spectrum.commands.matched_line import MatchedRun
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.config import InterpolateConfig
from hessian_spectrum.landscape import point_planner
from hessian_spectrum.zoo import problem_loader

OPTIONS = {"model": "mlp-64-7-6-10", "dataset": "digits", "limit": 60, "dtype": "float64"}
MODEL = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
POINTS = 7
METHODS = ["weights", "activations"]


@pytest.fixture(scope="module", autouse=True)
def one_plan():
    """Points one after another, in every run of this process: bits depend on the plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point_planner, "WORTH", 1e12)
        yield


def trained(folder, model):
    for seed in ("1", "2"):
        given = ["--epochs", "3", "--every", "3", "--optimizer", "adam", "--lr", "0.02"]
        words = ["train", *model, *given, "--seed", seed, "--out", str(folder / seed)]
        assert cli.main(words) == 0
    return [folder / seed / "epoch-0003.pt" for seed in ("1", "2")]


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("nets"), MODEL)


@pytest.fixture(scope="module")
def alone(nets, tmp_path_factory):
    """By method, what one process writes."""
    folder = tmp_path_factory.mktemp("alone")
    for method in METHODS:
        assert cli.main(words(nets, method, folder / f"{method}.h5", "--test")) == 0
    return {method: folder / f"{method}.h5" for method in METHODS}


def words(nets, method, out, *more):
    between = ["--between", *map(str, nets), "--match", method, "--num-points", str(POINTS)]
    return ["interpolate", *MODEL, *between, *more, "--out", str(out)]


def stored(out):
    with hs.open(out) as run:
        assert run.finished
        return hs.MatchedLines.of(run)


def equal(found, expected, rtol=0.0):
    ours, theirs = dict(found.matching), dict(expected.matching)
    assert ours.pop("method") == theirs.pop("method")
    assert ours == pytest.approx(theirs, rel=rtol or 1e-14)
    for label, curve in expected.curves.items():
        assert list(found.curves[label].values) == list(curve.values)
        for name, array in curve.values.items():
            np.testing.assert_allclose(found.curves[label].values[name], array, rtol, 1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_each_line_is_what_interpolate_gives(method, nets, alone):
    problem = problem_loader.load(InterpolateConfig(**OPTIONS, checkpoint=nets[0], device="cpu"))
    test = dataclasses.replace(
        problem,
        data=problem_loader.load(InterpolateConfig(**OPTIONS, split="test", device="cpu")).data,
    )
    models = [copy.deepcopy(problem.model) for _ in nets]
    for model, path in zip(models, nets):
        zoo.load_checkpoint(model, path)
        model.double()
    data = problem.data if method == "activations" else None
    found = hs.match(*models, method, data)
    assert found.num_moved > 0
    matched = copy.deepcopy(models[1])
    matched.load_state_dict(found.state)
    ev, test_ev = (p.evaluator(hs.World()) for p in (problem, test))
    first, *ends = (
        torch.cat([p.detach().flatten() for p in model.parameters()])
        for model in (models[0], models[1], matched)
    )
    lines = stored(alone[method])
    for end, (label, curve) in zip(ends, lines.curves.items()):
        expected = hs.interpolate(ev, first, end, POINTS, test=test_ev)
        assert curve.about["match"] == method
        np.testing.assert_array_equal(curve.t, expected.t)
        np.testing.assert_allclose(curve.distance, expected.distance, rtol=1e-12)
        for name, values in expected.values.items():
            np.testing.assert_allclose(curve.values[name], values, rtol=1e-12, err_msg=label)
    assert lines.matching == {
        "method": method,
        "iterations": found.iterations,
        "num_moved": found.num_moved,
        "distance_before": pytest.approx(found.distance_before, rel=1e-12),
        "distance": pytest.approx(found.distance, rel=1e-12),
    }
    assert lines.after.loss[-1] == pytest.approx(lines.before.loss[-1], rel=1e-12)
    assert lines.after.distance[-1] < lines.before.distance[-1]


@pytest.mark.parametrize("method", ["activations", pytest.param("weights", marks=pytest.mark.slow)])
def test_matched_lines_on_ranks(method, nets, alone, tmp_path):
    given = words(nets, method, "run.h5", "--test", "--ranks-per-point", "2")
    launch([*TORCHRUN, "2", "-m", "hessian_spectrum", *given], tmp_path)
    equal(stored(tmp_path / "run.h5"), stored(alone[method]), 1e-12)


def compute(config, stop=None):
    located = MatchedRun.located(config)
    problem = problem_loader.load(located)
    runner.run(MatchedRun, located, problem, hs.World(), stop or StopRequest(), quiet=True)


def test_a_resumed_run_is_the_straight_one_and_matches_nothing_again(
    nets, alone, tmp_path, monkeypatch
):
    out = tmp_path / "run.h5"
    given = {**OPTIONS, "between": tuple(nets), "num_points": POINTS, "out": out, "device": "cpu"}
    config = InterpolateConfig(**given, match="weights", test=True, checkpoint_minutes=0.0)

    def done():
        with hs.open(out) as run:
            assert not run.finished
            return run["values/progress"]["done"]

    with pytest.raises(Interrupted):
        compute(config, StopOnceThere(out, lambda out: done().any()))
    assert not done().all()
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(hs.InputError, match="match"):
        compute(dataclasses.replace(again, match="activations"))

    def refuse(*_):
        raise AssertionError("matched again")

    monkeypatch.setattr(matched_line, "matched", refuse)
    compute(again)
    equal(stored(out), stored(alone["weights"]))


def test_networks_with_batchnorm_are_the_same_at_their_ends(tmp_path):
    model = ["--model", "cnn", "--width", "0.3", *MODEL[2:]]
    nets = trained(tmp_path, model)
    for method in METHODS:
        out = tmp_path / f"{method}.h5"
        given = ["--between", *map(str, nets), "--match", method, "--num-points", "3"]
        more = ["--batch-norm", "recalibrate", "--out", str(out)]
        assert cli.main(["interpolate", *model, *given, *more]) == 0
        lines = stored(out)
        np.testing.assert_allclose(
            lines.after.loss[[0, -1]], lines.before.loss[[0, -1]], rtol=1e-10
        )
        assert abs(lines.after.loss[1] - lines.before.loss[1]) > 1e-3


def test_matching_leaves_the_running_statistics_of_the_first_network(tmp_path):
    model = ["--model", "cnn", "--width", "0.3", *MODEL[2:]]
    nets = trained(tmp_path, model)
    given = ["interpolate", *model, "--between", *map(str, nets), "--num-points", "3"]
    assert cli.main([*given, "--out", str(tmp_path / "line.h5")]) == 0
    assert cli.main([*given, "--match", "weights", "--out", str(tmp_path / "both.h5")]) == 0
    with hs.open(tmp_path / "line.h5") as run:
        np.testing.assert_allclose(
            stored(tmp_path / "both.h5").before.loss, run["curve"].loss, rtol=1e-12
        )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--by-distance"], "leave out --curve and --by-distance"),
        (["--curve", "bezier"], "leave out --curve and --by-distance"),
        (["--pairs", "nets"], "leave --between out"),
    ],
)
def test_options_that_matching_does_not_take(more, said, nets, tmp_path, capsys):
    assert cli.main(words(nets, "weights", tmp_path / "x.h5", *more)) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    given = [*words([*nets, nets[0]], "weights", tmp_path / "x.h5")]
    assert cli.main(given) == 2
    assert "name two checkpoints" in " ".join(capsys.readouterr().err.split())


def test_problems_that_cannot_be_matched_are_refused(nets, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = torch.randn(8, 3), torch.zeros(8, 2)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    between = (tmp_path / "a.pt", tmp_path / "a.pt")
    config = InterpolateConfig(
        between=between, match="activations", num_points=3, out=tmp_path / "x.h5"
    )
    loss_fn = nn.MSELoss()

    def forward(model, batch):
        return model(batch[0])

    def loss_of(outputs, batch):
        return loss_fn(outputs, batch[1])

    with pytest.raises(hs.InputError, match="a forward of its own"):
        hs.run(config, model=model, loss_fn=loss_of, data=data, forward=forward)
    with pytest.raises(hs.InputError, match="theta has 16 of them"):
        hs.run(config, model=model, loss_fn=loss_fn, data=data, parameters=["0.*"])
    found = hs.run(config, model=model, loss_fn=loss_fn, data=data)
    assert isinstance(found, hs.MatchedLines)
    assert found.matching["distance"] == 0


def test_matched_lines_are_asked_told_and_drawn(nets, alone, tmp_path, capsys):
    lines = stored(alone["weights"])
    assert cli.main(words(nets, "weights", tmp_path / "again.h5", "--dry-run")) == 0
    assert f"{2 * POINTS} points" in "".join(capsys.readouterr())
    assert cli.main(words(nets, "weights", tmp_path / "again.h5")) == 0
    told = capsys.readouterr().out
    for curve in lines.curves.values():
        assert f"{curve.barrier():.6g}   ({curve.barrier('loss', 'max'):.6g} above" in told
    for query, reference in (("barrier", "line"), ("barrier_above_ends", "max")):
        assert cli.main(["query", str(alone["weights"]), query, "--json"]) == 0
        captured = capsys.readouterr()
        assert "epochs" not in captured.err
        answers = {row["label"]: row["value"] for row in json.loads(captured.out)}
        expected = {label: c.barrier("loss", reference) for label, c in lines.curves.items()}
        assert answers == expected
        assert list(answers) == ["unmatched", "matched"]
    assert lines.before.barrier() != lines.before.barrier(reference="max")
    sizes = set()
    for more in ([], ["--value", "accuracy"], ["--result", "curve/matched"]):
        out = tmp_path / f"{len(sizes)}.png"
        assert cli.main(["plot", str(alone["weights"]), *more, "--out", str(out)]) == 0
        sizes.add(out.stat().st_size)
    assert len(sizes) == 3
    assert cli.main(["plot", str(alone["weights"]), "--view", "heat", "--out", "x.png"]) == 2
    assert cli.main(["query", str(alone["weights"]), "at", "0.5", "--result", "curve/matched"]) == 0
    with pytest.raises(hs.InputError, match="interpolate --match writes"):
        hs.MatchedLines.of({})
