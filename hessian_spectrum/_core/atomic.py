"""Files that are replaced whole: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = r"[0-9a-f]{12}\.tmp"  # how the name of a temporary file ends, behind the file's own


def temporary_of(path: Path) -> Path:
    """A new name beside ``path`` for what takes its place: .NAME.0123456789ab.tmp."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def sweep_temporaries(path: str | os.PathLike) -> None:
    """Delete temporary files that killed writers of ``path`` left. For its only writer."""
    path = Path(os.path.realpath(path))
    ours = re.compile(rf"\.{re.escape(path.name)}\.{TEMPORARY}")
    with suppress(OSError):  # a disk that cannot be written says so when it is
        for other in path.parent.iterdir():
            if ours.fullmatch(other.name) and other.is_file() and not other.is_symlink():
                other.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``, which takes its place if the block succeeds.

    The file is synced before it is renamed and its folder after, so that a power cut cannot
    leave a name without its content. A block that fails leaves ``path`` as it was. A symbolic
    link is followed: its target is replaced, not the link. The umask decides who may read the
    file, however the block creates it.
    """
    path = Path(os.path.realpath(path))
    temporary = temporary_of(path)
    try:
        mode = _mode_of_new_file(temporary)
        yield temporary
        os.chmod(temporary, mode)  # safetensors creates files that their owner alone may read
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        # A failed write names no file, and the name of the temporary one says nothing to anybody.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # a read-only disk: the first error is raised
            temporary.unlink(missing_ok=True)


def _mode_of_new_file(path: Path) -> int:
    """Permissions of a file that is created at ``path`` and removed again.

    The umask cannot be asked for without changing it for other threads, and a folder may have
    default permissions of its own.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        path.unlink()


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
