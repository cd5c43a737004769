"""Studies as a SLURM job array: each task runs a share of them, and a last job collects."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.suite.study import Scale


class NotSubmitted(RuntimeError):
    """There is no sbatch, or it refuses the job."""


def scripts(
    names: Sequence[str],
    scale: Scale,
    out: Path,
    tasks: int,
    sbatch: Sequence[str],
    options: Sequence[str],
) -> tuple[str, str]:
    """The script of the array, and that of the job that collects its results.

    Args:
        sbatch: lines for ``#SBATCH``, such as ``--time=1:00:00``.
        options: further words of ``python -m benchmarks run``.
    """
    out = out.resolve()
    python = shlex.quote(sys.executable)
    head = ["#!/bin/bash", *(f"#SBATCH {line}" for line in sbatch)]
    part = f"{shlex.quote(str(out))}/part-$SLURM_ARRAY_TASK_ID"
    words = shlex.join([*names, "--scale", scale, "--shared", str(out / "shared"), *options])
    root = shlex.quote(str(Path(__file__).resolve().parents[2]))
    run = [
        *head,
        f"#SBATCH --array=0-{tasks - 1}",
        f"#SBATCH --output={out}/task-%a.log",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",  # a requeued task goes on in its log
        f"cd {root}",
        f"{python} -m benchmarks run {words} --share $SLURM_ARRAY_TASK_ID/{tasks} --out {part}",
    ]
    parts = [str(out / f"part-{task}" / scale) for task in range(tasks)]
    collect = [
        *head,
        f"#SBATCH --output={out}/collect.log",
        f"cd {root}",
        f"{python} -m benchmarks collect {shlex.join([*parts, '--out', str(out / scale)])}",
    ]
    return "\n".join(run) + "\n", "\n".join(collect) + "\n"


def submit(array: str, collect: str, out: Path) -> str:
    """Write both scripts and queue them, the second after the first, however that ends.

    Raises:
        NotSubmitted: see there.
    """
    if shutil.which("sbatch") is None:
        raise NotSubmitted("there is no sbatch here; --dry-run prints the scripts")
    out.mkdir(parents=True, exist_ok=True)
    first = _queued(out / "studies.sbatch", array)
    second = _queued(out / "collect.sbatch", collect, f"--dependency=afterany:{first}")
    return f"submitted {first}, and {second} after it; results in {out}"


def _queued(path: Path, text: str, *options: str) -> str:
    path.write_text(text)
    done = subprocess.run(
        ["sbatch", "--parsable", *options, str(path)], capture_output=True, text=True
    )
    if done.returncode:
        raise NotSubmitted(f"sbatch refused {path}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]
