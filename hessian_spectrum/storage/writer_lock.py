"""A lock file for the single writer of a run. Readers need none: files are replaced whole."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hessian_spectrum._core.atomic import temporary_of
from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Form, Maybe, Real, Record, Text, Whole, read_json

LOCK = ".lock"  # behind the name of the file that is locked
MOST_BYTES = 1 << 16  # of a lock file
HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
NOTE_BYTES = 512  # of the second line of a lock
OWNER: dict[str, Form] = {  # what a lock says of its owner
    "host": Text(),
    "pid": Whole(1),
    "job": Maybe(Text()),
    "restart": Whole(),
    "started": Text(),
    "token": Text(),
}
STATUS = Record(  # how far a run is, as ``Progress`` notes it
    {
        "stage": Text(),
        "unit": Text(),
        "done": Whole(),
        "total": Maybe(Whole()),
        "seconds_left": Maybe(Real()),
        "saved": Maybe(Whole()),
    }
)


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
        self._line = b""  # the first line of our lock

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

    def note(self, status: Mapping[str, Any]) -> None:
        """Leave a word on how far the run is in the lock, for ``Writer.of``; never fails.

        Written in place, into the file that has our line: where another process has taken the
        lock over, it has a file of its own. The file is not kept open: that would keep a disk from
        being unmounted.
        """
        line, place = json.dumps(dict(status)).encode(), len(self._line)
        if not place or len(line) >= NOTE_BYTES:
            return
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                if os.pread(descriptor, place, 0) == self._line:
                    os.pwrite(descriptor, line.ljust(NOTE_BYTES), place)
            finally:
                os.close(descriptor)

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot create this lock file ({error.strerror})"
            ) from None
        line = (json.dumps({**_whoami(), "token": self._token}) + "\n").encode()
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        except OSError as error:
            self.path.unlink(missing_ok=True)
            raise InputError(
                f"{self.path}: cannot write this lock file ({error.strerror})"
            ) from None
        finally:
            os.close(descriptor)
        self._line = line
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
        owner, me = _content(self.path), _whoami()
        who = ", ".join(f"{key} {owner.get(key) or 'unknown'}" for key in ("host", "pid", "job"))
        held = f"is writing here ({who}, since {owner.get('started', 'unknown')})"
        if all(owner.get(key) == me[key] for key in ("host", "pid")):
            return (
                f"{self.path}: this process itself {held}; end that run first (a Tracker: close() "
                "it), or choose another output"
            )
        return (
            f"{self.path}: another process {held}; wait for it, choose another output, or, if it "
            f"is gone, try again {STALE_SECONDS / 60:.0f} minutes after its end or remove this file"
        )


@dataclass(frozen=True)
class Writer:
    """The run that is writing a file now, as its lock tells."""

    owner: Mapping[str, Any]  # host, pid, job, restart, started
    status: Mapping[str, Any]  # of ``Progress``; empty until the first step
    silent: float  # seconds since its last heartbeat
    is_stale: bool  # it is gone, or has been silent for five minutes

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Writer | None:
        """Of the file ``path``; None where nothing writes it. Writes nothing."""
        lock = Path(f"{os.path.realpath(path)}.lock")
        try:
            silent = max(0.0, time.time() - lock.stat().st_mtime)
        except OSError:
            return None
        owner, status = _lines(lock)
        dead = owner.get("host") == socket.gethostname() and not _alive(owner.get("pid"))
        return cls(owner, status, silent, dead or silent > STALE_SECONDS)


def _whoami() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _content(lock: Path) -> dict[str, Any]:
    """What is valid of what the lock says of its owner; empty while it is not yet written."""
    return _lines(lock)[0]


def _lines(lock: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Who holds the lock, and how far the run is; what is not there yet is empty."""
    try:
        if not lock.is_file() or lock.stat().st_size > MOST_BYTES:
            return {}, {}
        first, _, second = lock.read_bytes().partition(b"\n")
    except OSError:
        return {}, {}
    owner, status = _object(first), _object(second)
    try:
        STATUS.require(status, "")
    except InputError:
        status = {}
    return {name: owner[name] for name in OWNER if _is_valid(owner, name)}, status


def _object(text: bytes) -> dict[str, Any]:
    try:
        content = read_json(text)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


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
