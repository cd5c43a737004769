"""What a running study is given: its folder, data, the package's commands, trained networks."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hessian_spectrum as hs
from benchmarks.suite.findings import Finding
from benchmarks.suite.study import SCALES, Data, Scale
from hessian_spectrum._core.atomic import replacing
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.storage.writer_lock import WriterLock

PACKAGE = Path(hs.__file__).parent
# What the parameters of a trained network depend on, beside its options.
TRAINING = ("zoo", "config/training.py", "commands/train.py", "commands/training_input.py")
POLL = 5.0  # seconds between looks at a network that another process trains


class DataMissing(Exception):
    """A study needs data that are not on this machine."""


class CommandFailed(RuntimeError):
    """One of the package's commands ended with an exit code other than 0."""


@dataclass(frozen=True)
class Context:
    """What the suite provides to one study.

    Args:
        name: the study's.
        scale: at which it runs.
        folder: for its files; what an earlier, interrupted run has left is found here.
        shared: for networks that several studies use.
        data_root: the folder of data sets.
        launcher: words before each command, such as ``torchrun --nproc-per-node 2 -m``'s.
    """

    name: str
    scale: Scale
    folder: Path
    shared: Path
    data_root: Path
    launcher: tuple[str, ...] = ()

    def check(
        self,
        claim: str,
        measured: float,
        low: float,
        high: float,
        *,
        source: str,
        uncertainty: float | None = None,
        judged_from: Scale = "cpu",
        why_not: str = "",
        unit: str = "",
    ) -> Finding:
        """A finding, judged where this scale is at least ``judged_from``."""
        is_judged = SCALES.index(self.scale) >= SCALES.index(judged_from)
        measured = float(measured)
        return Finding(*(claim, source, measured, low, high, uncertainty, is_judged, why_not, unit))

    def data(self, name: Data) -> Path:
        """What ``--data-root`` is for this data set.

        Raises:
            DataMissing: it is not there.
        """
        candidates = {
            "mnist": ("MNIST",),
            "cifar10": ("cifar10.npz", "cifar10_jpeg.npz"),
            "ptb": ("ptb",),
        }[name]
        for candidate in candidates:
            path = self.data_root / candidate
            if path.exists():
                return self.data_root if name == "mnist" else path
        raise DataMissing(
            f"no {' or '.join(candidates)} in {self.data_root}; give the folder by --data or "
            "HESSIAN_SPECTRUM_DATA"
        )

    def kept(
        self, name: str, options: object, make: Callable[[], Mapping[str, Any]]
    ) -> dict[str, NDArray[Any]]:
        """Arrays by name that ``make`` returns; those of an earlier run where there are any.

        They are kept in the study's folder, for the same options and sources of the package.
        """
        key = digest({"options": repr(options), "package": sources_digest()})[:12]
        path = self.folder / f"{name}-{key}.npz"
        if not path.exists():
            beside = path.with_suffix(".part.npz")
            np.savez(beside, **make())
            beside.replace(path)
        with np.load(path) as found:
            return dict(found)

    # -- commands of the package -----------------------------------------------------------------

    def command(self, name: str, *options: object, codes: Sequence[int] = (0,)) -> int:
        """Run a command of the package.

        Args:
            codes: exit codes that are answers.

        Raises:
            CommandFailed: another exit code.
        """
        words = [name, *map(str, options)]
        print("$ hessian-spectrum", shlex.join(words), flush=True)
        if self.launcher:
            prefix = [*self.launcher, "-m", "hessian_spectrum"]
            code = subprocess.run([*prefix, *words]).returncode
        else:  # the study has a process of its own already
            from hessian_spectrum.cli.main import main

            code = main(words)
        if code not in codes:
            raise CommandFailed(f"{shlex.join(words)}: exit code {code}, see the messages above")
        return code

    def computed(self, path: Path, name: str, *options: object) -> hs.Run:
        """The result file of a command; computed, or gone on with, unless it is finished.

        A file that other options have made is replaced.
        """
        words, said = [name, *map(str, options)], path.with_suffix(".words.json")
        is_same = said.exists() and json.loads(said.read_text()) == words
        if is_same and path.exists():
            found = hs.open(path)
            if found.finished:
                return found
            found.close()
        with replacing(said) as beside:
            beside.write_text(json.dumps(words))
        self.command(*words, "--resume" if is_same else "--overwrite", "--out", path)
        return hs.open(path)

    def network(self, *options: object, codes: Sequence[int] = (0,)) -> Path:
        """The folder of a network that the command ``train`` makes with these options.

        Shared by all studies: its name is the hash of the options and of the sources that train.
        One that another process is training is waited for.

        Args:
            codes: exit codes of ``train`` that are answers: 1 where a training may diverge.
        """
        words = [str(option) for option in options]
        folder = self.shared / f"network-{_hash(words)}"
        done = folder / "finished"
        folder.mkdir(parents=True, exist_ok=True)
        while not done.exists():
            try:
                with WriterLock(done):
                    (folder / "options.json").write_text(json.dumps(words, indent=1))
                    self.command("train", *words, "--resume", "--out", folder, codes=codes)
                    done.touch()
            except InputError as error:
                if ".lock" not in str(error):
                    raise
                time.sleep(POLL)
        return folder


def _hash(words: Sequence[str]) -> str:
    return digest({"options": list(words), "sources": sources_digest(*TRAINING)})[:12]


def digest(said: Mapping[str, object]) -> str:
    """SHA-256 of JSON, in hexadecimal digits."""
    text = json.dumps(said, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sources_digest(*names: str) -> str:
    """Of source files and folders of the package; of all without names."""
    found = hashlib.sha256()
    for name in names or (".",):
        path = PACKAGE / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            found.update(str(file.relative_to(PACKAGE)).encode())
            found.update(file.read_bytes())
    return found.hexdigest()
