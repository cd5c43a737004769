"""Where a result comes from: versions, machine, commit, command."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hessian_spectrum._core.version import __version__

LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "h5py", "mpi4py", "safetensors")


def collect() -> dict[str, Any]:
    """Versions, commits, command and machine, before anything is computed; JSON types only."""
    return {
        "hessian_spectrum": __version__,
        "python": platform.python_version(),
        "libraries": {name: v for name in LIBRARIES if (v := _version(name))},
        "package_commit": _commit(Path(__file__).parent),
        "working_directory_commit": _commit(Path.cwd()),
        "command": sys.argv,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "job": os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID"),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """The commit checked out in ``folder``, with "+" where files differ from it."""
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        # An installed copy can lie inside a checkout that it does not belong to.
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "."], capture_output=True)
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True)
    except OSError:
        return None
    if head.returncode or tracked.returncode:
        return None
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")
