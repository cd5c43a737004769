"""Results of many run files in one, each under its file's name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Record, Table
from hessian_spectrum.storage import hdf5_schema, provenance, run_file
from hessian_spectrum.storage.writer_lock import WriterLock

PATIENCE = 300.0  # seconds that a job of an array waits while others write the summary


def merge(summary: Path, files: Sequence[Path], patience: float = PATIENCE) -> list[str]:
    """Put the results of ``files`` into ``summary``; returns what it holds then.

    ``density`` of ``epoch-0005.h5`` becomes ``density/epoch-0005``, and ``density/late`` of it
    ``density/epoch-0005, late``. A result of the same name is replaced and all
    others are kept, so that a job can be started again. Several processes may merge into one file
    at the same time.

    Raises:
        InputError: a file is not finished, or was not written by hessian_spectrum; another process
            holds the summary for longer than ``patience`` seconds.
    """
    if not files:
        raise InputError("no files to merge; expected run files with names of their own")
    names = labels_of(files)
    run_file.check_output(summary, overwrite=True)
    with ExitStack() as stack:
        runs = {name: stack.enter_context(run_file.open(p)) for name, p in zip(names, files)}
        for run in runs.values():
            if not run.finished:
                raise InputError(f"{run.path} is not finished: its command with --resume goes on")
        stack.enter_context(_PatientLock(summary, patience))
        held: dict[str, Any] = {}
        told: dict[str, dict[str, Any]] = {"config": {}, "provenance": {}}
        if summary.exists():
            before = stack.enter_context(run_file.open(summary))
            if before.config.get("command") != "merge":
                raise InputError(f"{summary} is not a summary; choose another name")
            held.update(before)
            for record, name in ((before.config, "config"), (before.provenance, "provenance")):
                Record({"of": Table(Record({}))}).require(record, f"{summary}: {name}")
            told = {"config": before.config["of"], "provenance": before.provenance["of"]}
        for name, run in runs.items():
            held.update({_key(key, name): result for key, result in run.items()})
            told["config"][name], told["provenance"][name] = run.config, run.provenance
        run_file.save(
            summary,
            config={"command": "merge", "of": told["config"]},
            provenance={**provenance.collect(), "of": told["provenance"]},
            overwrite=True,
            **held,
        )
    return list(held)


def labels_of(files: Sequence[Path]) -> list[str]:
    """The label that results of each file have in a file of many: its name without the suffix.

    Raises:
        InputError: two files have the same, or one that no label can have.
    """
    names = [hdf5_schema.split_key(f"density/{path.stem}")[1] for path in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two files are called {twice[0]}; expected files with names of their own")
    return names


def _key(key: str, name: str) -> str:
    kind, label = hdf5_schema.split_key(key)
    main = label == hdf5_schema.DEFAULT_LABEL
    return hdf5_schema.join_key(kind, name if main else f"{name}, {label}")


class _PatientLock(WriterLock):
    """A writer's lock that waits up to ``patience`` seconds for the current writer."""

    def __init__(self, path: Path, patience: float):
        super().__init__(path)
        self.patience = patience

    def __enter__(self) -> WriterLock:
        end = time.monotonic() + self.patience
        while True:
            try:
                return super().__enter__()
            except InputError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
