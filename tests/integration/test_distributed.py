"""One process and several give the same numbers, under every launcher that is here."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from launching import LAUNCHERS, TORCHRUN, launch, mpirun
from locations import HELPERS, ROOT

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main

WORKER = HELPERS / "ranks_worker.py"


@pytest.fixture(scope="module")
def worker():
    import ranks_worker

    return ranks_worker


@pytest.fixture(scope="module")
def alone(worker):
    return worker.compute(hs.World())


@pytest.fixture(scope="module")
def saved(worker, tmp_path_factory):
    """A folder with states of one process, and what it makes of them."""
    folder = tmp_path_factory.mktemp("saved")
    worker.save(hs.World(), folder)
    return folder, worker.resume(hs.World(), folder)


def check_equal(found, expected, tolerance=1e-9):
    """The same numbers, case by case, up to the rounding of other sums."""
    for case, quantities in expected.items():
        for quantity, value in quantities.items():
            if quantity == "data":
                assert found[case][quantity] == value  # the digest: whoever holds what
                continue
            peak = np.abs(value).max()
            error = np.abs(np.array(found[case][quantity]) - value).max()
            assert error <= tolerance * peak + 1e-300, (case, quantity)  # measured: 1e-12 and less


def check_failures(heard, ranks):
    """One rank's failure is everyone's, under its number; ranks that disagree are named."""
    last, others = f"rank {ranks - 1} of {ranks}: ", ranks - 1
    assert heard["input"] == others * [["InputError", f"{last}too small", "NoneType"]] + [
        ["InputError", f"{last}too small", "InputError"]
    ]
    strange = f"{last}Strange: ('layer 3', 7)"
    assert heard["strange"] == others * [["RuntimeError", strange, "NoneType"]] + [
        ["RuntimeError", strange, "Strange"]  # where it happened, with its traceback
    ]
    assert heard["all strange"] == ranks * [["Strange", "('layer 3', 7)", "NoneType"]]
    assert [kind for kind, _, _ in heard["system"]] == ranks * ["FileNotFoundError"]
    for case, other, what in (
        ("own seed", 1, "models (parameters, buffers or their names)"),
        ("buffer", ranks - 1, "models (parameters, buffers or their names)"),
        ("theta", ranks - 1, "vectors theta"),
    ):
        kind, text, _ = heard[case][0]
        assert heard[case] == ranks * [heard[case][0]]
        assert kind == "InputError"
        assert text.startswith(f"rank {other} and rank 0 hold different {what}; ")
    for kind, text, _ in heard["no room"]:
        assert (kind, text.startswith(last), "nowhere: cannot hold" in text) == (
            "InputError",
            True,
            True,
        )


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        *[pytest.param("torchrun", ranks, marks=pytest.mark.slow) for ranks in (2, 4)],
        ("torchrun", 3),
        *[pytest.param("mpi", ranks, marks=pytest.mark.slow) for ranks in (2, 3, 4)],
        pytest.param("slurm", 2, marks=pytest.mark.slurm),
        *[
            pytest.param("slurm", ranks, marks=[pytest.mark.slow, pytest.mark.slurm])
            for ranks in (3, 4)
        ],
    ],
)
def test_every_number_is_that_of_one_process(launcher, ranks, worker, alone, saved, tmp_path):
    launch([*LAUNCHERS[launcher](ranks), str(WORKER), str(tmp_path), str(saved[0])], tmp_path)
    several = json.loads((tmp_path / "results.json").read_text())

    assert several["world"] == [ranks, launcher]
    assert several["local sizes"] == ranks * [[ranks, ranks]]
    check_failures(several["failures"], ranks)
    check_equal(several["results"], alone)

    n, entries = several["basis"]  # the basis is shared out, not copied
    chunk = -(-n // ranks)
    assert entries == [2 * 10 * max(0, min(chunk, n - r * chunk)) for r in range(ranks)]

    # States that one process saved, taken up by several, and the other way round.
    check_equal(several["resumed"], saved[1])
    check_equal(worker.resume(hs.World(), tmp_path / "state"), saved[1])


def test_a_resumed_run_is_the_straight_one(worker, saved):
    operator = worker.hessian("mlp", 10, hs.World())
    straight = {
        estimator: worker.described(hs.spectral_density(operator, 3, 12, estimator=estimator))
        for estimator in ("block", "slq", "lean")
    }
    assert saved[1] == straight  # every bit


ZOO = ["density", "--model", "mlp-64-6-10", "--dataset", "digits", "--limit", "50"]
RUN = [*ZOO, "--dtype", "float64", "--num-probes", "3", "--num-steps", "20", "--batch-size", "16"]


@pytest.fixture(scope="module")
def run_alone(tmp_path_factory):
    """The density that one process writes."""
    path = tmp_path_factory.mktemp("alone") / "alone.h5"
    assert main([*RUN, "--out", str(path)]) == 0
    with hs.open(path) as run:
        return run["density"]


@pytest.mark.parametrize(("name", "ranks"), [("torchrun", 3), ("mpi", 2)])
def test_the_command_line_under_torchrun_and_mpirun(name, ranks, run_alone, tmp_path):
    start = [*TORCHRUN, str(ranks)] if name == "torchrun" else mpirun(ranks)
    program = [*start, "-m", "hessian_spectrum", *RUN, "--out", "run.h5"]
    launch(program, tmp_path)
    t = run_alone.grid(1e-5, 3000)
    expected = run_alone.density(t, 1e-5)
    with hs.open(tmp_path / "run.h5") as run:
        assert (run.provenance["world_size"], run.provenance["launcher"]) == (ranks, name)
        difference = np.abs(run["density"].density(t, 1e-5) - expected)
    assert difference.max() <= 1e-9 * expected.max()  # measured: 1e-13
    if name == "mpi":  # one line of error, from one rank
        failed = launch(program, tmp_path, expected=2)
        assert failed.stderr.count("exists already") == 1


def test_mpi4py_is_imported_only_under_an_mpi_launcher():
    script = (
        "import hessian_spectrum as hs, sys; hs.distributed.start();"
        "sys.exit('mpi4py' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
