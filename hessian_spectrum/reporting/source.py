"""The files of a page: which they are, and what each says of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.plotting import density, registry
from hessian_spectrum.reporting.numbers import command_line
from hessian_spectrum.storage import hdf5_schema
from hessian_spectrum.storage.run_file import Run

PLOTTED = {"track", *density.VIEWS_OF, *registry.KINDS}  # kinds that ``plot`` draws
SUFFIXES = (".h5", ".hdf5")


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and those of each folder that is named, by name; none twice.

    Raises:
        InputError: nothing is named, or a folder holds no result file.
        FileNotFoundError: there is no such file.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = sorted(
                other
                for other in path.iterdir()
                if other.suffix in SUFFIXES and other.is_file() and not other.name.startswith(".")
            )
            if not inside:
                raise InputError(f"{path}: this folder holds no file that ends in .h5")
        for file in inside:
            if not file.exists():
                raise FileNotFoundError(f"{file}: no such file; expected a result file or a folder")
            found.setdefault(file.resolve(), file)
    if not found:
        raise InputError("no files; expected result files, such as run.h5, or a folder of them")
    return list(found.values())


def names_of(files: Sequence[Path]) -> list[str]:
    """What the runs are called: the files' names, or their paths where names repeat."""
    stems = [file.stem for file in files]
    return [
        stem if stems.count(stem) == 1 else str(file.with_suffix(""))
        for stem, file in zip(stems, files)
    ]


@dataclass(frozen=True)
class Source:
    """A run, by what a page calls it."""

    name: str
    run: Run

    def config_of(self, key: str = "") -> Mapping[str, Any]:
        """The configuration that a result was computed with; in a merged file that of its part."""
        return _part(self.run.config, key)

    def provenance_of(self, key: str = "") -> Mapping[str, Any]:
        return _part(self.run.provenance, key)

    @property
    def subject(self) -> str:
        """The model and its data, as far as the file says."""
        config = self.config_of(next(iter(self.run), ""))
        named = [str(config[k]) for k in ("model", "dataset") if config.get(k)]
        if config.get("problem"):
            named = [str(config["problem"])]
        operator = config.get("operator", "hessian")
        what = " on ".join(named)
        return what if operator == "hessian" else ", ".join(filter(None, (what, str(operator))))

    def command_of(self, key: str = "") -> str | None:
        """The command that computed a result, or the script; None where the file does not say."""
        words = self.provenance_of(key).get("command")
        if not isinstance(words, (list, tuple)) or not words:
            return None
        return command_line(words)

    def plot_command(self, key: str, view: str | None = None) -> str | None:
        """The command that draws a picture of a result; None of what ``plot`` does not draw."""
        kind, label = hdf5_schema.split_key(key)
        if kind not in PLOTTED:
            return None
        words = ["hessian-spectrum", "plot", str(self.run.path)]
        words += ["--result", hdf5_schema.join_key(kind, label)]
        words += ["--view", view] if view else []
        return command_line([*words, "--out", f"{'-'.join(filter(None, (kind, view)))}.png"])


def _part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Of a merged file: what is said of the file that the label names."""
    parts = record.get("of")
    if not isinstance(parts, Mapping):
        return record
    label = key.partition("/")[2].partition(", ")[0]
    found = parts.get(label, {})
    return found if isinstance(found, Mapping) else {}
