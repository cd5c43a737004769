"""Results of studies: one JSON file and one HDF5 file each, and sets of them.

The JSON file has the findings and where they come from; the HDF5 file has these and the values
behind them. Both are replaced whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from benchmarks.suite.findings import Finding
from hessian_spectrum._core.atomic import replacing

Status = Literal["done", "failed", "no data", "no such scale"]
FORM = 1  # of the JSON files


class NotAResult(ValueError):
    """A file that is no result of a study."""


@dataclass(frozen=True)
class Result:
    """What is known of one study at one scale.

    Args:
        key: the hash of its options and sources; a run with the same one is not repeated.
        seconds: wall-clock time, that of networks trained for it included.
        peak_bytes: the largest resident set of its process.
        about: versions, machine, commit (``hessian_spectrum.storage.provenance``).
        error: why there are no findings.
    """

    study: str
    title: str
    source: str
    scale: str
    key: str
    status: Status
    findings: tuple[Finding, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0
    notes: str = ""
    error: str = ""
    figure: str | None = None

    @property
    def failed(self) -> bool:
        """The study failed, or a check does not hold and no reason is known."""
        return self.status == "failed" or any(f.is_failure for f in self.findings)

    def to_json(self) -> str:
        fields = {**asdict(self), "findings": [f.to_json() for f in self.findings]}
        return json.dumps({"form": FORM, **fields}, indent=1, default=str)

    @classmethod
    def of_json(cls, text: str, path: Path) -> Result:
        """Raises NotAResult."""
        try:
            stored = json.loads(text)
            if stored.pop("form") != FORM:
                raise NotAResult(f"{path}: was written by another version of the suite")
            findings = tuple(Finding.of_json(f) for f in stored.pop("findings"))
            return cls(findings=findings, **stored)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, NotAResult):
                raise
            raise NotAResult(f"{path}: is no result of a study ({error})") from None


def write(result: Result, values: Mapping[str, Any], folder: Path) -> None:
    """STUDY.h5, then STUDY.json: where the latter is, both are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{result.study}.h5") as path, h5py.File(path, "w") as file:
        file.attrs["result"] = result.to_json()
        for name, value in values.items():
            array = np.asarray(value)
            file[name] = array.astype(h5py.string_dtype()) if array.dtype.kind == "U" else array
    with replacing(folder / f"{result.study}.json") as path:
        path.write_text(result.to_json())


def read(folder: Path) -> dict[str, Result]:
    """All results in a folder, by study.

    Raises:
        FileNotFoundError: there is no such folder.
        NotAResult: a damaged or foreign file among them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder of results")
    found = {}
    for path in sorted(folder.glob("*.json")):
        result = Result.of_json(path.read_text(), path)
        found[result.study] = result
    return found


def collect(folders: Iterable[Path], out: Path) -> dict[str, Result]:
    """Copy the results of several folders into one. Of a study that several have, the last wins.

    A result that failed does not replace one that is done.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = read(out)
    for folder in folders:
        for name, result in read(folder).items():
            if result.status != "done" and name in found and found[name].status == "done":
                continue
            for path in folder.glob(f"{name}.*"):
                if path.is_file() and path.resolve() != (out / path.name).resolve():
                    shutil.copy2(path, out / path.name)
            found[name] = result
    return found
