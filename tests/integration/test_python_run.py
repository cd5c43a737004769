"""hs.run: what the commands do, from Python, with the same files."""

import dataclasses
import doctest
import os
import signal
import threading

import numpy as np
import pytest
import torch
from density_runs import problem
from launching import TORCHRUN, launch
from small_networks import mlp
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.commands import python_run
from hessian_spectrum.krylov.block_lanczos import BlockSpace

STEPS = 8


def config(out, **options):
    fields = {"num_probes": 2, "num_steps": STEPS, "hvp": "reverse", "checkpoint_minutes": 0.0}
    return hs.DensityConfig(out=str(out), **{**fields, **options})


def signalled(monkeypatch, number, at_step):
    """A signal comes while that step is taken."""
    step = BlockSpace.step

    def stopped(state, operator, flags=None):
        if state.num_steps == at_step - 1:
            os.kill(os.getpid(), number)
        return step(state, operator, flags)

    monkeypatch.setattr(BlockSpace, "step", stopped)


def same(a, b):
    assert np.array_equal(a.nodes, b.nodes) and np.array_equal(a.weights, b.weights)
    assert np.array_equal(a.residuals, b.residuals)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run.h5"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_and_resumed_gives_the_bits_of_a_straight_one(
    out, number, capsys, monkeypatch
):
    straight = hs.run(config(out.with_name("straight.h5")), **problem())
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    threads, given = torch.get_num_threads(), problem()
    before = {name: t.clone() for name, t in given["model"].state_dict().items()}
    with monkeypatch.context() as patch:
        signalled(patch, number, at_step=3)
        with pytest.raises(hs.Interrupted, match=signal.Signals(number).name):
            hs.run(config(out, checkpoint_minutes=60.0), **given)
    with hs.open(out) as run:
        assert not run.finished and run["density"].rules[0].num_steps == 3
    found = hs.run(config(out, resume=True), **problem())
    same(found, straight)
    with hs.open(out) as run:
        assert run.finished and run.config["command"] == "density"
        same(run["density"], straight)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert torch.get_num_threads() == threads and given["model"].training
    assert all(torch.equal(t, before[name]) for name, t in given["model"].state_dict().items())
    assert capsys.readouterr().out == ""


def test_what_is_there_is_refused_without_resume_and_extended_with_it(out):
    hs.run(config(out), **problem())
    before = out.read_bytes()
    with pytest.raises(hs.InputError, match="exists already"):
        hs.run(config(out), **problem())
    with pytest.raises(hs.InputError, match="the loss was"):
        hs.run(
            config(out, resume=True, num_steps=9),
            **problem(lambda o, y: 2 * F.cross_entropy(o, y)),
        )
    assert out.read_bytes() == before
    found = hs.run(config(out, resume=True, num_steps=9), **problem())
    same(found, hs.run(config(out.with_name("straight.h5"), num_steps=9), **problem()))


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({"model": "cnn"}, {}, "model='cnn' makes a problem by name"),
        ({"problem": "my.py:make"}, {}, "problem='my.py:make' makes a problem by name"),
        ({"dtype": "float32"}, {"dtype": torch.float64}, "dtype is given twice"),
        ({"batch_size": 5}, {}, "batch_size is given twice"),
        ({"seed": -1}, {}, "--seed"),
        ({"num_steps": 10**6}, {}, "exceeds the number of parameters"),
        ({"checkpoint_minutes": -1.0}, {}, "--checkpoint-minutes"),
        ({}, {"bacth_norm": "eval"}, "unknown argument bacth_norm; expected among forward"),
    ],
)
def test_a_configuration_of_no_use_is_refused_and_nothing_written(out, fields, arguments, message):
    with pytest.raises(hs.InputError, match=message):
        hs.run(config(out, **fields), **problem(**arguments))
    assert not list(out.parent.iterdir())


def test_only_configurations_of_commands_that_compute_are_taken():
    from hessian_spectrum.config import ProblemConfig, TrainConfig

    for wrong, message in (
        (ProblemConfig(), "a ProblemConfig is the configuration of no command; expected one of"),
        (TrainConfig(), "train has its own"),
    ):
        with pytest.raises(hs.InputError, match=message):
            hs.run(wrong, **problem())


def test_every_command_returns_its_result(tmp_path):
    torch.manual_seed(1)
    files = []
    for i in range(3):
        files.append(str(tmp_path / f"{i}.pt"))
        torch.save(mlp().state_dict(), files[-1])
    given = {**problem(), "data": tuple(t[:12] for t in problem()["data"])}
    small, pairs = {"x_points": 3, "y_points": 2}, {"k": 1, "tol": 1e-3}
    line = {"between": tuple(files[:2]), "num_points": 3}
    for number, (made, kind) in enumerate(
        (
            (hs.EigenpairsConfig(**pairs), hs.EigenPairs),
            (hs.AlignmentConfig(batch_sizes=("3",), num_batches=2, k=1), hs.Alignment),
            (hs.NoiseConfig(k=("1",), batch_sizes=("full",), num_products=8), hs.Noise),
            (hs.SurfaceConfig(**small), hs.Surface),
            (hs.MapConfig(**small, tol=1e-2), hs.Surface),
            (hs.InterpolateConfig(**line), hs.Curve),
            (hs.InterpolateConfig(**line, curve="bezier", num_steps=2), hs.Curve),
            (hs.TrackConfig(checkpoints=tuple(files)), hs.Trajectory),
            (hs.TrackConfig(checkpoints=tuple(files), largest=2), hs.Trajectory),
            (hs.BarriersConfig(checkpoints=tuple(files), points=2), hs.Barriers),
            (hs.CriticalConfig(k=2), hs.CriticalPoints),
        )
    ):
        made = dataclasses.replace(made, out=str(tmp_path / f"{number}.h5"))
        model = given["model"]
        before = {name: t.clone() for name, t in model.state_dict().items()}
        assert isinstance(hs.run(made, **given), kind), made
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        with hs.open(made.out) as run:
            assert run.finished


def test_a_checkpoint_is_evaluated_and_the_model_left_as_it_was(out, tmp_path):
    other = mlp()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    found = hs.run(config(out, checkpoint=str(tmp_path / "other.pt")), **problem())
    same(found, hs.run(config(tmp_path / "x.h5"), **problem(model=other)))


ZOO = ["--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "30", "--dtype", "float64"]


def test_the_command_line_resumes_it_with_the_same_problem_only(out):
    from hessian_spectrum import zoo

    samples = zoo.load_dataset("digits", limit=30)
    made = {
        "model": zoo.model_for(samples, "mlp-64-4-10", "tanh", 0),
        "loss_fn": torch.nn.CrossEntropyLoss(),
        "data": samples.tensors,
        "dtype": torch.float64,
    }
    hs.run(config(out, num_steps=4), **made)
    words = ["density", *ZOO, "--hvp", "reverse", "--num-steps", "8", "--out", str(out)]
    before = out.read_bytes()
    assert main([*words, "--resume", "--init-seed", "1"]) == 2
    assert main([*words, "--resume", "--weight-decay", "0.1"]) == 2
    assert out.read_bytes() == before
    assert main([*words, "--resume"]) == 0
    straight = hs.run(config(out.with_name("straight.h5"), num_steps=8), **made)
    with hs.open(out) as run:
        same(run["density"], straight)
        again = {key: run.config[key] for key in ("num_probes", "num_steps", "model")}
    assert again == {"num_probes": 2, "num_steps": 8, "model": "mlp-64-4-10"}


def test_a_dry_run_prints_the_plan_and_verbose_the_report(out, capsys):
    assert hs.run(config(out, dry_run=True), **problem()) is None
    assert " products in " in capsys.readouterr().out and not out.exists()
    hs.run(config(out), **problem(), verbose=True)
    said = capsys.readouterr()
    assert f"written to {out}" in said.out and " products in " in said.err


def test_it_runs_in_a_thread_where_signals_cannot_be_listened_to(out):
    found = []
    thread = threading.Thread(target=lambda: found.append(hs.run(config(out), **problem())))
    thread.start()
    thread.join()
    same(found[0], hs.run(config(out.with_name("main.h5")), **problem()))


WORKER = """
import sys
import torch
import hessian_spectrum as hs

world = hs.distributed.start("cpu")
torch.manual_seed(0)
given = {
    "model": torch.nn.Linear(5, 3).double(), "loss_fn": torch.nn.CrossEntropyLoss(),
    "data": (torch.randn(31, 5).double(), torch.arange(31) % 3), "batch_size": 4,
}
measure = hs.run(hs.DensityConfig(num_probes=2, num_steps=4, out="density.h5"), **given)
surface = hs.run(hs.SurfaceConfig(x_points=3, out="surface.h5"), **given)
every = world.gather_objects((measure.nodes.tolist(), surface.loss.tolist()))
assert all(found == every[0] for found in every)
hs.distributed.finish(world)
"""


def test_on_ranks_each_has_the_result(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    launch([*TORCHRUN, "2", "worker.py"], tmp_path)
    for name in ("density", "surface"):
        with hs.open(tmp_path / f"{name}.h5") as run:
            assert run.finished and run.provenance["world_size"] == 2


def test_the_example_in_the_docstring_runs():
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    (example,) = finder.find(python_run.run, "hs.run")
    assert example.examples and runner.run(example).failed == 0
