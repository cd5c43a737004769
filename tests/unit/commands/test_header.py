"""The header of a run: the same from a manifest and from a result file, and what it refuses."""

import dataclasses
import json

import pytest
import torch
from locations import ROOT

import hessian_spectrum as hs
from hessian_spectrum.commands.header import HEADER_KEYS, ProblemSize, RunHeader, Work
from hessian_spectrum.operators.linearization import ProductPlan

SCHEMA1 = ROOT / "tests" / "golden" / "schema1"
HEADER = RunHeader(
    config={"model": "cnn", "k": 3, "out": "a.h5"},
    digests={"parameters": "a", "data": None},
    problem=ProblemSize(9, 4.0, "torch.float64"),
    values={"loss": 2.0, "gradient_norm": 0.5},
    plan={"products": dataclasses.asdict(ProductPlan("reverse")), "basis": "host", "threads": 2},
    work=Work(1.5, 30, 4),
)


def changed(**fields):
    return dataclasses.replace(HEADER, **fields)


def test_json_holds_all_of_it():
    stored = json.loads(json.dumps(HEADER.to_json()))
    assert tuple(stored) == HEADER_KEYS
    assert RunHeader.from_json({**stored, "basis": []}) == HEADER
    assert HEADER.product_plan == ProductPlan("reverse")
    assert (HEADER.place, HEADER.threads) == ("host", 2)
    without = changed(plan={"threads": 1})
    assert (without.product_plan, without.place) == (None, "device")


@pytest.mark.parametrize("name", ["density", "slq", "eigenpairs"])
def test_a_result_file_and_the_manifest_beside_it_tell_the_same(name):
    manifest = json.loads((SCHEMA1 / f"{name}.h5.d" / "manifest.json").read_text())
    beside = RunHeader.from_json(manifest)
    with hs.open(SCHEMA1 / f"{name}.h5") as run:
        inside = RunHeader.from_run(run)
    assert (inside.digests, inside.problem) == (beside.digests, beside.problem)
    assert inside.values == beside.values and inside.plan == beside.plan
    assert inside.work.products == beside.work.products
    beside.require_same_run(dataclasses.replace(inside, config=beside.config))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (changed(config={"model": "cnn", "k": 4}), "--k was 3 and is now 4"),
        (changed(config={"model": "mlp", "k": 3}), "--model was 'cnn' and is now 'mlp'"),
        (changed(digests={"parameters": "b", "data": "c"}), "the parameters are not those"),
        (changed(problem=ProblemSize(9, 5.0, "torch.float64")), "total weight was 4.0 and is now"),
    ],
)
def test_another_run_is_refused(now, message):
    with pytest.raises(hs.InputError, match=f"cannot resume: {message}"):
        HEADER.require_same_run(now)


def test_what_changes_no_number_may_differ():
    HEADER.require_same_run(changed(config={"model": "cnn", "k": 3, "out": "b.h5", "memory": "1"}))
    HEADER.require_same_run(changed(config={"model": "cnn", "k": 4}), {"k", "out"})
    HEADER.require_same_run(changed(digests={"parameters": "a", "data": "b"}))
    HEADER.require_same_run(changed(values={}, plan={}, work=Work()))
    # A problem given in Python has no name; its digests and sizes decide.
    HEADER.require_same_run(changed(config={"k": 3, "model": None}))
    changed(config={"k": 3}).require_same_run(changed(config={"k": 3, "problem": "my.py:make"}))


def test_an_option_that_the_run_is_older_than_had_its_default():
    options = {"model": "cnn", "k": 3, "width": 1.0, "dropout_rate": None}
    HEADER.require_same_run(changed(config=options))
    with pytest.raises(hs.InputError, match=r"cannot resume: --width was 1.0 and is now 0.5"):
        HEADER.require_same_run(changed(config={**options, "width": 0.5}))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_values_are_compared_relative_to_their_size(scale):
    header = changed(values={"loss": 2.0 * scale})
    header.require_same_values({"loss": 2.0 * scale * (1 + 1e-10), "more": 1.0}, torch.float64)
    header.require_same_values({}, torch.float64)
    with pytest.raises(hs.InputError, match="the loss was"):
        header.require_same_values({"loss": 2.0 * scale * (1 + 1e-8)}, torch.float64)
    header.require_same_values({"loss": 2.0 * scale * (1 + 1e-6)}, torch.float32)
