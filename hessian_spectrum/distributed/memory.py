"""How much memory there is, and how much a computation took."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import torch

from hessian_spectrum.distributed.world import World

UNKNOWN = 4 << 30  # where the system does not report it: what a laptop can spare


def available(world: World, host: bool = False) -> int:
    """Bytes that this rank can allocate now on its device, or on the host.

    Ranks of a node share the host's memory.
    """
    device = world.device
    if device.type == "cuda" and not host:
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch's allocator has reserved and does not use is available as well.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo") as info:
            fields = dict(line.split(":", 1) for line in info)
        return int(fields["MemAvailable"].split()[0]) * 1024 // world.local_size
    except (OSError, KeyError):
        return UNKNOWN


class PeakMemory:
    """Bytes used inside the block beyond those in use at its start: at its peak, and at its end.

    On a GPU torch's allocator reports them. On Linux they are those of the resident set, to a few
    MiB: its high-water mark is reset at the start, after the C library's free memory is returned to
    the system, since its reuse would not be visible. On other systems both are 0.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.peak = self.kept = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        else:
            _trim()
            with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            self._start = _status("VmRSS")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._start
            self.kept = torch.cuda.memory_allocated(self.device) - self._start
        else:
            self.peak = max(0, _status("VmHWM") - self._start)
            _trim()
            self.kept = max(0, _status("VmRSS") - self._start)


@contextmanager
def young_heap() -> Iterator[None]:
    """Restrict garbage collections inside the block to objects that are made inside.

    A full collection takes longer than many products, and every ``PeakMemory`` makes two.
    """
    gc.collect(1)  # a full collection takes as long as the planning of a short run
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _trim() -> None:
    """Give memory that the C library holds free back to the system, where it can (glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    try:
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        return int(fields[name].split()[0]) * 1024
    except (OSError, KeyError):
        return 0
