"""A lock file for the single writer of a run. Readers need none: files are replaced whole."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hessian_spectrum._core.atomic import temporary_of
from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Form, Maybe, Record, Text, Whole, read_json

LOCK = ".lock"  # behind the name of the file that is locked
MOST_BYTES = 1 << 16  # of a lock file
HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
OWNER: dict[str, Form] = {  # what a lock says of its owner
    "host": Text(),
    "pid": Whole(1),
    "job": Maybe(Text()),
    "restart": Whole(),
    "started": Text(),
    "token": Text(),
}


class LockLost(OSError):
    """Another process has taken over the lock of this one."""


class WriterLock:
    """The right to write ``path``, held through the file ``<path>.lock``.

    A thread touches the lock every 30 s. It is stale, and taken over, when its process is dead
    on this host, when it was silent for five minutes, or when it belongs to an earlier start
    of this same SLURM job (a requeued job runs on another node, and once at a time).

    Raises:
        InputError: another process holds the lock; names its host, pid and job.
    """

    def __init__(self, path: str | os.PathLike[str], *, heartbeat: float = HEARTBEAT_SECONDS):
        self.path = Path(f"{os.path.realpath(path)}{LOCK}")
        self.heartbeat = heartbeat  # seconds
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> WriterLock:
        if not self._create():
            self._take_over()
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name="writer-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.held:
            # A failure to remove it must not hide the run's own error; the lock becomes stale.
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    @property
    def held(self) -> bool:
        """Whether the lock is still ours; a process that was suspended may have lost it."""
        return _content(self.path).get("token") == self._token

    def require(self) -> None:
        """Raise LockLost if another process has taken the lock over: it is the writer now."""
        if not self.held:
            raise LockLost(
                f"{self.path} was taken over or removed while this process was silent; nothing "
                "more was written here"
            )

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot create this lock file ({error.strerror})"
            ) from None
        with os.fdopen(descriptor, "w") as file:
            json.dump({**_whoami(), "token": self._token}, file)
            file.flush()
            os.fsync(descriptor)
        return True

    def _take_over(self) -> None:
        before = _identity(self.path)
        if not _is_stale(self.path):
            raise InputError(self._refusal())
        # Two processes may find the same lock stale; the slower must not rename the new lock of
        # the faster away. Only one of them can create the claim on *this* stale lock, and it
        # checks the lock again before touching it.
        claim = self.path.with_name(f"{self.path.name}.{before}")  # as long as a temporary name
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            raise InputError(
                f"{self.path}: another process is taking this lock over; try again, and if "
                f"that does not help, remove {claim}"
            ) from None
        try:
            if _identity(self.path) == before:
                with suppress(FileNotFoundError):
                    os.rename(self.path, claim)
            if not self._create():
                raise InputError(self._refusal())
        finally:
            claim.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            if self.held:
                with suppress(OSError):
                    os.utime(self.path)

    def _refusal(self) -> str:
        owner = _content(self.path)
        who = ", ".join(f"{key} {owner.get(key) or 'unknown'}" for key in ("host", "pid", "job"))
        return (
            f"{self.path}: another process is writing here ({who}, since "
            f"{owner.get('started', 'unknown')}); wait for it, choose another output, or, if it "
            f"is gone, try again {STALE_SECONDS / 60:.0f} minutes after its end or remove this file"
        )


def _whoami() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _content(lock: Path) -> dict[str, Any]:
    """What is valid of the lock's content; empty while it is absent or not yet written."""
    try:
        if not lock.is_file() or lock.stat().st_size > MOST_BYTES:
            return {}
        content = read_json(lock.read_bytes())
    except (OSError, InputError):
        return {}
    return {name: content[name] for name in OWNER if _is_valid(content, name)}


def _is_valid(content: Any, name: str) -> bool:
    try:
        Record({name: OWNER[name]}).require(content, "")
    except InputError:
        return False
    return True


def _identity(lock: Path) -> str:
    """A name for this lock at this heartbeat; changes with the owner and with each heartbeat."""
    try:
        status = lock.stat()
    except FileNotFoundError:
        return "absent"
    described = f"{_content(lock).get('token')}-{status.st_ino}-{status.st_mtime_ns}"
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _is_stale(lock: Path) -> bool:
    owner, me = _content(lock), _whoami()
    if owner.get("host") == me["host"] and not _alive(owner.get("pid")):
        return True
    if me["job"] and owner.get("job") == me["job"] and owner.get("restart", 0) < me["restart"]:
        return True
    try:
        return _now(lock) - lock.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:  # released meanwhile
        return True


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, TypeError, ValueError, OverflowError):
        pass  # someone else's process, or no pid to ask about: the heartbeat decides
    return True


def _now(lock: Path) -> float:
    """The time by the file system's clock, which stamps the heartbeats; a node's may differ."""
    probe = temporary_of(lock)
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
