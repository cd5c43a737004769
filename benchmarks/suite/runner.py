"""Runs studies: each in a process of its own, so that one that fails or is killed stops no other.

A study whose result is there, with the same options and sources, is not repeated; one that was
interrupted goes on with the files in its folder.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite import results
from benchmarks.suite.context import Context, DataMissing, digest, sources_digest
from benchmarks.suite.registry import Registry
from benchmarks.suite.results import Result
from benchmarks.suite.study import Scale, Study

HERE = Path(__file__).parent
# Imported once, before the processes of the studies are forked from a server.
PRELOADED = ["torch", "h5py", "matplotlib.figure", "hessian_spectrum.cli.dispatch"]
POLL = 0.1  # seconds


@dataclass(frozen=True)
class Plan:
    """How studies are run.

    Args:
        out: for results, the folders of studies, and shared networks.
        jobs: studies at once; those of the group "speed" run alone.
        minutes: after which a study is stopped, as a failure; None: never.
        shared: for networks that several studies use; default: in ``out``.
        registry: where the studies are.
    """

    scale: Scale
    out: Path
    data_root: Path
    launcher: tuple[str, ...] = ()
    jobs: int = 1
    minutes: float | None = None
    threads: int | None = None
    again: bool = False  # also what is there already
    shared: Path | None = None
    registry: Registry = field(default_factory=Registry)

    @property
    def folder(self) -> Path:
        """Of the results."""
        return self.out / self.scale

    def context(self, name: str) -> Context:
        return Context(
            name,
            self.scale,
            self.folder / name,
            self.shared or self.out / "shared",
            self.data_root,
            self.launcher,
        )


def run(names: Sequence[str], plan: Plan, say: Callable[[str], None] = print) -> dict[str, Result]:
    """Run these studies, those of the group "speed" last and one at a time.

    Returns:
        The results, in the order of the names.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    known = {} if plan.again else results.read(plan.folder)
    found: dict[str, Result] = {}
    waiting: list[str] = []
    for name in names:
        result = known.get(name)
        if result is not None and result.status == "done" and result.key == key(name, plan):
            say(f"{name}: is there already")
            found[name] = result
        else:
            waiting.append(name)
    together = [name for name in waiting if plan.registry.load(name).group != "speed"]
    alone = [name for name in waiting if name not in together]
    _run_all(together, plan.jobs, plan, found, say)
    _run_all(alone, 1, plan, found, say)
    return {name: found[name] for name in names}


def key(name: str, plan: Plan) -> str:
    """What a result depends on: options, the study's file, the suite, the package."""
    study = plan.registry.load(name)
    own = plan.registry.source(name)
    suite = [path.read_text() for path in sorted(HERE.glob("*.py"))]
    options = study.scales.get(plan.scale)
    return digest(
        {"options": repr(options), "study": own, "suite": suite, "package": sources_digest()}
    )[:16]


def _run_all(
    names: Sequence[str],
    jobs: int,
    plan: Plan,
    found: dict[str, Result],
    say: Callable[[str], None],
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    waiting = list(names)
    running: dict[str, tuple[Any, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                say(f"{name}: begins, {plan.registry.load(name).title}")
                process = context.Process(target=_study, args=(name, plan))
                process.start()
                running[name] = process, time.monotonic()
            time.sleep(POLL)
            for name, (process, began) in list(running.items()):
                minutes = (time.monotonic() - began) / 60
                why = ""
                if process.is_alive():
                    if plan.minutes is None or minutes < plan.minutes:
                        continue
                    process.kill()
                    why = f"was stopped after {minutes:.3g} minutes"
                process.join()
                del running[name]
                found[name] = _ended(name, plan, why or _death(process.exitcode), 60 * minutes)
                say(_said(found[name]))
    finally:
        for process, _ in running.values():
            process.terminate()


def _death(code: int | None) -> str:
    return "" if code == 0 else f"its process ended with exit code {code}, without a result"


def _ended(name: str, plan: Plan, why: str, seconds: float) -> Result:
    """The result that the study's process has left, or one that says why there is none."""
    path = plan.folder / f"{name}.json"
    if not why and path.exists():
        return Result.of_json(path.read_text(), path)
    study = plan.registry.load(name)
    result = Result(
        *(name, study.title, study.source, plan.scale, key(name, plan), "failed"),
        seconds=seconds,
        error=why,
    )
    results.write(result, {}, plan.folder)
    return result


def _said(result: Result) -> str:
    lines = [f"{result.study}: {result.status}, {result.seconds:.0f} s {result.error}".rstrip()]
    return "\n".join([*lines, *(f"  {finding}" for finding in result.findings)])


# -- in the study's own process ------------------------------------------------------------------


def _study(name: str, plan: Plan) -> None:
    """Run one study, and write its result; what it prints is in NAME.log."""
    import torch

    from hessian_spectrum.storage import provenance

    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    study, context = plan.registry.load(name), plan.context(name)
    context.folder.mkdir(parents=True, exist_ok=True)
    about = provenance.collect()
    about["threads"], about["cores"] = torch.get_num_threads(), os.cpu_count()
    about["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    began = time.monotonic()
    result = Result(
        *(name, study.title, study.source, plan.scale, key(name, plan), "done"),
        options=_options(study, plan.scale),
        about=about,
    )
    values: dict[str, Any] = {}
    with open(plan.folder / f"{name}.log", "a", buffering=1) as log:
        with redirect_stdout(log), redirect_stderr(log):
            result, values = _measured(study, context, result)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    fields = {**vars(result), "seconds": time.monotonic() - began, "peak_bytes": peak}
    results.write(Result(**fields), values, plan.folder)
    sys.exit(0)


def _measured(study: Study, context: Context, result: Result) -> tuple[Result, dict[str, Any]]:
    changed: dict[str, Any] = {}
    values: dict[str, Any] = {}
    if context.scale not in study.scales:
        changed = {"status": "no such scale", "error": f"has no scale {context.scale!r}"}
    else:
        try:
            outcome = study.run(context, study.scales[context.scale])
            changed = {"findings": tuple(outcome.findings), "notes": outcome.notes}
            values = dict(outcome.values)
            if outcome.figure is not None:
                path = context.folder.parent / f"{result.study}.png"
                outcome.figure.savefig(path, dpi=110)
                changed["figure"] = path.name
        except DataMissing as error:
            changed = {"status": "no data", "error": str(error)}
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
            changed = {"status": "failed", "error": said}
    return Result(**{**vars(result), **changed}), values


def _options(study: Study, scale: Scale) -> dict[str, Any]:
    options = study.scales.get(scale)
    if is_dataclass(options) and not isinstance(options, type):
        return asdict(options)
    return {} if options is None else {"options": repr(options)}


def remove(names: Sequence[str], plan: Plan) -> None:
    """Delete the results and files of these studies, so that they begin anew."""
    for name in names:
        shutil.rmtree(plan.folder / name, ignore_errors=True)
        for path in plan.folder.glob(f"{name}.*"):
            path.unlink()
