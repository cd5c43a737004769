"""Ranks that were given different input are told which rank differs and in what, at once."""

import json
import math

import pytest
import torch
from launching import TORCHRUN, launch
from locations import HELPERS

import hessian_spectrum as hs
from hessian_spectrum.distributed import agreement

SECONDS = 15.0  # the time-out is a minute
MODELS, LAYERS = "different models", "different architectures"
CASES = {  # in words, "{last}" the last rank
    **dict.fromkeys(
        ["data", "one label", "split", "split of items", "items", "stream", "kind of data"],
        "rank {last} and rank 0 hold different data; give every rank the same whole data",
    ),
    "number of samples": "number of samples 25 on rank 0, 24 on rank {last}",
    "loader": "batch size of the data 4 on rank 0, 5 on rank {last}",
    "weight decay": "weight_decay 0.1 on rank 0, 0.2 on rank {last}; give every rank the same",
    "weight decay, unusable": "rank {last} of {ranks}: weight_decay=-1.0",
    "parameters": MODELS,
    "parameters, unusable": "rank {last} of {ranks}: no parameter matches 'no*'",
    "batch norm": "batch_norm eval on rank 0, train on rank {last}",
    "reduction": "reduction mean on rank 0, sum on rank {last}",
    "smoothing": LAYERS,
    "class weights": MODELS,
    "activation": LAYERS,
    "local": "data_is_local False on rank 0, True on rank {last}",
    "theta": "rank {last} and rank 0 hold different vectors theta",
    "theta of one": "rank {last} and rank 0 hold different vectors theta",
    "operator": "call Hessian on rank 0, GaussNewton on rank {last}",
    "plan": "call Hessian on rank 0, Hessian with a plan on rank {last}",
    "deflated": "hold different vectors",
    "diagonal": "hold different diagonal",
    "density, seed": "seed 0 on rank 0, 1 on rank {last}",
    "density, probes": "num_probes 2 on rank 0, 3 on rank {last}",
    "density, unusable": "num_steps 3 on rank 0, -3 on rank {last}",
    "densities": "blocks {{'a': '3.*'}} on rank 0, {{'a': '0.*'}} on rank {last}",
    "eigenpairs, seed": "seed 1 on rank 0, 2 on rank {last}",
    "eigenpairs, k": "k 2 on rank 0, 3 on rank {last}",
    "eigenpairs, start": "hold different start",
    "eigenpairs, vectors": "vectors True on rank 0, False on rank {last}",
    "shift": "shift=0.2, torch.float64) on rank {last}",
    "calls": "call eigenpairs on rank 0, spectral_density on rank {last}",
    "near": "shift 0.3 on rank 0, 0.4 on rank {last}",
    "solve": "hold different b",
    "alignment": "seed 0 on rank 0, 1 on rank {last}",
    "product": "shape ({n}, 2) on rank 0, ({n}, 3) on rank {last}",
    "product, unusable": "rank {last} of {ranks}: cannot multiply an operator of shape",
    "product, other call": "call a product with an operator on rank 0, GaussNewton on rank {last}",
    "distances": "hold different networks",
    "functional path": "hold different alpha",
    "asymmetry": "hold different vectors",
    "asymmetric": "hold different distance",
    "averaging": "hold different iterates",
    "surface": "hold different vectors",
    "line": "hold different weights",
}


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def found(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("agreement")
    worker = HELPERS / "agreement_worker.py"
    launch([*TORCHRUN, str(request.param), str(worker), str(folder)], folder)
    return {**json.loads((folder / "agreement.json").read_text()), "ranks": request.param}


def test_every_case_is_here(found):
    assert set(found["different"]) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_every_rank_is_told_the_rank_and_the_difference(found, case):
    said = CASES[case].format(last=found["ranks"] - 1, ranks=found["ranks"], n=53)
    for heard, seconds in found["different"][case]:
        assert heard is not None
        kind, text = heard
        assert kind == "InputError"
        assert said in text
        assert "\n" not in text
        assert seconds < SECONDS


def test_ranks_may_share_the_data_in_every_way_that_was_allowed(found):
    """Local shares, empty ones, shuffled loaders, folders and callbacks of a rank's own."""
    for values in found["same"].values():
        assert len(set(values)) == 1
        assert math.isfinite(values[0])
    for name in ("shares", "items", "shuffled"):
        assert found["same"][name] == pytest.approx(found["same"]["whole"], rel=1e-14)


def test_wrapped_networks_do_not_wait_for_each_other(found):
    """12 and 13 samples in minibatches of 4: DistributedDataParallel's forward would hang."""
    for values in found["wrapped"]:
        for name in ("wrapped", "child", "compiled"):
            assert values[name] == pytest.approx(values["bare"], rel=1e-12)


def test_agreement_costs_one_exchange_a_call(found):
    # Evaluator: model and options, the data, and what could not be verified.
    # A density asks once more at its end, as to its plan.
    assert found["exchanges"] == {"Evaluator": 3, "Deflated": 1, "density": 2}


COMMAND = ["-m", "hessian_spectrum"]
ZOO = ["--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "30", "--device", "cpu"]
OWN = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x, y = torch.randn(200, 4), torch.arange(200) % 3
    torch.seed()  # an unseeded split, as in many scripts
    data = torch.utils.data.TensorDataset(x, y)
    return model, nn.CrossEntropyLoss(), torch.utils.data.random_split(data, [150, 50])[0]
"""
DIFFERENT = """
import os, sys
from hessian_spectrum.cli.main import main
words = sys.argv[1:]
if os.environ["RANK"] == "1":
    words = [{"1": "2", "density": "eigenpairs"}.get(w, w) if %r == w else w for w in words]
sys.exit(main(words))
"""


@pytest.mark.parametrize(
    "word, said",
    [
        ("1", "--seed 1 on rank 0, 2 on rank 1"),
        ("density", "call density on rank 0, eigenpairs on rank 1"),
    ],
)
def test_commands_and_options_are_those_of_every_rank(tmp_path, word, said):
    (tmp_path / "start.py").write_text(DIFFERENT % word)
    words = ["density", *ZOO, "--seed", "1", "--out", "run.h5"]
    done = launch([*TORCHRUN, "2", "start.py", *words], tmp_path, expected=1)  # torchrun's own
    assert said in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not list(tmp_path.glob("run.h5*"))


def test_an_unseeded_split_is_refused_by_the_command(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    words = ["density", "--problem", "own.py:make", "--num-products", "4", "--device", "cpu"]
    done = launch([*TORCHRUN, "2", *COMMAND, *words], tmp_path, expected=1)
    assert "rank 1 and rank 0 hold different data" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not list(tmp_path.glob("density.h5*"))


def test_one_process_compares_nothing(monkeypatch):
    def refuse(_):
        raise AssertionError("called")

    monkeypatch.setattr(agreement, "digest_of", refuse)
    assert agreement.agreed(hs.World(), lambda: 7, refuse) == 7
    agreement.require_same_call(hs.World(), "call", rows=torch.ones(2))
