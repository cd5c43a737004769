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
    """What a job asks its batch system for."""

    name: str = "hessian-spectrum"
    """Of the job, and of its logs."""
    launcher: Launcher = "srun"
    """What starts the ranks: srun or torchrun under SLURM; mpirun on a cluster without it."""
    nodes: int = 1
    """Nodes."""
    ranks: int = 1
    """Ranks on each node."""
    gpus: int = 0
    """GPUs on each node: none, or one for each rank."""
    cpus: int = 4
    """Processors of each rank."""
    mem: str = "16G"
    """Memory on each node."""
    minutes: int = 60
    """Time limit of one start; the job goes on after it."""
    signal_seconds: int = 120
    """How long before the limit the job saves and ends; more than a step and a save take."""
    requeues: int = 20
    """How often the job may be started again."""
    partition: str | None = None
    """SLURM's partition."""
    account: str | None = None
    """SLURM's account."""
    logs: str = "logs"
    """Folder of the logs."""
    setup: tuple[str, ...] = ()
    """Lines of shell for the script, such as "module load python"; several, or the option again.
    Default: this Python first on the PATH."""

    def check(self) -> None:
        """InputError for what no batch system grants."""
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
    """Submit a computing command to SLURM: submit [OPTIONS] -- density ... --out FILE. The job
    saves before its time limit and starts again until it is done."""

    checkpoints: tuple[Path, ...] = ()
    """A job array, one task for each of these files: in the command {checkpoint} is its path and
    {name} its name, as in --checkpoint {checkpoint} --out 'spectra/{name}.h5'."""
    summary: Path | None = None
    """A file into which each task of an array puts its result."""
    dry_run: bool = False
    """Print the script, and submit nothing."""
