"""The examples of one's own model in jobs/problems: short, and they run."""

import dataclasses

import pytest
import torch
from locations import ROOT

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.operators.product_modes import MODES
from hessian_spectrum.zoo import problem_loader

EXAMPLES = {path.name: path for path in sorted((ROOT / "jobs" / "problems").glob("*.py"))}
SMALL = ["--num-probes", "2", "--num-steps", "3"]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The problem that the file of that name makes; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    return lambda name: f"{EXAMPLES[name]}:make"


def arguments_of(name, request, limit=24):
    if name == "words.py":
        data_root = request.getfixturevalue("data_root")
        return [f"path={data_root / 'ptb' / 'ptb.valid.txt'}", f"samples={limit}", "length=6"]
    return [f"sentences={limit}"] if name == "tagger.py" else [f"points={limit}"]


def test_there_are_three_of_under_thirty_lines():
    assert set(EXAMPLES) == {"tagger.py", "words.py", "heat.py"}
    for path in EXAMPLES.values():
        assert len([line for line in path.read_text().splitlines() if line.strip()]) < 30


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_command_line_runs_it(name, example, request):
    options = [f"--problem-arg={argument}" for argument in arguments_of(name, request)]
    command = ["density", "--problem", example(name), *options, *SMALL, "--out", "run.h5"]
    assert main(command) == 0
    with hs.open("run.h5") as run:
        assert run.finished
        fallbacks = " ".join(run.plan["fallbacks"])
    assert ("LSTM" in fallbacks) == (name == "words.py")
    assert ("attention" in fallbacks) == (name == "tagger.py")


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_products_are_the_same_in_every_mode(name, example, request):
    problem_arg = tuple(arguments_of(name, request, 7))
    config = ProblemConfig(problem=example(name), problem_arg=problem_arg, dtype="float64")
    torch.manual_seed(0)
    ev = dataclasses.replace(problem_loader.load(config), batch_size=4).evaluator()
    v = torch.randn(ev.n, 2, dtype=torch.float64)
    expected = hs.Hessian(ev) @ v
    for mode in MODES:
        if (name, mode) == ("heat.py", "forward"):
            continue  # torch cannot vmap the jvp of mse_loss; it raises
        found = hs.Hessian(ev, plan=hs.ProductPlan(mode, batch_size=3)) @ v
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 1e-10, mode  # measured: 1e-15
