"""Calibrations on disk, by model, shapes, arithmetic and machine.

Two runs of one command take the same plan from them, and so give the same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from hessian_spectrum._core.atomic import replacing
from hessian_spectrum._core.version import __version__
from hessian_spectrum.planning.calibration import Bench, Trial

Measured = tuple[list[Trial], dict[str, str]]  # trials, and reasons for refusing other modes


def folder() -> Path:
    """XDG_CACHE_HOME (default ~/.cache) / hessian_spectrum / calibration."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "hessian_spectrum" / "calibration"


def key(bench: Bench, num_probes: int, mode: str | None, room: int) -> str:
    """A hash of all that the measurements depend on, of free memory only the order of magnitude."""
    ev = bench.evaluator
    leaves = tree_leaves(next(iter(ev.batches)))
    described = [
        (__version__, torch.__version__, bench.form.name, num_probes, mode),
        (bench.precision, bench.batch_size, ev.batch_norm, ev.dropout),
        [type(module).__qualname__ for module in ev.model.modules()],
        (ev.layout.names, ev.layout.shapes, str(ev.dtype)),
        [(tuple(getattr(t, "shape", ())), str(getattr(t, "dtype", type(t)))) for t in leaves],
        round(math.log2(max(1, room))),
        (platform.node(), platform.machine(), torch.get_num_threads(), _device(ev.device)),
    ]
    return hashlib.sha256(repr(described).encode()).hexdigest()


def load(name: str) -> Measured | None:
    """The measurements of that name; None if none can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        saved = json.loads((folder() / f"{name}.json").read_text())
        return [Trial(**trial) for trial in saved["trials"]], dict(saved["refused"])
    return None


def save(name: str, measured: Measured) -> None:
    """Write the measurements, if the folder can be written."""
    trials, refused = measured
    with suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        content = {"trials": [dataclasses.asdict(trial) for trial in trials], "refused": refused}
        with replacing(folder() / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1))


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
