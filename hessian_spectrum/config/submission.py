"""Options of the ``submit`` command: what a job asks of the batch system."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError

Launcher = Literal["srun", "torchrun", "mpirun"]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job requests from its batch system."""

    name: str = "hessian-spectrum"
    """Name of the job and of its logs."""
    launcher: Launcher = "srun"
    """What starts the ranks: srun or torchrun under SLURM; mpirun on a cluster without SLURM."""
    nodes: int = 1
    """Number of nodes."""
    ranks: int = 1
    """Ranks per node."""
    gpus: int = 0
    """GPUs per node: 0, or as many as RANKS."""
    cpus: int = 4
    """Processor cores per rank."""
    mem: str = "16G"
    """Memory per node."""
    minutes: int = 60
    """Time limit of one start. The job is requeued and resumes after it."""
    signal_seconds: int = 120
    """Seconds before the time limit at which the job saves and ends. Must exceed the time of one
    step and one save."""
    requeues: int = 20
    """How many times the job may be requeued."""
    partition: str | None = None
    """SLURM partition."""
    account: str | None = None
    """SLURM account."""
    logs: str = "logs"
    """Folder for the logs and the job script."""
    setup: tuple[str, ...] = ()
    """Shell lines for the start of the script, such as "module load python". Several values, or
    repeat the option. Default: put this Python first on the PATH."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        for field in ("nodes", "ranks", "cpus", "minutes"):
            if getattr(self, field) < 1:
                raise InputError(f"--{field} {getattr(self, field)}: expected 1 or more")
        for field in ("gpus", "requeues"):
            if getattr(self, field) < 0:
                raise InputError(f"--{field} {getattr(self, field)}: expected 0 or more")
        if not 1 <= self.signal_seconds < 60 * self.minutes:
            raise InputError(
                f"--signal-seconds {self.signal_seconds}: expected less than the time limit, "
                f"{60 * self.minutes} seconds"
            )
        if self.gpus not in (0, self.ranks):
            raise InputError(
                f"--gpus {self.gpus} on each node for --ranks {self.ranks}: one rank a GPU; make "
                "them equal, or leave --gpus out"
            )
        if not re.fullmatch(r"[\w.+-]+", self.name):
            raise InputError(f"--name {self.name!r}: expected letters, digits, '.', '+', '-', '_'")


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(Resources):
    """Submit a computing command to SLURM as a job that resumes until it is done.

    The command goes behind "--" and needs --out. Before the time limit the job saves its state,
    and is requeued. Writes the script into LOGS, submits it, and prints the job's number.

        hessian-spectrum submit --gpus 1 -- density --problem mine.py:make --out run.h5
    """

    checkpoints: tuple[Path, ...] = ()
    """Submit a job array with one task for each of these files. In the command, {checkpoint} stands
    for its path and {name} for its name without suffix: --checkpoint {checkpoint} --out
    'spectra/{name}.h5'."""
    summary: Path | None = None
    """File into which each task of an array merges its result."""
    dry_run: bool = False
    """Print the job script and submit nothing."""
