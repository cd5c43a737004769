"""Launchers of several ranks, and a launch whose exit code is checked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from locations import ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def mpirun(ranks):
    beside = Path(sys.executable).with_name("mpiexec")
    program = str(beside) if beside.exists() else shutil.which("mpiexec")
    if program is None:
        pytest.skip("no mpiexec here; pip install '.[mpi]'")
    return [program, "-n", str(ranks), sys.executable]


def srun(ranks):
    if shutil.which("srun") is None or "SLURM_CONF" not in os.environ:
        pytest.skip("no SLURM here, or SLURM_CONF does not say where")
    return ["srun", f"--ntasks={ranks}", sys.executable]


LAUNCHERS = {
    "torchrun": lambda ranks: [*TORCHRUN, str(ranks)],
    "mpi": mpirun,
    "slurm": srun,
}


def launch(command, cwd, expected=0):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr[-3000:]
    return done
