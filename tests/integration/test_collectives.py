"""What a step sends: two large and two small collectives, whatever the model has."""

import json

import pytest
from collectives_worker import STEPS, B
from launching import TORCHRUN, launch
from locations import HELPERS

RANKS = 2
FLOAT = 8  # bytes; the coefficients are always of that size


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collectives")
    worker = HELPERS / "collectives_worker.py"
    launch([*TORCHRUN, str(RANKS), str(worker), str(folder)], folder)
    return json.loads((folder / "collectives.json").read_text())


@pytest.mark.parametrize("tensors", [2, 200])
@pytest.mark.parametrize("estimator", ["block", "slq"])
def test_a_step_is_two_large_and_two_small_collectives_of_known_bytes(found, estimator, tensors):
    case = found[f"{estimator}, {tensors}"]
    chunk = -(-case["n"] // RANKS)
    assert len(case["steps"]) == STEPS
    for number, step in enumerate(case["steps"]):
        sent, flags = step["sent"], 2 * FLOAT
        assert set(sent) == {"all_gather", "reduce_scatter", "all_reduce"}
        assert sent["all_gather"] == [RANKS * B * chunk * FLOAT]
        assert sent["reduce_scatter"] == [RANKS * B * chunk * FLOAT]
        small = sent["all_reduce"]
        if number == 0:  # the products' noise, once
            assert small.pop(0) == (B * B + B) * FLOAT
        if estimator == "block":
            projection = (B * step["before"] + B * B) * FLOAT
            assert small == [projection, projection + flags]
        else:
            projection = step["before"] * FLOAT
            assert small == [projection, projection + B * FLOAT + flags]
    assert case["heard"] == [True, False]  # with those, and no other


@pytest.mark.parametrize("tensors", [2, 200])
@pytest.mark.parametrize("estimator", ["block", "slq"])
def test_the_basis_is_shared_out(found, estimator, tensors):
    case = found[f"{estimator}, {tensors}"]
    vectors = B * (STEPS + 1)
    if estimator == "block":
        vectors = min(vectors, case["n"])
    whole = vectors * case["n"] * FLOAT
    for held in case["basis"]:
        assert held == pytest.approx(whole / RANKS, rel=0.05)


def test_a_block_that_loses_rank_takes_one_reduction_more(found):
    sizes, steps = found["exhausted"]["sizes"], found["exhausted"]["steps"]
    assert sizes[-1] == 0
    for number, (step, size, after) in enumerate(zip(steps, sizes, sizes[1:])):
        expected = 2 + (after < size) + (number == 0)
        assert len(step["sent"]["all_reduce"]) == expected


def test_eigenpairs_send_no_more_in_an_ordinary_step(found):
    """Of a whole run: flags travel with the second reduction; ranks ask only at restarts."""
    steps, first = found["eigenpairs"], True
    ordinary = [step for step in steps if step["ordinary"]]
    assert len(ordinary) > 10 and not steps[-1]["ordinary"]  # which ends the run
    assert any(not step["ordinary"] for step in steps[:-1])  # restarts
    for step in ordinary:
        sent, b = step["sent"], step["width"]
        large = [RANKS * b * -(-step["n"] // RANKS) * FLOAT]
        assert set(sent) == {"all_gather", "reduce_scatter", "all_reduce"}
        assert sent["all_gather"] == sent["reduce_scatter"] == large
        small = sent["all_reduce"]
        if first and b > 1:  # the products' noise, once
            small = small[1:]
        first = False
        projection = (b * step["before"] + b * b) * FLOAT
        assert small == [projection, projection + 2 * FLOAT]
    for step in steps[:-1]:
        if not step["ordinary"]:
            assert len(step["sent"]["other"]) == 1 and len(step["sent"]["all_reduce"]) <= 4
