"""Is this process a task of its SLURM step, or was it typed into the shell that is one?

In the shell of ``srun -n 4 --pty bash`` the variables of a step of four tasks are set, but the
other shells had no terminal and have ended.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hessian_spectrum.distributed.environment import tasks_per_node

STEP = ("SLURM_JOB_ID", "SLURM_STEP_ID")


def is_a_task() -> bool:
    """True for a task, and for what its script calls; they are one process group.

    A shell with job control gives each command a process group of its own.
    """
    with suppress(KeyError, ValueError, OSError):
        return os.getpgid(int(os.environ["SLURM_TASK_PID"])) == os.getpgrp()
    return False


def is_typed_into_a_shell() -> bool:
    """Whether the other tasks of this step are gone, as behind an interactive shell.

    False where this cannot be known, such as in a container that hides processes. Reads /proc.
    """
    task = os.environ.get("SLURM_TASK_PID", "")
    if task == str(os.getpid()) or not Path("/proc/self/environ").exists():
        return False
    if _has_another_launcher(task) or _sees_other_tasks():
        return False
    tasks = tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = os.environ.get("SLURM_NODEID", "")
    here = tasks[int(node)] if node.isdecimal() and int(node) < len(tasks) else 1
    if not task:  # SLURM sets it for each task: this is none, with variables of one
        return here > 1
    if _environment(task) is None:  # hidden, or a shell that has ended
        return here > 1 and _is_terminal("self")
    return _is_terminal(task) and (here > 1 or not is_a_task())


def _has_another_launcher(task: str) -> bool:
    """Does MPI say something else to this process than to the shell, as mpirun makes it?"""
    ours = {name: os.environ[name] for name in os.environ if name.startswith(("PMI", "OMPI_COMM"))}
    theirs = _environment(task) or {}
    return any(theirs.get(name) != value for name, value in ours.items())


def _sees_other_tasks() -> bool:
    own = os.environ.get("SLURM_PROCID")
    for number in filter(str.isdecimal, os.listdir("/proc")):
        other = _environment(number) or {}
        if all(other.get(name) == os.environ.get(name) for name in STEP):
            if other.get("SLURM_PROCID", own) != own:
                return True
    return False


def _environment(process: str) -> dict[str, str] | None:
    """That with which the process was started; None if it is gone or not ours."""
    try:
        words = Path("/proc", process, "environ").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return dict(word.split("=", 1) for word in words.split("\0") if "=" in word)


def _is_terminal(process: str) -> bool:
    """Is its standard input a terminal?"""
    with suppress(OSError):
        return os.readlink(f"/proc/{process}/fd/0").startswith(("/dev/pts/", "/dev/tty"))
    return False
