"""Ranks that die, hang or bring NaNs: the job ends soon, and one line names the rank."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from launching import TORCHRUN, launch, mpirun
from locations import HELPERS, ROOT

import hessian_spectrum as hs

PROBLEM = HELPERS / "faulty.py"
SILENCE = 8.0  # seconds that the others wait for a rank here
ANSWER = 5.0  # seconds that they take to find out which it is, and to say it
TORCHRUN_WAITS = 30.0  # seconds that torchrun leaves to a rank which it has asked to end
SLACK = 20.0  # seconds, for a machine that has other work to do


def command(folder, *options, pause=0.01, mode="reverse", num_steps=40):
    steps = ["--num-probes", "3", "--num-steps", str(num_steps), "--batch-size", "8", "--hvp", mode]
    job = ["-m", "hessian_spectrum", "density", "--problem", f"{PROBLEM}:make", *steps]
    job += ["--problem-arg", f"pause={pause}", f"pids={folder}", "--device", "cpu"]
    job += ["--checkpoint-minutes", "0", "--timeout-minutes", str(SILENCE / 60), "--resume"]
    return [*job, "--out", str(folder / "run.h5"), *options]


def srun(*options):
    if shutil.which("srun") is None or "SLURM_CONF" not in os.environ:
        pytest.skip("no SLURM here")
    return ["srun", *options, sys.executable]


def start(launcher, folder, *options, **sizes):
    launchers = {
        "torchrun": lambda: [*TORCHRUN, "3"],
        "restarts": lambda: [*TORCHRUN, "3", "--max-restarts", "2"],
        "mpi": lambda: mpirun(3),
        "srun": lambda: srun("--ntasks=3"),
    }
    job = [*launchers[launcher](), *command(folder, *options, **sizes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(job, env=environment, **streams)


def strike(process, folder, victim, number):
    """Send it to that rank as soon as the run has something to go on from."""
    while not (folder / "run.h5").exists():  # the state was saved before it
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(int((folder / f"{victim}.pid").read_text()), number)
    return time.monotonic()


def said(text):
    return [line for line in text.splitlines() if "hessian-spectrum:" in line]


def check_dead(folder):
    for path in folder.glob("*.pid"):
        deadline = time.monotonic() + 5
        while Path("/proc", path.read_text()).exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not Path("/proc", path.read_text()).exists(), path


def check_end(launcher, folder, victim, number, within):
    process = start(launcher, folder)
    before = strike(process, folder, victim, number)
    text, _ = process.communicate(timeout=within + 60)
    assert time.monotonic() - before < within
    assert process.returncode not in (0, None)
    check_dead(folder)
    with hs.open(folder / "run.h5") as run:
        assert not run.finished and len(run["density"].nodes)
    return text


@pytest.mark.slow
def test_torchrun_goes_on_by_itself_after_a_rank_was_killed(tmp_path):
    process = start("restarts", tmp_path)
    strike(process, tmp_path, 1, signal.SIGKILL)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    lines = said(text)
    assert len(lines) == 1 and "rank 1 of 3 does not answer: killed" in lines[0]
    job = command(tmp_path, "--out", str(tmp_path / "straight.h5"), pause=0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *job], check=True, env=environment, capture_output=True)
    with hs.open(tmp_path / "run.h5") as run, hs.open(tmp_path / "straight.h5") as straight:
        assert run.finished
        assert run.plan["num_steps"] == straight.plan["num_steps"]
        t = straight["density"].grid()
        expected = straight["density"].density(t)
        assert np.abs(run["density"].density(t) - expected).max() < 1e-9 * expected.max()


def test_the_rank_that_brings_a_nan_is_named(tmp_path):
    # The forward mode calls the model in each product.
    options = ["--problem-arg", "nan_on=1", "good=60"]
    process = start("torchrun", tmp_path, *options, mode="forward", num_steps=12)
    text, _ = process.communicate(timeout=100)
    (line,) = said(text)
    assert "a product with the operator is not finite on rank 1 of 3 at block step" in line
    assert process.returncode == 1
    check_dead(tmp_path)
    with hs.open(tmp_path / "run.h5") as run:  # what was finished before
        assert not run.finished and len(run["density"].nodes)


def test_a_rank_that_runs_out_of_memory_ends_the_job_and_is_named(tmp_path):
    options = ["--problem-arg", "oom_on=1", "good=60"]
    process = start("torchrun", tmp_path, *options, mode="forward", num_steps=12)
    text, _ = process.communicate(timeout=100)
    lines = said(text)
    assert lines and all("rank 1 of 3: CUDA out of memory" in line for line in lines)
    assert process.returncode == 1
    check_dead(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("launcher", ["torchrun", "mpi", "srun"])
def test_a_rank_that_dies_ends_the_job(launcher, victim, tmp_path):
    text = check_end(launcher, tmp_path, victim, signal.SIGKILL, ANSWER + SLACK)
    lines = said(text)
    if launcher == "mpi" and not lines:  # mpiexec may be faster: it kills the others, and says this
        assert re.search("KILLED BY SIGNAL: 9|Killed .signal 9", text), text
    else:
        (line,) = lines
        assert f"rank {victim} of 3 does not answer: killed" in line


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("launcher", ["torchrun", "mpi", "srun"])
def test_a_rank_that_hangs_ends_the_job(launcher, victim, tmp_path):
    within = SILENCE + ANSWER + SLACK + (TORCHRUN_WAITS if launcher == "torchrun" else 0)
    text = check_end(launcher, tmp_path, victim, signal.SIGSTOP, within)
    (line,) = said(text)
    assert f"rank {victim} of 3 does not answer: killed (out of memory?), frozen" in line


@pytest.fixture(scope="module")
def joining(tmp_path_factory):
    """What became of ranks that do not come, or are lost before all have met."""
    folder = tmp_path_factory.mktemp("joining")
    launch([sys.executable, str(PROBLEM.with_name("joining_worker.py")), str(folder)], folder)
    return json.loads((folder / "joining.json").read_text())


@pytest.mark.parametrize(
    ("case", "lines", "who"),
    [
        ("1 never comes", 1, "rank 1 of 3 has not come within 2.4 s: killed, never started"),
        ("0 never comes", 2, "rank 0 of 3 does not answer at 127.0.0.1:"),  # nobody to ask
        ("only 2 comes", 1, "rank 0 of 3 does not answer at 127.0.0.1:"),
        ("1 is killed", 1, "rank 1 of 3 does not answer: killed (out of memory?)"),
        ("0 is killed", 1, "rank 0 of 3 does not answer: killed (out of memory?)"),
        ("2 is frozen", 1, "rank 2 of 3 does not answer: killed (out of memory?), frozen"),
        ("0 is killed at its first task", 1, "rank 0 of 3 does not answer: killed"),
    ],
)
def test_ranks_that_have_not_met_wait_no_longer_than_they_were_told(joining, case, lines, who):
    found = joining[case]
    assert set(found["codes"]) == {75} and found["code"] == "75"
    text = found["said"].splitlines()
    assert len(text) - 2 * ("task" in case) == lines, text  # before its tasks: what they cost
    assert all(f"hessian-spectrum: {who}" in line for line in text[-lines:])
    assert found["seconds"] < 2 * 2.4 + ANSWER + SLACK  # measured: 4 and 9


@pytest.mark.parametrize("instead", ["sleep 60", "exit 3"])
def test_a_rank_that_mpi_waits_for_in_vain_ends_the_job(instead, tmp_path):
    """One that never calls MPI: the library waits for ever, and keeps Python's other threads."""
    script = f'if [ "$PMI_RANK$OMPI_COMM_WORLD_RANK" = 1 ]; then {instead}; else exec "$@"; fi'
    job = [*mpirun(2)[:-1], "sh", "-c", script, "sh", sys.executable, *command(tmp_path)]
    job[job.index("--timeout-minutes") + 1] = str(1 / 60)
    before, code = time.monotonic(), tmp_path / "code"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HESSIAN_SPECTRUM_EXIT": str(code)}
    done = subprocess.run(job, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and code.read_text() == "75"
    (line,) = said(done.stderr)
    assert "the 2 ranks have not met in MPI within 1 s: one was killed" in line
    assert time.monotonic() - before < 1 + SLACK  # measured: 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["density", "eigenpairs", "surface"])
def test_a_few_kills_lose_nothing(kind):
    """``python tests/kills.py --kills 50`` prints the table of many."""
    script = str(PROBLEM.with_name("kills.py"))
    job = [sys.executable, script, "--kinds", kind, "--kills", "4", "--seconds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(job, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    name, kills, _, _, _, readable, resumed, equal, worst = done.stdout.splitlines()[-1].split()
    assert (name, kills, readable, resumed, equal) == (kind, "4", "4", "4", "4")
    assert float(worst) < 1e-9
