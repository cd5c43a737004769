"""The header of a run: the same from a manifest and from a result file, and what it refuses."""

import dataclasses
import json
import re

import pytest
import torch
from locations import ROOT

import hessian_spectrum as hs
from hessian_spectrum.commands.header import (
    FREE_FIELDS,
    HEADER_KEYS,
    ProblemSize,
    RunHeader,
    Work,
)
from hessian_spectrum.config import DensityConfig, defaults, to_dict
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
    beside.require_same_run(dataclasses.replace(inside, config=beside.config), {}, FREE_FIELDS)


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
        HEADER.require_same_run(now, {}, FREE_FIELDS)


def test_what_changes_no_number_may_differ():
    HEADER.require_same_run(
        changed(config={"model": "cnn", "k": 3, "out": "b.h5", "memory": "1"}), {}, FREE_FIELDS
    )
    HEADER.require_same_run(changed(config={"model": "cnn", "k": 4}), {}, {"k", "out"})
    HEADER.require_same_run(changed(digests={"parameters": "a", "data": "b"}), {}, FREE_FIELDS)
    HEADER.require_same_run(changed(values={}, plan={}, work=Work()), {}, FREE_FIELDS)
    # A problem given in Python has no name; its digests and sizes decide.
    HEADER.require_same_run(changed(config={"k": 3, "model": None}), {}, FREE_FIELDS)
    named = changed(config={"k": 3, "problem": "my.py:make"})
    changed(config={"k": 3}).require_same_run(named, {}, FREE_FIELDS)


def test_an_option_that_the_run_is_older_than_had_its_default():
    given = to_dict(DensityConfig(out="run.h5", model="cnn"))
    written = {name: given[name] for name in ("out", "model")}  # a run older than all others
    before, options = changed(config=written), defaults(DensityConfig)
    before.require_same_run(changed(config=given), options, FREE_FIELDS)
    for name, value in {"width": 0.5, "blocks": ["layers"], "num_steps": 7}.items():
        now = changed(config={**given, name: value})
        was = f"cannot resume: --{name.replace('_', '-')} was {given[name]!r} and is now {value!r}"
        with pytest.raises(hs.InputError, match=re.escape(was)):
            before.require_same_run(now, options, FREE_FIELDS)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_values_are_compared_relative_to_their_size(scale):
    header = changed(values={"loss": 2.0 * scale})
    header.require_same_values({"loss": 2.0 * scale * (1 + 1e-10), "more": 1.0}, torch.float64)
    header.require_same_values({}, torch.float64)
    with pytest.raises(hs.InputError, match="the loss was"):
        header.require_same_values({"loss": 2.0 * scale * (1 + 1e-8)}, torch.float64)
    header.require_same_values({"loss": 2.0 * scale * (1 + 1e-6)}, torch.float32)
