"""Submission of a job script to SLURM."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.submission import SubmitConfig
from hessian_spectrum.config.training import STATE, TrainConfig
from hessian_spectrum.slurm import preflight
from hessian_spectrum.slurm.job_array import of_task
from hessian_spectrum.slurm.job_script import merge_script, output_of, script


def submit(config: SubmitConfig, submitted: Any, command: Sequence[str]) -> str:
    """Write the scripts into the folder of the logs and submit them from the current folder.

    The folders of the results are made. Of an array with a summary, a second job merges the results
    when all tasks have ended, however they ended.

    Args:
        submitted: the configuration of the command, which was checked.
        command: its words.

    Returns:
        A line with the job's number, the script and the folder of the logs; with ``dry_run`` the
        scripts, of which nothing is written or submitted.

    Raises:
        InputError: a job that could not run: see ``job_script.script``; a file that is missing, or
            a folder that cannot be made; there is no sbatch, or it refuses the job.
    """
    checkpoints = [str(path) for path in config.checkpoints]
    # The state of a finished density, kept to extend it, would be as much again for each task.
    states = hasattr(submitted, "keep_state") and not _has(command, "--keep-state")
    if checkpoints and states:
        command = [*command, "--keep-state", "never"]
    text = script(config, command, checkpoints, config.at_once)
    merging = ""
    if config.summary is not None:
        merging = merge_script(config, command, checkpoints, str(config.summary))
    if config.dry_run:
        return (f"{text}\n\n{merging}" if merging else text).removesuffix("\n")
    _require_sbatch(config)
    preflight.check_files(submitted, checkpoints)
    out = output_of(command) or ""
    results = [of_task(out, checkpoint) for checkpoint in checkpoints] or [out]
    summary = [config.summary] if config.summary else []
    logs = Path(config.logs)  # SLURM writes no log into a missing folder
    path = logs / f"{config.name}.sbatch"
    preflight.make_folders([path, *(_file_in(submitted, result) for result in results), *summary])
    job = _queued(path, text)
    said = f"submitted {job}: {path}, logs in {logs}"
    if not merging:
        return said
    path = logs / f"{config.name}-merge.sbatch"
    after = _queued(path, merging, f"--dependency=afterany:{job}")
    return f"{said}\nsubmitted {after}, after {job}: {path}, which merges into {config.summary}"


def with_joined_options(words: Sequence[str]) -> list[str]:
    """``--sbatch --qos=long`` -> ``--sbatch=--qos=long``: a value that looks like an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in ("--sbatch", "--srun"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _file_in(submitted: Any, out: str) -> Path:
    """A file that the command writes: OUT, or one in that folder."""
    return Path(out, STATE) if isinstance(submitted, TrainConfig) else Path(out)


def _has(command: Sequence[str], option: str) -> bool:
    spellings = (option, option.replace("-", "_").replace("__", "--", 1))
    return any(word.partition("=")[0] in spellings for word in command)


def _require_sbatch(config: SubmitConfig) -> None:
    if config.launcher == "mpirun":
        raise InputError(
            "--launcher mpirun makes a script for a cluster without SLURM; write it to a file with "
            "--dry-run, and start that file by your batch system's own command"
        )
    if shutil.which("sbatch") is None:
        raise InputError(
            "there is no sbatch on this machine; submit on a login node, or use --dry-run"
        )


def _queued(path: Path, text: str, *options: str) -> str:
    """The number of the job, once it is queued."""
    path.write_text(text)
    words = ["sbatch", "--parsable", *options, str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"sbatch refused {path}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]
