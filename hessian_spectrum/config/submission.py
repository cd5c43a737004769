"""Options of the ``submit`` command: what a job asks of the batch system."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError

Launcher = Literal["srun", "torchrun", "mpirun"]

# sbatch's options that the script sets itself: what to use instead.
OWN_DIRECTIVES = {
    **{"job-name": "--name", "J": "--name", "nodes": "--nodes", "N": "--nodes"},
    **{"ntasks-per-node": "--ranks", "ntasks": "--ranks", "n": "--ranks"},
    **{"cpus-per-task": "--cpus", "c": "--cpus", "mem": "--mem"},
    **{"time": "--minutes", "t": "--minutes", "signal": "--signal-seconds"},
    **{"partition": "--partition", "p": "--partition", "account": "--account", "A": "--account"},
    **{"array": "--checkpoints", "a": "--checkpoints", "output": "--logs", "o": "--logs"},
    **{"requeue": "--requeues", "no-requeue": "--requeues 0", "open-mode": "nothing"},
}


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
    """How many times the job may be requeued. Two starts in a row that save nothing new end it
    earlier."""
    partition: str | None = None
    """SLURM partition."""
    account: str | None = None
    """SLURM account."""
    sbatch: tuple[str, ...] = ()
    """More options of sbatch, such as "--qos=long --constraint=a100". Repeat the option for more.
    One that asks for memory or GPUs in another way takes the place of MEM or GPUS."""
    srun: tuple[str, ...] = ()
    """More options of srun, which starts the ranks, such as "--mpi=pmix". Repeat the option for
    more."""
    logs: str = "logs"
    """Folder for the logs and the job script."""
    setup: tuple[str, ...] = ()
    """Shell lines for the start of the script, such as "module load cuda". Several values, or
    repeat the option."""
    python: str | None = None
    """Python that runs the job: a path, or a name that SETUP puts on the PATH. Default: this
    Python."""

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
        if not re.fullmatch(r"\d+([KMGT]B?)?", self.mem, re.ASCII | re.IGNORECASE):
            raise InputError(f"--mem {self.mem!r}: expected a number and K, M, G or T, as in 16G")
        for field in ("partition", "account", "logs"):
            _check_directive(field, getattr(self, field))
        for value in self.sbatch:
            _check_sbatch(value)
        for value in self.srun:
            _words_of("srun", value)


def _check_directive(field: str, value: str | None) -> None:
    """InputError unless sbatch reads the value as one word, and as it stands."""
    # A newline would put lines into the script; "%" is a pattern, "#" begins a comment.
    if value is not None and (not value.isprintable() or not re.fullmatch(r"[^\s\"'\\%#]+", value)):
        raise InputError(
            f"--{field} {value!r}: expected one word without control characters, quotes, '\\', "
            "'%' and '#'"
        )


def _check_sbatch(value: str) -> None:
    for word in _words_of("sbatch", value):
        name = option_name(word)
        if name in OWN_DIRECTIVES:
            instead = OWN_DIRECTIVES[name]
            raise InputError(f"--sbatch {word}: the script sets this itself; use {instead}")


def _words_of(field: str, value: str) -> list[str]:
    """The words of a value, which are options and their values, on one line."""
    if not value.isprintable() or "#" in value:
        raise InputError(f"--{field} {value!r}: expected one line without control characters or #")
    try:
        words = shlex.split(value)
    except ValueError as error:  # an open quote
        raise InputError(f"--{field} {value!r}: {error}") from None
    if not words or not words[0].startswith("-"):
        raise InputError(f'--{field} {value!r}: expected options, as in --{field} "--exclusive"')
    return words


def option_name(word: str) -> str:
    """``--mem=4G`` -> "mem", ``-p`` and ``-pgpu`` -> "p"; "" for a word that is no option."""
    if word.startswith("--"):
        return word[2:].partition("=")[0]
    return word[1:2] if word.startswith("-") else ""


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(Resources):
    """Submit a computing command to SLURM as a job that resumes until it is done.

    The command goes behind "--" and needs --out, whose folder is made. Before the time limit the
    job saves its state, and is requeued. Writes the script into LOGS, submits it, and prints the
    job's number. Files that the command names must exist.

        hessian-spectrum submit --gpus 1 -- density --problem mine.py:make --out run.h5
    """

    checkpoints: tuple[Path, ...] = ()
    """Submit a job array with one task for each of these files. In the command, {checkpoint} stands
    for its path and {name} for its name without suffix: --checkpoint {checkpoint} --out
    'spectra/{name}.h5'. A task of density keeps no state when it is finished, unless the command
    has --keep-state."""
    at_once: int | None = None
    """How many tasks of the array may run at the same time. Default: as many as SLURM grants."""
    summary: Path | None = None
    """File into which one more job merges the results of an array, when its tasks have ended. It
    names the results that are missing."""
    dry_run: bool = False
    """Print the job script, and that of the summary, and submit nothing."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        if self.at_once is not None and self.at_once < 1:
            raise InputError(f"--at-once {self.at_once}: expected 1 or more")
        for option, value in (("--at-once", self.at_once), ("--summary", self.summary)):
            if value is not None and not self.checkpoints:
                raise InputError(f"{option} belongs to a job array; add --checkpoints FILES")
