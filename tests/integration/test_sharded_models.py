"""Models under FSDP2 and tensor parallelism have the Hessian of the whole model."""

import json

import pytest
from launching import TORCHRUN, launch
from locations import HELPERS

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.storage import series

WORKER = HELPERS / "sharded_worker.py"


@pytest.mark.parametrize(
    "ranks", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_sharded_models_have_the_hessian_of_the_whole_model(ranks, tmp_path):
    launch([*TORCHRUN, str(ranks), str(WORKER), str(tmp_path / "out")], tmp_path)
    result = json.loads((tmp_path / "out").read_text())
    cases = {case: found for case, found in result["found"].items() if found is not None}
    assert len(cases) == (6 if ranks % 2 == 0 else 5)
    for case, found in cases.items():
        assert found["kind"] == "exact", case
        assert not found["doubts"], case
        assert found["theta"] == 0.0, case
        for quantity in ("loss", "gradient", "products", "eigenvalues", "density"):
            assert abs(found.get(quantity, 0.0)) < 1e-9, (case, quantity)  # measured: 1e-13
        assert found.get("differences", 0.0) <= found.get("stated", 0.0) < 1e-6, case
        # This rank's share of theta, and the weights of one unit beside those of the next.
        shares = [rank[case] for rank in result["local"]]
        assert sum(shares) == found["n"], case
        assert max(shares) == -(-found["n"] // ranks), case
        assert found["peak"] <= 2 * (max(found["units"]) + ranks), case


def make(path, folder):
    (folder / "problem.py").write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(HELPERS)!r})\n"
        "from sharded_models import sequences, transformer\n"
        "from torch import nn\n"
        "class Loss(nn.CrossEntropyLoss):\n"
        "    def forward(self, *given):\n"
        "        if os.path.exists(os.environ.get('KILLED_AFTER', '')):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(*given)\n"
        "def make():\n"
        "    return transformer(), Loss(), sequences()\n"
    )
    return f"{folder / 'problem.py'}:make"


def test_a_run_that_is_killed_goes_on_on_another_number_of_ranks(tmp_path, monkeypatch):
    problem = make("problem.py", tmp_path)
    words = ["density", "--problem", problem, "--sharded", "--num-probes", "2", "--num-steps", "8"]
    assert main([*words, "--out", str(tmp_path / "straight.h5")]) == 0
    # Two ranks kill themselves as soon as a state is there.
    state = tmp_path / "run.h5.d" / "manifest.json"
    words += ["--checkpoint-minutes", "0", "--out", str(tmp_path / "run.h5")]
    monkeypatch.setenv("KILLED_AFTER", str(state))
    launch([*TORCHRUN, "2", "-m", "hessian_spectrum", *words], tmp_path, expected=1)
    monkeypatch.delenv("KILLED_AFTER")
    done = len(json.loads(state.read_text())["coefficients"]["diagonal"])
    with hs.open(tmp_path / "run.h5") as run:
        assert 1 <= done < 8 and not run.finished
    assert main([*words, "--resume"]) == 0
    with hs.open(tmp_path / "run.h5") as run, hs.open(tmp_path / "straight.h5") as straight:
        found, expected = run["density"], straight["density"]
        assert abs(found.nodes - expected.nodes).max() < 1e-9 * abs(expected.nodes).max()
        assert run.provenance["digests"] == straight.provenance["digests"]
        # What was done before the kill is not done again.
        assert run.provenance["products"] == straight.provenance["products"]


def test_options_of_sharded_models_are_refused_where_they_do_nothing(tmp_path, capsys):
    problem = make("problem.py", tmp_path)
    for words, message in (
        (["--recompute"], "--recompute says how a model is sharded; add --sharded"),
        (["--hvp", "differences"], "add it"),
        (["--sharded", "--hvp", "linearize"], "expected one of exact, differences"),
        (["--sharded", "--operator", "fisher"], "expected hessian"),
        (["--sharded", "--batch-norm", "train"], "expected eval"),
        (["--sharded", "--data-groups", "4"], "leave it out"),
        (["--sharded", "--weights", str(tmp_path / "no.safetensors")], "no such file"),
        (["--blocks", "heads", "--num-products", "9"], "say --num-probes"),
        (["--blocks", "experts"], "the model has none"),
        (["--text", "text.txt"], "is for --problem huggingface:FOLDER"),
        (["--max-length", "3"], "is for --problem huggingface:FOLDER"),
    ):
        out = str(tmp_path / "no.h5")
        assert main(["density", "--problem", problem, *words, "--out", out]) == 2, words
        assert message in capsys.readouterr().err, words


def test_densities_of_blocks_are_interrupted_and_resumed(tmp_path, monkeypatch, capsys):
    from hessian_spectrum.commands import block_densities

    monkeypatch.setattr(block_densities, "TOGETHER", 4)
    problem = make("problem.py", tmp_path)
    words = ["density", "--problem", problem, "--blocks", "layers", "--num-probes", "2"]
    words += ["--num-steps", "3", "--checkpoint-minutes", "0"]
    assert main([*words, "--out", str(tmp_path / "straight.h5")]) == 0
    step, made_of = block_densities.BlockDensities.step, []

    def fails(self, session):
        if len(made_of) == 2:
            raise FloatingPointError("here")
        made_of.append(1)
        step(self, session)

    monkeypatch.setattr(block_densities.BlockDensities, "step", fails)
    assert main([*words, "--out", str(tmp_path / "run.h5")]) != 0
    monkeypatch.setattr(block_densities.BlockDensities, "step", step)
    with hs.open(tmp_path / "run.h5") as run:
        assert not run.finished
        assert len([key for key in run if key.startswith("density/")]) == 4
    assert main([*words, "--out", str(tmp_path / "run.h5"), "--resume"]) == 0
    with hs.open(tmp_path / "run.h5") as run, hs.open(tmp_path / "straight.h5") as straight:
        keys = [key for key in straight if key.startswith("density/")]
        assert [key for key in run if key.startswith("density/")] == keys
        assert all((run[key].nodes == straight[key].nodes).all() for key in keys)
        found = series.of(run, "density")
        layers = ["position", "embedding"]  # in the order of the model, not of the alphabet
        for block in ("blocks.0", "blocks.1"):
            layers += [f"{block}.{name}" for name in "norm1 norm2 qkv out up down".split()]
        assert found.axis == "block" and list(found.results) == [*layers, "norm"]
    assert main([*words, "--out", str(tmp_path / "run.h5"), "--resume"]) == 2
    assert "is finished" in capsys.readouterr().err
