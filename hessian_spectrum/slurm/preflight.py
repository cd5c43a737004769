"""What a job needs is there before it is queued: files that are read, folders that are written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import dashed
from hessian_spectrum.config.problem import HUGGINGFACE
from hessian_spectrum.slurm.job_array import of_task
from hessian_spectrum.storage.point_name import PointName

WRITTEN = ("out", "track")  # the fields of commands that are paths, and no files to read


def check_files(submitted: Any, checkpoints: Sequence[str] = ()) -> None:
    """Raise InputError, naming the option, unless every file that the command reads exists.

    Args:
        submitted: the configuration of the command.
        checkpoints: of an array; each fills in the placeholders of the configuration.
    """
    _require("checkpoints", checkpoints)
    for option, texts in _read(submitted):
        if checkpoints:
            texts = [of_task(text, checkpoint) for checkpoint in checkpoints for text in texts]
        _require(option, texts)


def make_folders(files: Sequence[Path]) -> None:
    """Make the folders of the files that a job writes.

    Raises:
        InputError: one cannot be made, or cannot be written to; a file is a folder.
    """
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{file}: its folder cannot be made ({error.strerror}: {error.filename})"
            ) from None
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise InputError(f"{file}: its folder {file.parent} cannot be written to")
        if file.is_dir():
            raise InputError(f"{file} is a folder; expected the name of a file")


def _read(submitted: Any) -> Iterator[tuple[str, list[str]]]:
    """Name of each option that names files to read, and those files."""
    for field in dataclasses.fields(submitted):
        value = getattr(submitted, field.name)
        if field.name == "problem" and str(value).startswith(HUGGINGFACE):
            yield field.name, [str(value).removeprefix(HUGGINGFACE)]
        elif field.name == "problem" and value is not None:
            if ":" not in value:
                raise InputError(f"--problem {value}: expected FILE.py:FUNCTION")
            yield field.name, [value.rpartition(":")[0]]
        elif field.name in WRITTEN or (field.name == "data_root" and submitted.download):
            continue
        elif isinstance(value, Path):
            yield field.name, [str(value)]
        elif isinstance(value, tuple):
            yield field.name, [str(entry) for entry in value if isinstance(entry, Path)]


def _require(option: str, files: Sequence[str]) -> None:
    for name in files:
        point = PointName.of(name)
        file = str(point.file) if point else name
        if not Path(file).exists():
            hint = "; no file matches this pattern" if any(c in file for c in "*?[") else ""
            raise InputError(f"--{dashed(option)} {file}: no such file or folder{hint}")
