"""Write and open run files, each replaced as a whole. Their layout is in hdf5_schema.py."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py

from hessian_spectrum._core.atomic import replacing, temporary_of
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.storage import file_seal, hdf5_schema
from hessian_spectrum.storage.hdf5_checksum import read_attribute
from hessian_spectrum.storage.hdf5_data import one_line, read_table, to_json, write_text
from hessian_spectrum.storage.hdf5_schema import Result
from hessian_spectrum.storage.writer_lock import LOCK

# What HDF5, NumPy and the results themselves raise for content that nobody has foreseen.
DAMAGE = (
    *(OSError, LookupError, ValueError, TypeError),
    *(AttributeError, RuntimeError, ArithmeticError),
)


def save(
    path: str | os.PathLike[str],
    *results: Result,
    config: object = None,
    plan: object = None,
    provenance: object = None,
    finished: bool = True,
    overwrite: bool = False,
    **labelled: Result,
) -> None:
    """Write a run file that holds exactly these results.

    The file is always written whole: a reader, a failure or a kill at any instant finds the
    old file or the new one. ``save(other, **run)`` copies the results of an open run.

    Args:
        path: the file to write; its folder must exist.
        *results: measures, eigenpairs, alignments, at most one of a kind, under the label "main".
        config, plan, provenance: dicts or dataclasses that JSON can hold.
        finished: False for a run that was interrupted and can be resumed. A finished file also
            holds each density as drawn, on a grid: group ``drawn`` beside nodes and weights.
        overwrite: replace an existing file instead of refusing.
        **labelled: results by label (``early=measure``), or by kind and label
            (``**{"eigenpairs/early": pairs}``). A dict of named numbers, texts and arrays is
            stored too: ``initial={"loss": 2.3, "gradient_norm": 0.1}``.

    Raises:
        InputError: the path is not usable, or a result is not something that can be stored.
        OSError: the file cannot be written; the old one is as it was.

    Memory: the size of the file, once. Cost: that of ``drawn_density`` for each new density.
    """
    _check_place(path, overwrite=overwrite)  # from here on, a failing disk is no InputError
    stored = hdf5_schema.by_key(results, labelled)
    texts = {
        name: to_json(name, value)
        for name, value in zip(hdf5_schema.TEXTS, (config, plan, provenance))
    }
    with replacing(path) as temporary:
        temporary.write_bytes(_content(stored, texts, finished))


def _content(stored: Mapping[str, Result], texts: Mapping[str, str], finished: bool) -> memoryview:
    """The file's bytes, built in memory: on a full disk the HDF5 library crashes at exit."""
    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=file_seal.SIZE) as file:
        file.attrs["schema"] = hdf5_schema.SCHEMA
        file.attrs["schema_version"] = hdf5_schema.SCHEMA_VERSION
        file.attrs["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        file.attrs["finished"] = bool(finished)
        for name, text in texts.items():
            write_text(file, name, text)
        for key, result in stored.items():
            hdf5_schema.write(file, key, result, finished)
        hdf5_schema.sign(file)
    found = content.getbuffer()
    file_seal.seal(found)
    return found


def open(path: str | os.PathLike[str]) -> Run:
    """Open a run file for queries; checks all of it but the eigenvectors, which stay on disk.

    It holds no lock. To look into the same file by h5py meanwhile: ``h5py.File(path,
    locking=False)``; HDF5 refuses to open a file twice in a process with other settings.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is damaged, was not written by hessian_spectrum, or by a newer one.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file; expected a run file, as written by hessian_spectrum.save"
        )
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a run file such as run.h5")
    try:
        file_seal.require_intact(path)
        file = _opened(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        reason = "is truncated or damaged" if _has_signature(path) else "is not an HDF5 file"
        raise InputError(f"{path}: {reason} ({one_line(error)})") from None
    try:
        return Run(path, file)
    except InputError as error:
        file.close()
        raise InputError(f"{path}: {error}") from None
    except DAMAGE as error:
        file.close()
        raise InputError(f"{path}: is damaged ({one_line(error)})") from None


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except OSError:
        # It may be open in this process with locks, and HDF5 refuses to mix; a damaged file fails
        # again.
        return h5py.File(path, "r")


class Run(Mapping[str, Any]):
    """The results in one run file: a mapping from "density", "eigenpairs/LABEL", ...

    The label "main" is left out of keys. Eigenvectors are read when they are indexed, and
    only while the run is open; everything else is in memory.
    """

    def __init__(self, path: Path, file: h5py.File):
        self.path = path
        self._file = file
        hdf5_schema.check_schema(file)
        hdf5_schema.require_limits(file, path.stat().st_size)
        self.created = datetime.fromisoformat(read_attribute(file, "created"))  # UTC
        self.finished = bool(read_attribute(file, "finished"))
        self.config, self.plan, self.provenance = (read_table(file, n) for n in hdf5_schema.TEXTS)
        self._results = hdf5_schema.read(file)
        hdf5_schema.check_signature(file)

    def __getitem__(self, key: str) -> Any:
        try:
            return self._results[hdf5_schema.join_key(*hdf5_schema.split_key(key))]
        except (KeyError, InputError):
            held = ", ".join(map(repr, self)) or "nothing"
            raise KeyError(f"{self.path} holds no {key!r}; it holds {held}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "finished" if self.finished else "not finished"
        when = f"{self.created:%Y-%m-%d %H:%M} UTC"
        return f"<Run {self.path}: {', '.join(self) or 'empty'}; {state}, {when}>"


def check_output(
    path: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False
) -> None:
    """Check before a long computation that its output can be written; leaves no file behind.

    Raises:
        InputError: ``path`` exists and neither flag is given, is a folder, or its folder is
            missing or not writable.
    """
    path = _check_place(path, overwrite=overwrite, resume=resume)
    # Permission bits do not suffice: root ignores them, and file systems are mounted read-only. The
    # name is the longest of all that are made of this one.
    probe = temporary_of(path.with_name(f"{path.name}{LOCK}"))
    try:
        probe.write_bytes(b"probe")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _too_long(path) from None
        raise InputError(f"{path}: cannot write in {path.parent} ({error.strerror})") from None
    finally:
        with suppress(OSError):  # a disk that is read-only refuses that, too
            probe.unlink(missing_ok=True)


def _check_place(path: str | os.PathLike[str], *, overwrite: bool, resume: bool = False) -> Path:
    path = Path(os.path.realpath(path))
    try:
        path.exists()
    except OSError as error:
        raise _too_long(path) if error.errno == errno.ENAMETOOLONG else error from None
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected the name of a file, such as run.h5")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a device or a pipe; expected the name of a file")
    if path.exists() and not (overwrite or resume):
        raise InputError(
            f"{path}: exists already; choose another name, resume it or overwrite it (in Python: "
            "hs.save(path, *all_results), or overwrite=True)"
        )
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    return path


def _too_long(path: Path) -> InputError:
    return InputError(
        f"{path.parent}: the name {path.name[:20]}... has {len(os.fsencode(path.name))} bytes, too "
        "many for the temporary files beside it; choose a shorter one"
    )


def _has_signature(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(file_seal.SIZE + 8)
    return b"\x89HDF\r\n\x1a\n" in (start[:8], start[file_seal.SIZE :])
