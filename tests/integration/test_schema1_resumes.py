"""Files that an earlier version has written (tests/golden/schema1) are resumed by this one."""

import shutil

import numpy as np
import pytest
from command_line import replaced
from locations import ROOT

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main

SCHEMA1 = ROOT / "tests" / "golden" / "schema1"


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command_of(name):
    """The words that wrote a file, without the place of its result; as it is, in this folder."""
    shutil.copy(SCHEMA1 / f"{name}.h5", ".")
    if (SCHEMA1 / f"{name}.h5.d").exists():
        shutil.copytree(SCHEMA1 / f"{name}.h5.d", f"{name}.h5.d")
    with hs.open(f"{name}.h5") as run:
        words = run.provenance["command"][1:]
    return words[: words.index("--out")]


def resumed_and_straight(name, words):
    assert main([*words, "--out", f"{name}.h5", "--resume"]) == 0
    assert main([*words, "--out", "straight.h5"]) == 0
    found = []
    for path in (f"{name}.h5", "straight.h5"):
        with hs.open(path) as run:
            assert run.finished
            found.append((run.plan, {key: run[key] for key in run if key != "values"}))
    return found


@pytest.mark.parametrize("name", ["density", "slq"])
def test_a_density_is_extended_to_the_bits_of_a_straight_run(name):
    """Of that many steps: to rounding on a processor other than the one that wrote the file."""
    words = replaced(command_of(name), "--num-steps", "7")
    with hs.open(f"{name}.h5") as run:
        before = run["density"]
        assert run.plan["num_steps"] == 4
    (plan, resumed), (_, straight) = resumed_and_straight(name, words)
    assert plan["num_steps"] == 7
    found, expected = resumed["density"], straight["density"]
    assert found.rules[0].num_steps == 7 > before.rules[0].num_steps
    exact = _same_processor(before, replaced(words, "--num-steps", "4"))
    for mine, other in zip(_arrays(found), _arrays(expected), strict=True):
        if exact:
            np.testing.assert_array_equal(mine, other)
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12)


def _arrays(measure):
    arrays = [measure.nodes, measure.weights, measure.residuals]
    arrays += [part for rule in measure.rules for part in (rule.t, rule.first, rule.out)]
    if measure.replicates is not None:
        arrays += [measure.replicates.nodes, measure.replicates.weights]
    return arrays


def _same_processor(before, words):
    """Does this one round as that one did? Then the same steps give the same bits."""
    assert main([*words, "--out", "again.h5"]) == 0
    with hs.open("again.h5") as run:
        pairs = zip(_arrays(run["density"]), _arrays(before), strict=True)
        return all(np.array_equal(mine, other) for mine, other in pairs)


def test_eigenpairs_that_a_bound_left_open_converge():
    words = command_of("eigenpairs")
    with hs.open("eigenpairs.h5") as run:
        assert not run["eigenpairs"].converged.all()
    (_, resumed), (_, straight) = resumed_and_straight(
        "eigenpairs", replaced(words, "--max-products", "2000")
    )
    found, expected = resumed["eigenpairs"], straight["eigenpairs"]
    assert found.converged.all()
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-12)


def test_an_alignment_gets_another_batch_size():
    words = replaced(command_of("alignment"), "--batch-sizes", "20")
    with hs.open("alignment.h5") as run:
        before = run["alignment"]
    assert main([*words, "--out", "alignment.h5", "--resume"]) == 0
    assert main([*replaced(words, "--batch-sizes", "10", "20"), "--out", "straight.h5"]) == 0
    with hs.open("alignment.h5") as run, hs.open("straight.h5") as straight:
        found, expected = run["alignment"], straight["alignment"]
    assert found.batch_sizes.tolist() == [10, 20]
    np.testing.assert_array_equal(found.alignment[0], before.alignment[0])
    np.testing.assert_allclose(found.alignment, expected.alignment, rtol=1e-9)
    np.testing.assert_allclose(found.captured, expected.captured, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("density", ("--limit", "100"), "--limit was 101 and is now 100"),
        ("slq", ("--estimator", "block"), "--estimator was 'slq' and is now 'block'"),
        ("eigenpairs", ("--k", "3"), "--k was 2 and is now 3"),
        ("alignment", ("--num-batches", "4"), "--num-batches was 3 and is now 4"),
        ("map", ("--x-points", "4"), "is not what an interrupted map has left|finished"),
    ],
)
def test_another_question_is_refused_and_leaves_the_file(name, change, message, capsys):
    import re

    words = replaced(command_of(name), *change)
    before = (SCHEMA1 / f"{name}.h5").read_bytes()
    assert main([*words, "--out", f"{name}.h5", "--resume"]) == 2
    assert re.search(message, capsys.readouterr().err)
    with open(f"{name}.h5", "rb") as file:
        assert file.read() == before
