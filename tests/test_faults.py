"""Ranks that die, hang or bring NaNs: the job ends soon, and one line names the rank."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_distributed import TORCHRUN, mpirun

import hessian_spectrum as hs

PROBLEM = Path(__file__).with_name("faulty.py")
SILENCE = 8.0  # seconds that the others wait for a rank here
ANSWER = 5.0  # seconds that they take to find out which it is, and to say it
TORCHRUN_WAITS = 30.0  # seconds that torchrun leaves to a rank which it has asked to end
SLACK = 20.0  # seconds, for a machine that has other work to do


def command(folder, *options, pause=0.01):
    steps = ["--num-probes", "3", "--num-steps", "40", "--batch-size", "8", "--hvp", "reverse"]
    job = ["-m", "hessian_spectrum", "density", "--problem", f"{PROBLEM}:make", *steps]
    job += ["--problem-arg", f"pause={pause}", f"pids={folder}", "--device", "cpu"]
    job += ["--checkpoint-minutes", "0", "--timeout-minutes", str(SILENCE / 60), "--resume"]
    return [*job, "--out", str(folder / "run.h5"), *options]


def srun(*options):
    if shutil.which("srun") is None or "SLURM_CONF" not in os.environ:
        pytest.skip("no SLURM here")
    return ["srun", *options, sys.executable]


def start(launcher, folder, *options):
    launchers = {
        "torchrun": lambda: [*TORCHRUN, "3"],
        "restarts": lambda: [*TORCHRUN, "3", "--max-restarts", "2"],
        "mpi": lambda: mpirun(3),
        "srun": lambda: srun("--ntasks=3"),
    }
    job = [*launchers[launcher](), *command(folder, *options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(job, env=environment, **streams)


def strike(process, folder, victim, number):
    """Send it to that rank as soon as the run has something to go on from."""
    while not (folder / "run.h5.d" / "manifest.json").exists():
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
    options = ["--hvp", "forward", "--num-steps", "12", "--problem-arg", "nan_on=1", "good=28"]
    process = start("torchrun", tmp_path, *options)
    text, _ = process.communicate(timeout=100)
    (line,) = said(text)
    assert "a product with the operator is not finite on rank 1 of 3 at block step" in line
    assert process.returncode == 1
    check_dead(tmp_path)
    with hs.open(tmp_path / "run.h5") as run:  # what was finished before
        assert not run.finished and len(run["density"].nodes)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("launcher", ["torchrun", "mpi", "srun"])
def test_a_rank_that_dies_ends_the_job(launcher, victim, tmp_path):
    text = check_end(launcher, tmp_path, victim, signal.SIGKILL, ANSWER + SLACK)
    if launcher == "mpi":  # MPICH's mpiexec is faster: it kills the others, and says this
        assert f"RANK {victim} PID" in text and "KILLED BY SIGNAL: 9" in text
    else:
        (line,) = said(text)
        assert f"rank {victim} of 3 does not answer: killed" in line


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("launcher", ["torchrun", "mpi", "srun"])
def test_a_rank_that_hangs_ends_the_job(launcher, victim, tmp_path):
    within = SILENCE + ANSWER + SLACK + (TORCHRUN_WAITS if launcher == "torchrun" else 0)
    text = check_end(launcher, tmp_path, victim, signal.SIGSTOP, within)
    (line,) = said(text)
    assert f"rank {victim} of 3 does not answer: killed (out of memory?), frozen" in line
