"""The first 512 bytes of a result file, which HDF5 leaves to us: a checksum of all that follows.

The HDF5 library ends the process at some flipped bits. A damaged file is therefore known before the
library opens it. The block is HDF5's user block, which every program that reads HDF5 skips.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from hessian_spectrum._core.errors import InputError

SIZE = 512  # bytes of the block
MOST = 1 << 28  # bytes of a file that is read once more for this; larger ones hold eigenvectors
_MAGIC = b"hessian_spectrum result file; SHA-256 of all bytes from 512 on: "
_CHUNK = 1 << 22


def seal(content: memoryview) -> None:
    """Fill the block of a file's bytes."""
    block = _MAGIC + hashlib.sha256(content[SIZE:]).hexdigest().encode() + b"\n"
    content[:SIZE] = block.ljust(SIZE, b"\0")


def require_intact(path: Path) -> None:
    """InputError unless a sealed file is as it was written; others are not looked at.

    Without a seal are files of earlier versions, and those whose block was set to zeros, as after
    an edit that is meant. Cost: reads the file once, up to 256 MiB.
    """
    with path.open("rb") as file:
        block = file.read(SIZE)
        if not block.startswith(_MAGIC) or path.stat().st_size > MOST:
            return
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if block[len(_MAGIC) :].split(b"\n")[0] != digest.hexdigest().encode():
        raise InputError(
            "is truncated or damaged: its checksum is not that of its content (of a file that was "
            "edited on purpose, set the first 512 bytes to zero)"
        )
