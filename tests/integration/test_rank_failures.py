"""An error on one rank in the middle of a computation is raised on all, at once, with its cause."""

import json

import pytest
from launching import TORCHRUN, launch
from locations import HELPERS

RANKS, SECONDS = 2, 15.0  # the time-out is a minute
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB"
CASES = {
    **dict.fromkeys(
        ["density", "slq", "eigenpairs", "solve", "product", "shifted", "gradients", "losses"],
        ("OutOfMemoryError", CUDA),
    ),
    **dict.fromkeys(["surface", "check"], ("OutOfMemoryError", CUDA)),
    **{f"recalibrate, {calls}": ("OutOfMemoryError", CUDA) for calls in (0, 2, 5)},
    "product, cuda": ("OutOfMemoryError", CUDA),
    "product, host": ("MemoryError", "4 GiB"),
    "product, cpu": ("RuntimeError", "RuntimeError: DefaultCPUAllocator: can't allocate memory"),
    "product, code": ("RuntimeError", "KeyError: 'layer 3'"),
    "together": ("RuntimeError", "ZeroDivisionError: division by zero"),
}


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    worker = HELPERS / "rank_failures_worker.py"
    launch([*TORCHRUN, str(RANKS), str(worker), str(folder)], folder)
    return json.loads((folder / "failures.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_every_rank_ends_within_seconds_and_hears_the_cause(heard, case):
    kind, text = CASES[case]
    for found in heard[case]:
        assert found is not None
        assert found[:2] == [kind, f"rank {RANKS - 1} of {RANKS}: {text}"]
        assert found[2] < SECONDS


def test_the_ranks_can_go_on(heard):
    assert heard["usable"] == [True] * RANKS
