"""Immutable shards of a run's state, and the manifest that lists the valid ones.

The folder ``run.h5.d/`` beside ``run.h5`` holds safetensors files, each written once, and
``manifest.json``, written last. Readers ignore shards that no manifest lists. All ranks may
write shards at the same time; one of them commits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from hessian_spectrum._core.atomic import TEMPORARY, replacing, sync
from hessian_spectrum._core.errors import InputError, Warned
from hessian_spectrum._core.json_forms import Listing, Record, Text, Whole, read_json
from hessian_spectrum.storage.manifest_schema import (
    BOUNDS,
    CHECKSUM,
    SHARD,
    SHARD_NAME,
    checksum,
    require_manifest,
)
from hessian_spectrum.storage.manifest_schema import shards as shards_of

LATEST, PREVIOUS = "manifest.json", "manifest.previous.json"
SUFFIX = ".safetensors"
MARK = {"written_by": "hessian_spectrum"}  # in the metadata of each shard
MOST_METADATA = 1 << 20  # bytes of a shard's header that are read to look for the mark
MOST_BYTES = 1 << 30  # of a manifest


class ShardFolder:
    """The folder of a run's shards; created at the first write.

    A manifest is any JSON dict with entries that ``write`` returned, at any depth.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)

    @classmethod
    def beside(cls, run: str | os.PathLike[str]) -> ShardFolder:
        """The shard folder of the run file ``run``: ``run.h5`` -> ``run.h5.d``."""
        return cls(f"{os.fspath(run)}.d")

    def write(
        self, name: str, arrays: Mapping[str, NDArray[Any]], index: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Write and sync one shard, and return its manifest entry.

        Args:
            name: letters, digits and ``.-_``; the start of the file's name. File names are unique,
                so a step that is computed again after a kill overwrites no listed shard.
            arrays: what to keep; non-contiguous ones are copied.
            index: (start, stop), the global entries that this shard holds.
        """
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise InputError(f"shard name {name!r}: expected letters, digits, '.', '-' and '_'")
        arrays = {key: np.asarray(value, order="C") for key, value in arrays.items()}
        self._make()
        path = self.folder / f"{name}-{uuid.uuid4().hex[:12]}{SUFFIX}"
        with replacing(path) as temporary:
            try:
                save_file(arrays, temporary, MARK)
            except SafetensorError as error:  # a full disk, among others
                raise _system_error(error, path) from None
            digest, size = _sha256(temporary), temporary.stat().st_size
        return {
            "file": path.name,
            "sha256": digest,
            "bytes": size,
            "index": None if index is None else [int(bound) for bound in index],
            "shapes": {key: list(value.shape) for key, value in arrays.items()},
            "dtypes": {key: value.dtype.name for key, value in arrays.items()},
        }

    def read(self, entry: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The arrays of one shard.

        Raises:
            InputError: the file is missing or its content is not what was written.
        """
        self.verify(entry)
        path = self.folder / entry["file"]
        try:
            arrays = load_file(path)
        except (SafetensorError, LookupError, ValueError, TypeError) as error:
            raise InputError(f"{path}: is no shard ({' '.join(str(error).split())})") from None
        shapes = {key: list(value.shape) for key, value in arrays.items()}
        dtypes = {key: value.dtype.name for key, value in arrays.items()}
        if shapes != entry["shapes"] or dtypes != entry["dtypes"]:
            raise InputError(
                f"{path}: holds arrays of {shapes}, {dtypes}; expected {entry['shapes']}, "
                f"{entry['dtypes']}"
            )
        return arrays

    def verify(self, entry: Mapping[str, Any]) -> None:
        """Raise InputError unless the shard is there with the checksum of its entry."""
        path = self.folder / entry["file"]
        if not path.is_file():
            raise InputError(f"{path}: this shard is missing; restore it or start again")
        # The size first: it is known without reading a file that may be of any length.
        if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
            raise InputError(
                f"{path}: this shard is damaged (its checksum differs from the manifest's); "
                "restore it or start again"
            )

    def commit(self, manifest: dict[str, Any]) -> None:
        """Make ``manifest`` the latest and keep the one before as the previous.

        Deletes the shards that only the outgoing manifest lists. A shard that no manifest lists
        stays, since another rank may be writing it for the next commit; ``sweep`` removes those
        of a killed run.
        """
        text = json.dumps(
            {**manifest, CHECKSUM: checksum(json.loads(json.dumps(manifest)))}, indent=1
        )
        self._make()
        latest, previous = self._load(LATEST), self._load(PREVIOUS)
        dropped: dict[str, Any] | None
        # A manifest whose shards are lost must not replace an older one that still has them.
        if latest is not None and self._present(latest):
            previous, dropped = latest, previous
            self._replace(PREVIOUS, (self.folder / LATEST).read_text())
        else:
            dropped = latest
        self._replace(LATEST, text)
        for file in _files(dropped) - _files(manifest) - _files(previous):
            (self.folder / file).unlink(missing_ok=True)

    def manifest(self, *checks: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """The latest manifest whose shards all exist with their checksums; None without a manifest.

        Warns when it is not the last one written. Cost: reads every shard that it lists.

        Args:
            checks: what else a manifest must fulfil; one for which they raise counts as damaged.

        Raises:
            InputError: all manifests, or shards that they list, are damaged.
        """
        reasons, culprit = [], "the manifest"
        for name in (LATEST, PREVIOUS):
            if not (self.folder / name).exists():
                continue
            try:
                manifest = self._read(name, *checks)
            except (OSError, ValueError) as error:  # InputError is a ValueError
                reasons.append(f"{name}: {error}")
                continue
            try:
                for entry in shards_of(manifest):
                    self.verify(entry)
            except (OSError, ValueError) as error:
                culprit = "a shard"
                reasons.append(str(error))
                continue
            if reasons:
                why = f"going back to {name}, because {reasons[0]}"
                warnings.warn(why, Warned, stacklevel=2)
            return manifest
        if reasons:
            raise InputError(
                f"{self.folder}: nothing to resume from: {culprit} is damaged: "
                f"{'; '.join(reasons)}; remove the folder to start again"
            )
        return None

    def sweep(self) -> None:
        """Delete what killed runs left: our temporary files, and our shards that no valid manifest
        lists. For the writer, while no rank is writing.
        """
        if not self.folder.is_dir():
            return
        manifests = {name: self._load(name) for name in (LATEST, PREVIOUS)}
        # Nobody knows which shards a damaged manifest lists: they stay until it is replaced.
        is_known = all(
            found is not None or not (self.folder / name).exists()
            for name, found in manifests.items()
        )
        listed = set().union(*map(_files, manifests.values()))
        for path in self.folder.iterdir():
            if _is_our_temporary(path) or (
                is_known and path.name not in listed and _is_marked(path)
            ):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete what this class wrote, and the folder if nothing else is in it.

        That is: shards that a valid manifest lists or that have our mark, our temporary files, and
        the manifests themselves. What else is in the folder is the user's.
        """
        if not self.folder.is_dir():
            return
        listed = _files(self._load(LATEST)) | _files(self._load(PREVIOUS))
        for name in (LATEST, PREVIOUS):  # first: without its shards a manifest is damaged
            (self.folder / name).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name in listed or _is_our_temporary(path) or _is_marked(path):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # the user has put other files there
            self.folder.rmdir()

    def _make(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            sync(self.folder.parent)

    def _replace(self, name: str, text: str) -> None:
        with replacing(self.folder / name) as temporary:
            temporary.write_text(text)

    def _read(self, name: str, *checks: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """A manifest that is valid by itself; InputError for anything else."""
        path = self.folder / name
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise InputError("is no manifest: it is no file, or too large for one")
        return require_manifest(read_json(path.read_bytes()), checks)

    def _load(self, name: str) -> dict[str, Any] | None:
        """As ``_read``; None where there is none that is valid."""
        try:
            return self._read(name)
        except (OSError, ValueError):
            return None

    def _present(self, manifest: dict[str, Any]) -> bool:
        paths = ((self.folder / entry["file"], entry["bytes"]) for entry in shards_of(manifest))
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)


class LazyRows:
    """Rows (k, n) that are read when indexed; ``np.asarray`` reads them all."""

    shape: tuple[int, int]
    dtype: np.dtype
    ndim = 2

    def _row(self, index: int) -> NDArray[Any]:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """NumPy's indexing; reads the rows that ``key`` selects, one at a time."""
        rows, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        selected = np.arange(len(self))[rows]
        if selected.ndim == 0:
            return self._row(int(selected))[rest]
        block = np.empty((selected.size, self.shape[1]), self.dtype)
        for out, row in zip(block, selected.ravel()):
            out[:] = self._row(int(row))
        return block.reshape(*selected.shape, self.shape[1])[
            (slice(None),) * selected.ndim + tuple(rest)
        ]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("vectors on disk cannot become an array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.shape}, {self.dtype}, on disk>"


VECTORS = Record(
    {
        **SHARD.required,
        "index": BOUNDS,
        "shapes": Record({"vectors": Listing(Whole(), length=2)}),
        "dtypes": Record({"vectors": Text(choices=("float32", "float64"))}),
    }
)


class ShardedVectors(LazyRows):
    """Eigenvectors too large for the run file: each shard holds a range of entries of all rows.

    Args:
        folder: where the shards are.
        entries: from ``ShardFolder.write``, each with an array "vectors" (k, stop - start) and
            ``index=(start, stop)``; together they must cover 0..n. List them in the manifest,
            or the folder forgets them.
    """

    def __init__(self, folder: ShardFolder, entries: Sequence[Mapping[str, Any]]):
        self.folder = folder
        for entry in entries:
            VECTORS.require(entry, f"{folder.folder}: shard")
        self.entries = sorted((dict(entry) for entry in entries), key=lambda e: e["index"])
        end = 0
        for entry in self.entries:
            (start, stop), shape = entry["index"], entry["shapes"]["vectors"]
            if start != end or shape != [self.entries[0]["shapes"]["vectors"][0], stop - start]:
                raise InputError(
                    f"{folder.folder / entry['file']}: holds vectors {shape} for the entries "
                    f"{start} to {stop}; expected (k, stop - start), and a start at {end}"
                )
            end = stop
        if not self.entries:
            raise InputError(f"{folder.folder}: sharded vectors need at least one shard")
        self.shape = (self.entries[0]["shapes"]["vectors"][0], end)
        self.dtype = np.dtype(self.entries[0]["dtypes"]["vectors"])
        self._verified = False

    def _row(self, index: int) -> NDArray[Any]:
        if not self._verified:
            for entry in self.entries:
                self.folder.verify(entry)
            self._verified = True
        return np.concatenate([self._slice(entry, index) for entry in self.entries])

    def _slice(self, entry: Mapping[str, Any], index: int) -> NDArray[Any]:
        path = self.folder.folder / entry["file"]
        try:
            with safe_open(path, framework="numpy") as file:
                return file.get_slice("vectors")[index : index + 1][0]
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None


def _system_error(error: SafetensorError, path: Path) -> OSError:
    """An OSError with the error number in the library's message."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(f"{path}: cannot be written ({error})")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def _files(manifest: object) -> set[str]:
    """The shards of a valid manifest, or of none."""
    return {entry["file"] for entry in shards_of(manifest)}


def _is_our_temporary(path: Path) -> bool:
    """Was this file left by a write to this folder that was killed?"""
    names = rf"{SHARD_NAME}|{re.escape(LATEST)}|{re.escape(PREVIOUS)}"
    return bool(re.fullmatch(rf"\.({names})\.{TEMPORARY}", path.name)) and _is_plain(path)


def _is_marked(path: Path) -> bool:
    """Does this file say in its header that it is a shard of ours? Reads the header only."""
    if not re.fullmatch(SHARD_NAME, path.name) or not _is_plain(path):
        return False
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = read_json(file.read(length)) if length <= MOST_METADATA else None
    except (OSError, InputError):
        return False
    return isinstance(header, dict) and header.get("__metadata__") == MARK


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
