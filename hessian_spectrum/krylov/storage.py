"""Where Krylov vectors live: on the device, in the host's memory, or on a disk."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.distributed.world import World

Place = str | Path  # "device", "host", or a folder on a disk


def allocate(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, place: Place = "device"
) -> Tensor:
    """Zeros of that shape; on a disk a mapped temporary file, which is gone with the process.

    Raises:
        InputError: the folder does not exist, or its disk has no room.
    """
    if place == "device":
        return torch.zeros(shape, dtype=dtype, device=device)
    if place == "host":
        return torch.zeros(shape, dtype=dtype)
    size = max(1, math.prod(shape) * dtype.itemsize)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            # All of it now: a disk that fills up under a mapped file ends the process.
            os.posix_fallocate(file.fileno(), 0, size)
            mapped = np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
    except OSError as error:
        raise InputError(
            f"{place}: cannot hold {size / 2**30:.2f} GiB of Krylov vectors ({error.strerror}); "
            "use fewer probes or steps, more ranks, or another folder"
        ) from None
    entries = torch.from_numpy(mapped)[: math.prod(shape) * dtype.itemsize]
    return entries.view(dtype).view(shape)


def allocate_together(shape: tuple[int, ...], like: Tensor, world: World, place: Place) -> Tensor:
    """``allocate`` on every rank; where one has no room, InputError on all."""
    return together(world, lambda: allocate(shape, like.dtype, like.device, place))
