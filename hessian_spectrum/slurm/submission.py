"""A job script, handed to the batch system."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.submission import Resources


def submit(text: str, resources: Resources) -> str:
    """Write the script beside its logs and sbatch it from here; what to say about it.

    Raises:
        InputError: there is no sbatch, or it refuses the job.
    """
    if resources.launcher == "mpirun":
        raise InputError(
            "--launcher mpirun makes a script for a cluster without SLURM: write it to a file by "
            "--dry-run, and start that as your batch system says"
        )
    if shutil.which("sbatch") is None:
        raise InputError("no sbatch here: submit on a cluster's login node, or use --dry-run")
    logs = Path(resources.logs)  # SLURM writes no log where the folder is not there
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{resources.name}.sbatch"
    path.write_text(text)
    done = subprocess.run(["sbatch", "--parsable", path], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"sbatch refuses {path}: {' '.join(done.stderr.split())}")
    return f"submitted {done.stdout.strip().partition(';')[0]}: {path}, logs in {logs}"
