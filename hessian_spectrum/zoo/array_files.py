"""Files of arrays by name, ``.npz`` and ``.h5``: what they declare is known before it is read.

An array is taken only where the file can hold it: what is compressed unpacks to no more than
``MOST_UNPACKED`` times its size, and nothing lies in other files.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.storage.hdf5_limits import MOST_UNPACKED, require_backed

MOST_HEADER = 1 << 16  # bytes of an array's header in a .npz file


class Declared(Protocol):
    """An array in a file, of which shape and type are known; read where it is sliced."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def ndim(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


@contextmanager
def opened(path: Path) -> Iterator[Mapping[str, Declared]]:
    """The file's arrays by name.

    Raises:
        InputError: no such file, or one that cannot be read or declares more than it can hold; also
            where that is found out while arrays are read inside. It names the file.
    """
    if path.suffix not in (".npz", ".h5", ".hdf5") or not path.is_file():
        found = "not a .npz or .h5 file" if path.exists() else "no such file"
        raise InputError(f"{path}: {found}; give a .npz or .h5 file of arrays as data_root")
    size = path.stat().st_size
    try:
        if path.suffix == ".npz":
            with path.open("rb") as content:
                if content.read(6) == np.lib.format.MAGIC_PREFIX:
                    raise ValueError("it holds one array without a name, a .npy file")
            with zipfile.ZipFile(path) as archive:
                yield _Archive(archive, size)
        else:
            with h5py.File(path, "r") as file:
                yield _Hdf5(file, size)
    except InputError:
        raise
    except (
        *(OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, SyntaxError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise InputError(
            f"{path} cannot be read ({one_line(error)}); expected a whole {path.suffix} file of "
            f"plain arrays, without pickled objects; write it again"
        ) from error


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class _Archive(Mapping[str, Declared]):
    """The arrays of a ``.npz`` file of ``size`` bytes."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self._archive = archive
        members = archive.infolist()
        self._members = {info.filename.removesuffix(".npy"): info for info in members}
        if len(self._members) < len(members) or sum(m.compress_size for m in members) > size:
            raise ValueError("its members overlap, or have the same names")

    def __getitem__(self, name: str) -> Declared:
        return _Member(self._archive, self._members[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


class _Member:
    """One array of a ``.npz`` file, of which the header is read.

    Raises:
        ValueError: it is no array, or declares another size than it has.
    """

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo):
        self._archive, self._info = archive, info
        with archive.open(info) as content:
            version = np.lib.format.read_magic(content)
            readers = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            if version not in readers:
                raise ValueError(f"{info.filename} is of version {version}")
            self.shape, _, self.dtype = readers[version](content, max_header_size=MOST_HEADER)
            header = content.tell()
        self.ndim = len(self.shape)
        if self.dtype.hasobject:
            raise ValueError(f"{info.filename} holds pickled objects")
        declared = math.prod(self.shape) * self.dtype.itemsize
        packed = info.compress_type != zipfile.ZIP_STORED
        most = info.compress_size * (MOST_UNPACKED if packed else 1)
        if header + declared != info.file_size or info.file_size > most:
            raise ValueError(
                f"{info.filename} declares {self.shape} {self.dtype}, {declared} bytes, and has "
                f"{info.file_size - header}, of which {info.compress_size} are stored"
            )

    def __getitem__(self, key: Any) -> Any:
        with self._archive.open(self._info) as content:
            return np.lib.format.read_array(content, allow_pickle=False)[key]


class _Hdf5(Mapping[str, Declared]):
    """The data sets of an HDF5 file of ``size`` bytes."""

    def __init__(self, file: h5py.File, size: int):
        self._file, self._size = file, size

    def __getitem__(self, name: str) -> Declared:
        if not isinstance(self._file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link to another place, which is not followed")
        data = self._file[name]
        require_backed(data, self._size)
        return data

    def __iter__(self) -> Iterator[str]:
        for name in self._file:
            is_here = isinstance(self._file.get(name, getlink=True), h5py.HardLink)
            if not is_here or isinstance(self._file[name], h5py.Dataset):
                yield name

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
