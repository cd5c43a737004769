"""The folder of a training: which files are its own, and from which one it goes on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hessian_spectrum._core.atomic import TEMPORARY
from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import dashed
from hessian_spectrum.config import TrainConfig, to_dict
from hessian_spectrum.config.training import FREE_FIELDS, STATE
from hessian_spectrum.zoo.checkpoints import read_state, save_state

MARK = "train"  # config["command"] of what this command wrote
_NAME = r"((epoch|ema|swa)-\d{4,}|step-\d{6,}|training)\.pt"
_WITHOUT_MARK = {"model", "optimizer", "epoch", "config"}  # keys before there was one


class TrainingFolder:
    """Files ``epoch-0005.pt``, ``ema-0005.pt``, ``step-000012.pt`` and ``training.pt``.

    Each holds the model's state_dict under "model", and "epoch", "step" and "config". The
    first and the last kind hold the whole state of the training.
    """

    def __init__(self, config: TrainConfig):
        self.config, self.path = config, config.out

    def check(self) -> None:
        """Raise InputError, and change nothing, if this training must not write here."""
        out, overwrite, resume = self.path, self.config.overwrite, self.config.resume
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; --out must name a folder for checkpoints")
        if not out.parent.is_dir():
            raise InputError(f"the folder {out.parent} does not exist; create it, or change --out")
        existing = self._existing()
        if existing and not (overwrite or resume):
            raise InputError(
                f"{out} holds {len(existing)} checkpoints already; choose another --out, use "
                "--resume to go on with that training, or --overwrite to start again"
            )
        if resume:
            self.latest()

    def clear(self) -> None:
        """Delete what earlier trainings wrote, and what killed ones left of files.

        Raises:
            InputError: a file of this one's names was written by another program; nothing is
                deleted.
        """
        existing = self._existing() if self.config.overwrite else []
        foreign = [path for path in existing if not _is_ours(path)]
        if foreign:
            raise InputError(
                f"{foreign[0]} is no checkpoint of the command train, which would write a file of "
                "this name; move it away, or choose another --out"
            )
        for path in existing:
            path.unlink()
        unfinished = re.compile(rf"\.{_NAME}\.{TEMPORARY}")
        with suppress(OSError):
            for path in self.path.iterdir():
                if unfinished.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                    path.unlink(missing_ok=True)

    def latest(self) -> dict[str, Any] | None:
        """The state from which ``--resume`` goes on; None without one.

        Raises:
            InputError: it is damaged, or of a training with other options.
        """
        whole = [path for path in self._existing() if re.fullmatch(r"epoch-\d+\.pt", path.name)]
        states = [read_state(path) for path in [*whole[-1:], *self._present(STATE)]]
        states = [state for state in states if "training" in state]
        if not states:
            if whole:
                raise InputError(
                    f"{whole[-1]} does not hold the state of a training; use --overwrite to start "
                    "again, or another --out"
                )
            return None
        state = max(states, key=lambda state: int(state["step"]))
        self._require_same_options(state["config"])
        return state

    def is_finished(self) -> bool:
        """Has a training with these options ended?"""
        latest = self.latest()
        ended = latest is not None and int(latest["epoch"]) == self.config.epochs
        return ended and not self._present(STATE)

    def write(self, name: str, state: Mapping[str, Any]) -> Path:
        """Replace a file whole."""
        path = self.path / name
        try:
            save_state(path, state, {"command": MARK, **to_dict(self.config)})
        except RuntimeError as error:  # torch's writer raises it for a full disk
            raise OSError(f"{path} cannot be written ({error}); is the disk full?") from error
        return path

    def drop_state(self) -> None:
        """A checkpoint holds all that the state between checkpoints did."""
        for path in self._present(STATE):
            path.unlink()

    def _present(self, name: str) -> list[Path]:
        path = self.path / name
        return [path] if path.exists() else []

    def _existing(self) -> list[Path]:
        """Files of our names; the epochs ascend."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if re.fullmatch(_NAME, path.name)]
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def _require_same_options(self, stored: Mapping[str, Any]) -> None:
        own = to_dict(self.config)
        changed = [
            f"--{dashed(name)} {value} (then {stored[name]})"
            for name, value in own.items()
            if name not in FREE_FIELDS and name in stored and stored[name] != value
        ]
        if changed:
            raise InputError(
                f"{self.path} is of a training with other options: {', '.join(changed)}; give the "
                "same ones, use --overwrite to start again, or another --out"
            )


def _is_ours(path: Path) -> bool:
    try:
        content = read_state(path)
    except InputError:
        return False
    return content["config"].get("command") == MARK or set(content) == _WITHOUT_MARK


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """Create the folder if it is missing; after a failure, remove a new folder that is empty."""
    is_new = not path.exists()
    path.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # not empty: keep it
                os.rmdir(path)
        raise
