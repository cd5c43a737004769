"""Derivatives that are wrong on one rank are refused on all."""

import json

import pytest
from launching import TORCHRUN, launch
from locations import HELPERS


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def found(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks")
    worker = HELPERS / "derivative_checks_worker.py"
    launch([*TORCHRUN, str(request.param), str(worker), str(folder)], folder)
    results = json.loads((folder / "found.json").read_text())
    return {name: (request.param, heard) for name, heard in results.items()}


@pytest.mark.parametrize("case", ["right", "uneven", "empty"])
def test_right_derivatives_are_verified_and_zero_gradients_are_zero_on_all_ranks(found, case):
    ranks, heard = found[case]
    # ``one_sided`` has a gradient on one rank alone.
    assert heard == [[["unused"], {}, 1]] * ranks


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("detached", "the loss of samples 512 to 599 of rank {last}"),
        ("not finite", "is not finite for sample 599 of rank {last} (operation"),
        ("samples", "is not the derivative of the loss"),
    ],
)
def test_what_is_wrong_on_one_rank_is_refused_on_all(found, case, text):
    ranks, heard = found[case]
    assert len(set(heard)) == 1 and text.format(last=ranks - 1) in heard[0]
    assert heard[0].startswith(f"rank {ranks - 1} of {ranks}: ")
