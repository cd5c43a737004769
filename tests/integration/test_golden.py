"""Reference runs give the numbers of the version that recorded them; its files still open.

Bit for bit they are compared by hand, on one machine (tests/golden/runs.py compare); here to a
tolerance that no processor's rounding reaches.
"""

import shutil

import h5py
import numpy as np
import pytest
import reference_runs
from reference_runs import DOUBLE, HERE, PRODUCTS, RUNS

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main

# What has no sign or order of its own: vectors and the entries of T have.
COMPARED = ("nodes", "weights", "values", "loss", "accuracy", "eigenvalues", "alignment", "largest")
TOLERANCE = {True: 1e-9, False: 1e-4}  # of the largest entry; measured across threads: 3e-14, 8e-7
SCHEMA1 = sorted((HERE / "schema1").glob("*.h5"))


@pytest.fixture(scope="module")
def recorded():
    return reference_runs.recorded()


@pytest.mark.parametrize("name", RUNS)
def test_a_reference_run_gives_the_recorded_numbers(name, recorded, tmp_path):
    out = tmp_path / "run.h5"
    assert main([*RUNS[name], "--out", str(out)]) == 0
    double, found = DOUBLE[1] in RUNS[name], reference_runs.numbers(out)
    compared = 0
    for path, expected in recorded[name, 1].items():
        if path == PRODUCTS:
            if double:  # in float32 rounding may decide when a residual is small enough
                np.testing.assert_array_equal(found[path], expected)
        elif path.rpartition("/")[2] in COMPARED and path in found and expected.size:
            finite = np.isfinite(expected)
            assert (np.isfinite(found[path]) == finite).all()
            error = np.abs(found[path] - expected)[finite].max(initial=0.0)
            assert error <= TOLERANCE[double] * np.abs(expected[finite]).max(initial=0.0), path
            compared += 1
    assert compared


def test_every_run_is_recorded_on_one_rank_and_two(recorded):
    assert set(recorded) == {(name, ranks) for name in RUNS for ranks in (1, 2)}


@pytest.mark.parametrize("path", SCHEMA1, ids=lambda path: path.stem)
def test_files_of_the_first_version_open(path, tmp_path):
    with hs.open(path) as run, h5py.File(path, locking=False) as file:
        assert run.finished and len(run) > 0
        for kind, name in (("density", "nodes"), ("eigenpairs", "values")):
            if kind in run:
                stored = file[f"{kind}/main/{name}"][()]
                np.testing.assert_array_equal(getattr(run[kind], name), stored)


@pytest.mark.parametrize(
    "name, options",
    [
        ("density", ["--num-steps", "6"]),
        ("slq", ["--num-steps", "6"]),
        ("eigenpairs", ["--max-products", "400"]),
        ("alignment", ["--batch-sizes", "10", "full"]),
    ],
)
def test_runs_of_the_first_version_are_extended(name, options, tmp_path):
    """As a straight run of today: the saved state is all that a run goes on from."""
    source = HERE / "schema1" / f"{name}.h5"
    shutil.copy(source, tmp_path / "old.h5")
    if source.with_name(f"{name}.h5.d").exists():
        shutil.copytree(source.with_name(f"{name}.h5.d"), tmp_path / "old.h5.d")
    with hs.open(source) as run:
        words = run.provenance["command"][1:]
    words = words[: words.index("--out")]
    for flag in (word for word in options if word.startswith("--")):  # given anew
        where = words.index(flag)
        del words[where : where + 2]
    assert main([*words, *options, "--out", str(tmp_path / "old.h5"), "--resume"]) == 0
    assert main([*words, *options, "--out", str(tmp_path / "new.h5")]) == 0
    old, new = (reference_runs.numbers(tmp_path / f"{which}.h5") for which in ("old", "new"))
    for path, expected in new.items():
        if path.rpartition("/")[2] in COMPARED and expected.size:
            error = np.abs(old[path] - expected)[np.isfinite(expected)].max(initial=0.0)
            assert error <= 1e-9 * np.abs(expected[np.isfinite(expected)]).max(), path
