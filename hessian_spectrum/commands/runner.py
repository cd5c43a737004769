"""What every computing command keeps of itself: its lock, plan, counts, and what it resumes."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.commands import report
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.config.computing import ComputingConfig, to_dict
from hessian_spectrum.distributed.agreement import on_first_rank as on_first_rank
from hessian_spectrum.distributed.agreement import together as together
from hessian_spectrum.distributed.world import Flags, World
from hessian_spectrum.krylov.storage import Place
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature import (
    Curvature,
    Fisher,
    GaussNewton,
    GradientCovariance,
    Hessian,
)
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.planning import product_planner
from hessian_spectrum.storage import provenance, run_file
from hessian_spectrum.storage.hdf5_schema import Result
from hessian_spectrum.storage.writer_lock import WriterLock

OPERATORS: dict[str, Callable[[Evaluator], Curvature]] = {
    "hessian": Hessian,
    "gauss-newton": GaussNewton,
    "fisher": Fisher,
    "gradient-covariance": GradientCovariance,
    "gradient-second-moment": partial(GradientCovariance, centered=False),
}


class Record:
    """Of one run: what a resumption must agree with, and what the result file says beside results.

    A command's own record says how its state is kept. Rank 0 writes the result file.
    """

    command: str
    # What may differ between a run and its resumption without changing a number.
    free_fields = frozenset(
        {
            *("command", "out", "resume", "overwrite", "checkpoint_minutes", "timeout_minutes"),
            *("device", "memory", "dry_run", "download"),  # the stored plan is used again
        }
    )

    def __init__(
        self,
        config: ComputingConfig,
        world: World,
        evaluator: Evaluator,
        lock: WriterLock,
        started: float,
    ):
        self.config, self.world, self.evaluator = config, world, evaluator
        self.lock, self.started = lock, started
        self.origin = {**provenance.collect(), "digests": evaluator.digests(), **_machine(world)}
        self.values: dict[str, float] = {}
        self.saved_values: dict[str, float] = {}
        self.product_plan: ProductPlan | None = None  # of the interrupted run, once it is known
        self.place = "device"  # of the Krylov vectors
        self.earlier = {"seconds": 0.0, "products": 0, "passes": 0}  # before a resumption
        self.threads = torch.get_num_threads()
        self.last_save = time.monotonic()

    @property
    def folder(self) -> Path:
        """Of the state, beside the result file."""
        return Path(f"{self.config.out}.d")

    @property
    def basis_place(self) -> Place:
        return self.config.out.parent if self.place == "disk" else self.place

    # -- going on from an earlier run ------------------------------------------------------------

    def go_on_from(self, saved: dict[str, Any]) -> None:
        """Take over the counts and the plan of the run that left this header.

        Raises:
            InputError: it was another run.
        """
        same_run(saved, self.header(), self.free_fields)
        self.earlier, self.saved_values = saved["work"], saved["values"]
        if "products" in saved["plan"]:
            self.product_plan = ProductPlan(**saved["plan"]["products"])
            self.place = saved["plan"]["basis"]
        # Another number of threads may add in another order: the same bits need the same plan.
        torch.set_num_threads(saved["plan"]["threads"])
        self.threads = saved["plan"]["threads"]

    def require_same_values(self) -> None:
        """The loss may have changed where no digest tells: in the problem file's code."""
        require_same_values(self.saved_values, self.values, self.evaluator.dtype)

    # -- between steps ---------------------------------------------------------------------------

    def leave_if(self, stop: StopRequest) -> None:
        """Between steps: nothing new to save."""
        if self.agree(stop.name is not None)[0]:
            raise Interrupted(stop.name or "a signal to another rank", agreed=True)

    def is_due(self) -> bool:
        return time.monotonic() - self.last_save > 60 * self.config.checkpoint_minutes

    def agree(self, *flags: bool) -> list[bool]:
        """For each flag: is it set on any rank? One small reduction."""
        if self.world.size == 1:
            return list(flags)
        counts = torch.tensor([float(flag) for flag in flags], device=self.world.device)
        return [count > 0 for count in self.world.sum(counts).tolist()]

    def flags(self, stop: StopRequest) -> Flags:
        """What ``checkpoint`` asks, to travel with a reduction that a step makes anyway."""
        return Flags(lambda: stop.name is not None, self.is_due)

    def checkpoint(
        self,
        stop: StopRequest,
        save: Callable[[], None],
        finished: bool,
        flags: Flags | None = None,
    ) -> None:
        """After each step: save where it is due, and leave where a signal came.

        Args:
            flags: what ranks have told each other in this step; None: they ask now.
        """
        if flags is None:
            stopping, due = self.agree(stop.name is not None, self.is_due())
        else:
            stopping, due = flags.heard
        if (stopping or due) and not finished:
            save()
            self.last_save = time.monotonic()
        if stopping and not finished:
            raise Interrupted(stop.name or "a signal to another rank", agreed=True)

    def bar(self, total: int | None, done: int, unit: str) -> tqdm:
        """Progress, on the first rank, where stderr is a terminal."""
        quiet = None if self.world.rank == 0 else True  # None: where stderr is not a terminal
        return tqdm(total=total, initial=done, desc=self.command, unit=unit, disable=quiet)

    # -- writing ---------------------------------------------------------------------------------

    def write(self, *results: Result, finished: bool, **labelled: Result) -> None:
        """Replace the result file by these results, on rank 0; called by every rank."""
        on_first_rank(self.world, lambda: self.write_here(*results, finished=finished, **labelled))

    def write_here(self, *results: Result, finished: bool, **labelled: Result) -> None:
        """As ``write``, called by rank 0 alone."""
        self.lock.require()
        run_file.save(
            self.config.out,
            *results,
            config={"command": self.command, **to_dict(self.config_used())},
            plan=self.plan(),
            provenance={**self.origin, **self.work()},
            finished=finished,
            overwrite=True,
            values=self.values,
            **labelled,
        )

    def config_used(self) -> ComputingConfig:
        """With what was chosen: as --config it gives the same computation."""
        return self.config

    def header(self) -> dict[str, Any]:
        """What a resumed run must agree with, and what it goes on counting from."""
        evaluator = self.evaluator
        return {
            "config": to_dict(self.config),
            "digests": self.origin["digests"],
            "problem": {
                "parameters": evaluator.n,
                "total_weight": evaluator.total_weight,
                "dtype": str(evaluator.dtype),
            },
            "values": dict(self.values),
            "plan": self.plan(),
            "work": self.work(),
        }

    def plan(self) -> dict[str, Any]:
        """How the numbers were computed; a resumption computes them in the same way."""
        evaluator, products = self.evaluator, {}
        if self.product_plan:
            products = {
                "operator": getattr(self.config, "operator", "hessian"),
                "products": dataclasses.asdict(self.product_plan),
                "basis": self.place,
            }
        return {
            **products,
            "data_kept_on_device": evaluator.batches.kept,
            "threads": self.threads,
            "parameters": evaluator.n,
            "sizes": dict(zip(evaluator.layout.names, evaluator.layout.sizes)),
            "total_weight": evaluator.total_weight,
            "dtype": str(evaluator.dtype).removeprefix("torch."),
            "batch_norm": evaluator.batch_norm,
            "dropout": evaluator.dropout,
            "fallbacks": list(evaluator.fallbacks),
        }

    def work(self) -> dict[str, Any]:
        counts = self.evaluator.counts
        return {
            "seconds": self.earlier["seconds"] + time.time() - self.started,
            "products": self.earlier["products"] + counts.products,
            "passes": self.earlier["passes"] + counts.passes,
        }


HEADER = ("config", "digests", "problem", "values", "plan", "work")  # of a saved state


@contextmanager
def writing(
    config: ComputingConfig, world: World, stop: StopRequest, check: Callable[[], None]
) -> Iterator[WriterLock]:
    """The only writer of OUT, signals deferred; ``check`` looks at OUT again, once it is."""
    with ExitStack() as stack:
        stack.enter_context(stop.deferred())
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # a resume sets its own
        lock = WriterLock(config.out)
        on_first_rank(world, lambda: stack.enter_context(lock))
        on_first_rank(world, check)
        yield lock


def first_order(evaluator: Evaluator) -> dict[str, float]:
    """What is known of the loss before any product."""
    return {
        "loss": evaluator.loss().item(),
        "gradient_norm": evaluator.gradient().norm().item(),
    }


def print_estimate(
    estimate: product_planner.Estimate,
    evaluator: Evaluator,
    values: dict[str, float],
    most: bool = False,
    file: TextIO | None = None,
) -> None:
    """The plan and its cost, on the first rank; ``most``: the run may end earlier."""
    if evaluator.world.rank == 0:
        text = report.estimate(estimate, evaluator, values, most)
        print(text, file=file or sys.stdout, flush=True)


def check_output(config: ComputingConfig, unresumable: str) -> None:
    """Refuse an OUT, or an earlier run's state beside it, that this run must not touch.

    Args:
        unresumable: why a finished run without its state cannot go on.
    """
    run_file.check_output(config.out, overwrite=config.overwrite, resume=config.resume)
    state = Path(f"{config.out}.d")
    if state.exists() and not (config.resume or config.overwrite):
        raise InputError(
            f"{state} exists already, the state of an earlier run; use --resume to go on, "
            "--overwrite to start again, or another --out"
        )
    if config.resume and not state.exists():
        require_unfinished(config, unresumable)


def require_unfinished(config: ComputingConfig, why: str) -> None:
    """A finished run without its state cannot go on, and must not be computed over."""
    if config.out.exists():
        with reopened(config.out) as run:
            if run.finished:
                raise InputError(
                    f"{config.out} is finished: there is nothing to resume{why}; use --overwrite "
                    "to compute it again"
                )


def reopened(path: Path) -> run_file.Run:
    """What a run has left, to go on from; InputError says what to do if it cannot be read."""
    try:
        return run_file.open(path)
    except InputError as error:
        raise InputError(f"{error}; restore it, or use --overwrite to start again") from None


def same_run(saved: dict, now: dict, free_fields: frozenset[str]) -> None:
    """InputError, in words, unless a run with header ``now`` may go on from ``saved``."""
    before, options = saved["config"], now["config"]
    for name in sorted(set(before) | set(options)):
        if name not in free_fields and before.get(name) != options.get(name):
            raise InputError(
                f"cannot resume: --{name.replace('_', '-')} was {before.get(name)!r} and is now "
                f"{options.get(name)!r}; use the same options, or --overwrite to start again"
            )
    for name, digest in now["digests"].items():
        # None: data too large to be read for a digest.
        if None not in (digest, saved["digests"][name]) and saved["digests"][name] != digest:
            raise InputError(
                f"cannot resume: the {name} are not those of the interrupted run; restore them, or "
                "use --overwrite to start again"
            )
    for name, value in now["problem"].items():
        if saved["problem"][name] != value:
            raise InputError(
                f"cannot resume: {name.replace('_', ' ')} was {saved['problem'][name]} and is now "
                f"{value}; restore the problem, or use --overwrite to start again"
            )


def require_same_values(before: dict, now: dict, dtype: torch.dtype) -> None:
    """InputError unless what both hold, such as the loss, is the same to rounding."""
    tolerance = torch.finfo(dtype).eps ** 0.6  # another number of ranks rounds
    for name, value in before.items():
        again = now.get(name, value)
        if abs(again - value) > tolerance * max(abs(again), abs(value)):
            raise InputError(
                f"cannot resume: the {name.replace('_', ' ')} was {value:.9g} and is now "
                f"{again:.9g}; restore the model, the loss and the data, or use --overwrite to "
                "start again"
            )


def _machine(world: World) -> dict[str, Any]:
    device = world.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"world_size": world.size, "launcher": world.launcher, "device": name}
