"""The trained networks of a folder: the checkpoint of each, and where its training started."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from hessian_spectrum._core.errors import InputError, Warned
from hessian_spectrum.commands import kept_iterates
from hessian_spectrum.commands.training_folder import STATE

SUFFIXES = (".pt", ".pth", ".safetensors")
START = kept_iterates.name_of(0)


@dataclass(frozen=True)
class Network:
    """Checkpoints of one network."""

    end: Path
    start: Path | None  # None where it is not known


def networks_in(folder: Path, start: Path | None = None) -> dict[str, Network]:
    """Networks by name, sorted: those of the subfolders, or else the checkpoints themselves.

    A subfolder's network is its last ``epoch-0005.pt``, or else its last checkpoint by name. One
    whose training has not ended is left out, with a warning.

    Args:
        start: where all have started; default: the ``step-000000.pt`` beside each.

    Raises:
        InputError: there is no such folder, or it has fewer than two networks.
    """
    if not folder.is_dir():
        raise InputError(f"--pairs {folder}: expected a folder of networks")
    found = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = _checkpoints(inner)
        if (inner / STATE).exists():
            warnings.warn(f"{inner} is left out: its training has not ended", Warned, stacklevel=2)
        elif files:
            found[inner.name] = Network(files[-1], start or _start_in(inner))
    if not found:
        files, common = _checkpoints(folder), start or _start_in(folder)
        found = {path.stem: Network(path, common) for path in files if path != start}
    if len(found) < 2:
        raise InputError(
            f"--pairs {folder}: it has {len(found)} networks, {', '.join(found) or 'none'}; "
            "expected two or more, as train --grid writes them"
        )
    return found


def _checkpoints(folder: Path) -> list[Path]:
    """Without the start; of a training's folder its epochs alone."""
    files = [
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and path.is_file() and path.name not in (START, STATE)
    ]
    epochs = [path for path in files if re.fullmatch(r"epoch-\d{4,}\.pt", path.name)]
    return sorted(epochs or files, key=lambda path: (len(path.name) * bool(epochs), path.name))


def _start_in(folder: Path) -> Path | None:
    path = folder / START
    return path if path.is_file() else None
