"""The result file of a tracker: it grows with each record, and goes on where a checkpoint is."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import on_first_rank
from hessian_spectrum.distributed.world import World
from hessian_spectrum.landscape.results import Track
from hessian_spectrum.storage import provenance, run_file
from hessian_spectrum.storage.hdf5_schema import Result, split_key
from hessian_spectrum.storage.writer_lock import WriterLock
from hessian_spectrum.tracking.sharpness import Ends
from hessian_spectrum.tracking.stability import Stability


class TrackFile:
    """Every rank has one, and calls the same methods; rank 0 writes, each time the file whole.

    Args:
        about: of a new run, stored with its records; "run" identifies it.
    """

    def __init__(self, path: Path, world: World, about: Mapping[str, Any], overwrite: bool):
        self.path, self.world, self.overwrite = path, world, overwrite
        self.track = Track.empty(about)
        self.others: dict[str, Result] = {}  # densities, by key
        self._lock = WriterLock(path)
        self._has_begun = self._is_restored = False

    @property
    def run(self) -> str:
        return str(self.track.about["run"])

    @property
    def num_records(self) -> int:
        return len(self.track)

    def begin(self) -> None:
        """Before the first step: become the only writer.

        Raises:
            InputError: there is a file of another run, or another writer.
        """
        if self._has_begun:
            return

        def begin() -> None:
            replaced = self.overwrite or self._is_restored
            if self.path.exists() and not replaced:
                raise InputError(
                    f"{self.path}: exists already; restore the tracker by load_state_dict to go on "
                    "with it, choose another path, or use overwrite=True"
                )
            run_file.check_output(self.path, overwrite=replaced)
            self._lock.__enter__()
            # Also where the tracker is never closed: another node could not tell that we are gone,
            # and a cell of a notebook that runs again is this same process.
            weakref.finalize(self, self._lock.__exit__)

        on_first_rank(self.world, begin)
        self._has_begun = True

    def restore(self, run: str, step: int, records: int) -> None:
        """Go on with the file of this run, after this step and so many records."""
        if self._has_begun:
            raise InputError("load_state_dict: call it before the first step")

        def read() -> tuple[Track, dict[str, Result]]:
            if not self.path.exists():
                if not records:  # stopped before the first record
                    return Track.empty({**self.track.about, "run": run}), {}
                raise InputError(
                    f"{self.path}: no such file, and the restored tracker had made {records} "
                    "records; give the tracker its file, or start without load_state_dict"
                )
            with run_file.open(self.path) as found:
                track = found.get("track")
                if not isinstance(track, Track) or track.about.get("run") != run:
                    raise InputError(
                        f"{self.path}: is not the file of the run that is restored; give the "
                        "tracker that file, or start without load_state_dict"
                    )
                track = track.until(step)
                if len(track) != records:
                    raise InputError(
                        f"{self.path}: has {len(track)} records up to step {step}, and the "
                        f"restored tracker had made {records}; restore the file"
                    )
                kept = {key: found[key] for key in found if _step_of(key) <= step}
                return track, {key: kept[key] for key in kept if key != "track"}

        found: list[Any] = [None]

        def read_here() -> None:
            found[0] = read()

        on_first_rank(self.world, read_here)
        self.track = self.world.gather_objects(found[0] and found[0][0])[0]
        self.others = found[0][1] if found[0] else {}
        self._is_restored = True

    def note_rule(self, optimizer: str, rule: Stability) -> None:
        """What is known of the optimizer; a change, as by a switch, is kept."""
        said = rule.why_not or "known"
        rules = dict(self.track.about.get("threshold", {}))
        if rules.get(optimizer) != said:
            about = {**self.track.about, "threshold": {**rules, optimizer: said}}
            self.track = dataclasses.replace(self.track, about=about)

    def skip(self, step: int) -> None:
        """A due step was left out; written with the next record."""
        self.track = self.track.with_skip(step)

    def append(
        self, step: int, values: Mapping[str, float], ends: Ends, beside: Mapping[str, Result]
    ) -> None:
        """One record more, and results of the same step; written before it returns."""
        low = ends.num_lower
        self.track = self.track.with_record(
            step,
            values,
            ends.values[low:][::-1],
            ends.residuals[low:][::-1],
            ends.values[:low],
            ends.residuals[:low],
        )
        self.others.update(beside)
        self._write(finished=False)

    def close(self) -> None:
        """Mark it as finished, and let others write it."""
        if not self._has_begun:
            return
        self._write(finished=True)
        on_first_rank(self.world, self._lock.__exit__)
        self._has_begun = False

    def leave(self) -> None:
        """After an error, on any rank alone: it stays as it is, and others may write it."""
        if self._has_begun and self.world.rank == 0:
            self._lock.__exit__()
        self._has_begun = False

    def _write(self, finished: bool) -> None:
        def write() -> None:
            self._lock.require()
            run_file.save(
                self.path,
                self.track,
                config={"command": "tracker"},
                provenance=provenance.collect(),
                finished=finished,
                overwrite=True,
                **self.others,
            )

        on_first_rank(self.world, write)


def _step_of(key: str) -> int:
    """Of a result of one step, by its label; 0 for others."""
    _, label = split_key(key)
    number = label.removeprefix("step-")
    return int(number) if label.startswith("step-") and number.isdigit() else 0
