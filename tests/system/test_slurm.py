"""Jobs on a real SLURM: time limits, requeues, arrays."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from locations import HELPERS, ROOT

import hessian_spectrum as hs

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
PROBLEM = HELPERS / "faulty.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _slurm():
    if shutil.which("sbatch") is None or "SLURM_CONF" not in os.environ:
        pytest.skip("no SLURM here, or SLURM_CONF does not say where")


def command_line(words, cwd):
    job = [sys.executable, "-m", "hessian_spectrum", *words]
    done = subprocess.run(job, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submitted(options, command, cwd, within):
    """The logs' texts of a job, when it is over."""
    options = ["--cpus", "1", "--mem", "1G", *shlex.split(options)]
    text = command_line(["submit", *options, "--", *command], cwd)
    job = text.split()[1].rstrip(":")
    deadline = time.monotonic() + within
    while subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline, f"job {job} is still there"
        time.sleep(1)
    return {path.name: path.read_text() for path in sorted((cwd / "logs").glob("*.log"))}


def job_log(logs):
    """Of the shell, not of a rank or a node."""
    return next(text for name, text in logs.items() if re.fullmatch(r".*-\d+\.log", name))


def slow(folder, out, pause):
    sizes = ["--num-probes", "3", "--num-steps", "40", "--batch-size", "8", "--hvp", "forward"]
    problem = ["--problem", f"{PROBLEM}:make", "--problem-arg", f"pause={pause}", "quick=60"]
    return ["density", *problem, *sizes, "--out", str(folder / out)]


def check_same(folder, name, other):
    with hs.open(folder / name) as run, hs.open(folder / other) as straight:
        assert run.finished
        t = straight["density"].grid()
        expected = straight["density"].density(t)
        assert np.abs(run["density"].density(t) - expected).max() < 1e-9 * expected.max()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_a_job_longer_than_its_limit_finishes_by_itself(tmp_path, launcher):
    shape = "--nodes 2 --ranks 1" if launcher == "srun" else "--launcher torchrun --ranks 2"
    limits = "--minutes 1 --signal-seconds 30 --requeues 12"
    logs = submitted(f"{shape} {limits}", slow(tmp_path, "run.h5", 1.5), tmp_path, 800)
    starts = job_log(logs).count(", restart ")
    assert 3 <= starts <= 13, logs
    command_line(slow(tmp_path, "straight.h5", 0), tmp_path)
    check_same(tmp_path, "run.h5", "straight.h5")


@pytest.mark.timeout(600)
def test_requeues_end_at_the_cap(tmp_path):
    limits = "--minutes 1 --signal-seconds 50 --requeues 1"
    logs = submitted(limits, slow(tmp_path, "run.h5", 3.0), tmp_path, 500)
    text = job_log(logs)
    assert text.count(", restart ") == 2 and "requeued 1 times already" in text
    assert not hs.open(tmp_path / "run.h5").finished if (tmp_path / "run.h5").exists() else True


@pytest.mark.timeout(900)
def test_an_array_over_checkpoints_fills_one_file(tmp_path):
    network = ["--model", "mlp-64-6-10", "--dataset", "digits", "--limit", "100"]
    command_line(["train", *network, "--epochs", "8", "--every", "1", "--out", "nets"], tmp_path)
    nets = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("nets/*.pt"))
    assert len(nets) == 8
    (tmp_path / "spectra").mkdir()
    command = ["density", *network, "--num-products", "30", "--checkpoint", "{checkpoint}"]
    command += ["--out", "spectra/{name}.h5"]
    options = f"--checkpoints {' '.join(nets)} --summary all.h5"
    submitted(options, command, tmp_path, 600)
    with hs.open(tmp_path / "all.h5") as run:
        assert set(run) >= {f"density/{Path(net).stem}" for net in nets}
        values = [run[f"values/{Path(net).stem}"]["loss"] for net in nets]
        assert values == sorted(values, reverse=True)  # training went on
    before = (tmp_path / "all.h5").stat().st_mtime
    logs = submitted(options, command, tmp_path, 600)  # again: nothing is computed twice
    assert sum("is finished already" in text for text in logs.values()) == 8
    assert (tmp_path / "all.h5").stat().st_mtime >= before
