"""The command critical: on ranks, resumed, with and without a search, and what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch
from launching import TORCHRUN, launch
from small_networks import data
from stopping import StopOnceThere
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum.cli import main as cli
from hessian_spectrum.commands import runner
from hessian_spectrum.commands.critical import CriticalRun
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.config import CriticalConfig
from hessian_spectrum.loss.problem import Problem

PROBLEM = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    x = torch.randn(12, 2, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    return net, nn.MSELoss(), (x, torch.tanh(x[:, :1]))
"""


@pytest.fixture
def words(tmp_path):
    (tmp_path / "mine.py").write_text(PROBLEM)
    problem = ["--problem", f"{tmp_path / 'mine.py'}:make", "--dtype", "float64"]
    return ["critical", *problem, "--find", "any", "--starts", "3", "--max-steps", "30"]


def stored(out):
    with hs.open(out) as run:
        assert run.finished and "values/progress" not in run
        return run["critical"]


def equal(found, expected):
    for name in ("kind", "reason"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    for name, values in expected.values.items():
        assert np.array_equal(found.values[name], values, equal_nan=True), name


def equal_points(found, expected):
    assert np.array_equal(found.thetas, expected.thetas)
    assert np.array_equal(found.eigenvalues, expected.eigenvalues)


def test_searches_from_many_starts_are_those_of_python(words, tmp_path, capsys):
    assert cli.main([*words, "--out", str(tmp_path / "a.h5")]) == 0
    said = capsys.readouterr().out
    found, namespace = stored(tmp_path / "a.h5"), {}
    exec(PROBLEM, namespace)
    model, loss_fn, samples = namespace["make"]()
    ev = hs.Evaluator(model, loss_fn, samples)
    size = ev.theta.square().mean().sqrt().item()
    for i, point in enumerate(found):
        normal = torch.from_numpy(np.random.default_rng([0, i]).standard_normal(ev.n))
        start = ev.theta + (0.5 * size * normal if i else 0.0)
        expected = hs.find_critical_point(ev, start, max_steps=30, seed=i)
        assert point.kind == expected.point.kind
        assert point.loss == pytest.approx(expected.point.loss, rel=1e-9)
        assert found.about["outcomes"][int(found.values["outcome"][i])] == expected.outcome
        assert str(point) in said
    assert "searches                 " in said
    launch([*TORCHRUN, "2", "-m", "hessian_spectrum", *words, "--out", "b.h5"], tmp_path)
    equal(stored(tmp_path / "b.h5"), found)
    equal_points(stored(tmp_path / "b.h5"), found)
    with hs.open(tmp_path / "b.h5") as run:
        assert run.plan["groups"] == 2  # each rank takes starts of its own


def test_the_points_are_stored_with_their_spectra_and_are_checkpoints(words, tmp_path, capsys):
    assert cli.main([*words, "--out", str(tmp_path / "a.h5")]) == 0
    found, namespace = stored(tmp_path / "a.h5"), {}
    exec(PROBLEM, namespace)
    model, loss_fn, samples = namespace["make"]()
    ev = hs.Evaluator(model, loss_fn, samples)
    assert found.thetas.shape == found.eigenvalues.shape == (3, ev.n)
    for theta, spectrum, point in zip(found.thetas, found.eigenvalues, found):
        at = torch.from_numpy(theta)
        assert ev.loss(at[None]).item() == pytest.approx(point.loss, rel=1e-12)
        assert np.array_equal(point.eigenvalues, spectrum)
        matrix = (hs.Hessian(ev, at) @ torch.eye(ev.n, dtype=at.dtype)).numpy()
        assert np.allclose(np.linalg.eigvalsh(matrix), spectrum, atol=1e-12)
    classified = [*words[:5], "--checkpoint", f"{tmp_path / 'a.h5'}:1"]
    assert cli.main([*classified, "--out", str(tmp_path / "b.h5")]) == 0
    again = stored(tmp_path / "b.h5")
    assert str(again[0]) == str(found[1]) and again.thetas is None
    capsys.readouterr()
    assert cli.main([*words, "--no-points", "--out", str(tmp_path / "c.h5")]) == 0
    assert "points are stored" not in capsys.readouterr().err
    bare = stored(tmp_path / "c.h5")
    equal(bare, found)
    assert bare.thetas is None and np.array_equal(bare.eigenvalues, found.eigenvalues)
    for name, message in [("a.h5:3", "this one is not there"), ("c.h5:0", "stores no points")]:
        out = str(tmp_path / "d.h5")
        assert cli.main([*words[:5], "--checkpoint", str(tmp_path / name), "--out", out]) == 2
        assert message in capsys.readouterr().err


def quadratic():
    """Of a linear model: one strict minimum."""
    torch.manual_seed(0)
    x, _ = data()
    samples = x.double(), x[:, :1].double().sin()
    return {"model": nn.Linear(x.shape[1], 1).double(), "loss_fn": nn.MSELoss(), "data": samples}


def test_without_a_search_the_checkpoint_is_classified(tmp_path):
    given = quadratic()
    found = hs.find_critical_point(hs.Evaluator(**given), kind="minimum")
    before = hs.run(CriticalConfig(out=tmp_path / "a.h5"), **given)
    assert before.kinds == ["not critical"]
    nn.utils.vector_to_parameters(found.theta, given["model"].parameters())
    torch.save(given["model"].state_dict(), tmp_path / "net.pt")
    config = CriticalConfig(out=tmp_path / "b.h5", checkpoint=tmp_path / "net.pt")
    result = hs.run(config, **quadratic())
    assert (result.kinds, len(result)) == (["minimum"], 1)
    assert str(result[0]) == str(hs.classify(hs.Evaluator(**given)))


def test_a_resumed_run_is_the_straight_one(tmp_path):
    def compute(config, stop=None):
        problem, stop = Problem(**quadratic()), stop or StopRequest()
        runner.run(CriticalRun, config, problem, hs.World(), stop, quiet=True)

    out = tmp_path / "run.h5"
    config = CriticalConfig(out=out, find="minimum", starts=5, checkpoint_minutes=0.0)
    compute(dataclasses.replace(config, out=tmp_path / "whole.h5"))

    def done():
        with hs.open(out) as run:
            assert run["critical"].kinds.count("") == (~run["values/progress"]["done"]).sum()
            return run["values/progress"]["done"]

    with pytest.raises(Interrupted):
        compute(config, StopOnceThere(out, lambda out: done().sum() >= 2))
    assert 2 <= done().sum() < 5
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(hs.InputError, match="cannot resume"):
        compute(dataclasses.replace(again, starts=6))
    compute(again)
    found = stored(out)
    assert found.count("minimum") == 5
    assert np.ptp(found.loss) < 1e-12
    equal(found, stored(tmp_path / "whole.h5"))
    equal_points(found, stored(tmp_path / "whole.h5"))


def test_what_no_run_can_use_is_refused(tmp_path, words, capsys):
    given = quadratic()
    single = {**given, "dtype": torch.float32, "model": given["model"].float()}
    with pytest.raises(hs.InputError, match="--dtype float64"):
        hs.run(CriticalConfig(out=tmp_path / "a.h5", find="any"), **single)
    for options, message in [
        ({"starts": 2}, "--starts 2 is for --find"),
        ({"points": False}, "--no-points is for --find"),
        ({"find": "any", "spread": 0.0}, "--spread"),
        ({"find": "any", "tol": float("nan")}, "--tol"),
    ]:
        with pytest.raises(hs.InputError, match=message):
            hs.run(CriticalConfig(out=tmp_path / "a.h5", **options), **given)
    assert cli.main([*words, "--dry-run", "--out", str(tmp_path / "a.h5")]) == 0
    assert "3 searches for any, 9 parameters" in capsys.readouterr().out
