"""Submission of a job script to SLURM."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.submission import Resources


def submit(text: str, resources: Resources) -> str:
    """Write the script into the folder of the logs and submit it from the current folder.

    Returns:
        A line with the job's number, the script and the folder of the logs.

    Raises:
        InputError: there is no sbatch, or it refuses the job.
    """
    if resources.launcher == "mpirun":
        raise InputError(
            "--launcher mpirun makes a script for a cluster without SLURM; write it to a file with "
            "--dry-run, and start that file by your batch system's own command"
        )
    if shutil.which("sbatch") is None:
        raise InputError(
            "there is no sbatch on this machine; submit on a login node, or use --dry-run"
        )
    logs = Path(resources.logs)  # SLURM writes no log into a missing folder
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{resources.name}.sbatch"
    path.write_text(text)
    done = subprocess.run(["sbatch", "--parsable", path], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"sbatch refused {path}: {' '.join(done.stderr.split())}")
    return f"submitted {done.stdout.strip().partition(';')[0]}: {path}, logs in {logs}"
