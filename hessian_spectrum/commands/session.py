"""One run of one command: what its files say beside results, and the right to write them."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from hessian_spectrum.commands.checkpointing import Checkpoints
from hessian_spectrum.commands.header import ProblemSize, RunHeader, Work
from hessian_spectrum.commands.progress import Progress
from hessian_spectrum.commands.progress_file import leave_progress
from hessian_spectrum.config import defaults, to_dict
from hessian_spectrum.distributed.agreement import on_first_rank
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.storage import Place
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.planning.product_planner import Estimate
from hessian_spectrum.storage import provenance, run_file
from hessian_spectrum.storage.hdf5_schema import Result
from hessian_spectrum.storage.writer_lock import WriterLock

if TYPE_CHECKING:
    from hessian_spectrum.commands.computation import Computation


class Session:
    """Made by the runner, once it holds the lock; every rank has one, rank 0 writes the file.

    Args:
        started: time.time() at the start of the command.
        quiet: print neither the plan nor the report, and show no progress.
    """

    def __init__(
        self,
        computation: Computation[Any, Any],
        lock: WriterLock,
        checkpoints: Checkpoints,
        started: float,
        quiet: bool = False,
    ):
        self.computation, self.world = computation, computation.world
        self.lock, self.checkpoints = lock, checkpoints
        self.started, self.quiet = started, quiet
        self.digests: dict[str, str | None] = computation.evaluator.digests()
        self.origin = {
            **provenance.collect(),
            "digests": self.digests,
            **_machine(self.world),
        }
        self.values: dict[str, float] = {}
        self.earlier: RunHeader | None = None  # of the run that is resumed
        self.product_plan: ProductPlan | None = None  # once it is chosen
        self.place = "device"  # of the Krylov vectors
        self.rest = 0.0  # seconds that the run is expected to take after its last step
        self.threads = torch.get_num_threads()
        self.progress: Progress | None = None  # of the present stage
        self.files = ExitStack()  # those that are read while the run lasts
        checkpoints.on_save = self._tell_saved

    @property
    def basis_place(self) -> Place:
        on_disk = self.place == "disk"
        return self.computation.config.scratch_folder if on_disk else self.place

    def take(self, estimate: Estimate) -> None:
        """Form products as the planner says."""
        self.product_plan, self.place = estimate.plan, estimate.place
        self.rest = estimate.after

    def resume_from(self, earlier: RunHeader) -> None:
        """Take over the counts and the plan of the run that left this header.

        Raises:
            InputError: it was another run.
        """
        options = defaults(type(self.computation.config))
        earlier.require_same_run(self.header(), options, self.computation.free_fields)
        self.earlier = earlier
        if earlier.product_plan:
            self.product_plan, self.place = earlier.product_plan, earlier.place
        # Another number of threads may add in another order: the same bits need the same plan.
        torch.set_num_threads(earlier.threads)
        self.threads = earlier.threads

    def require_same_values(self) -> None:
        """InputError unless the loss is that of the run that is resumed, if one is."""
        if self.earlier:
            dtype = self.computation.evaluator.dtype
            self.earlier.require_same_values(self.values, dtype)

    # -- what is shown ---------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print to stderr, on the first rank."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """As ``say``, of a quiet run too."""
        if self.world.rank == 0:
            print(text, file=sys.stderr, flush=True)

    def stage(self, total: int | None, done: int, unit: str, rest: float = 0.0) -> Progress:
        """Progress of what comes now, shown and noted on the first rank.

        Args:
            rest: seconds that the run will take after it.
        """
        is_first = self.world.rank == 0
        self.progress = Progress(
            self.computation.command,
            total,
            done,
            unit,
            rest=rest,
            is_shown=is_first and not self.quiet,
            note=self.lock.note if is_first else None,
        )
        return self.progress

    def _tell_saved(self, last: bool) -> None:
        if self.world.rank == 0:
            leave_progress(self.computation.progress)
        if self.progress is not None:
            self.progress.saved(last)

    # -- what is written -------------------------------------------------------------------------

    def write(self, *results: Result, finished: bool, **labelled: Result) -> None:
        """Replace the result file by these results, on rank 0; called by every rank."""
        on_first_rank(self.world, lambda: self.write_here(*results, finished=finished, **labelled))

    def write_here(self, *results: Result, finished: bool, **labelled: Result) -> None:
        """As ``write``, called by rank 0 alone."""
        self.lock.require()
        computation = self.computation
        run_file.save(
            computation.config.out,
            *results,
            config={"command": computation.command, **to_dict(computation.config_used())},
            plan=self.plan(),
            provenance={**self.origin, **dataclasses.asdict(self.work())},
            finished=finished,
            overwrite=True,
            values=self.values,
            **labelled,
        )

    def header(self) -> RunHeader:
        """Of this run as it is now."""
        evaluator = self.computation.evaluator
        return RunHeader(
            config=to_dict(self.computation.config),
            digests=self.digests,
            problem=ProblemSize(evaluator.n, evaluator.total_weight, str(evaluator.dtype)),
            values=dict(self.values),
            plan=self.plan(),
            work=self.work(),
        )

    def plan(self) -> dict[str, Any]:
        """How the numbers are computed; a resumption computes them in the same way."""
        evaluator = self.computation.evaluator
        products: Mapping[str, Any] = {}
        if self.product_plan:
            products = {
                "operator": getattr(self.computation.config, "operator", "hessian"),
                "products": dataclasses.asdict(self.product_plan),
                "basis": self.place,
            }
        return {
            **self.computation.plan_entries(),
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
            **evaluator.verification.stored(),
        }

    def work(self) -> Work:
        """Spent by this run and by those that it resumes."""
        before = self.earlier.work if self.earlier else Work()
        products, passes = self.computation.counts()
        return Work(
            before.seconds + time.time() - self.started,
            before.products + products,
            before.passes + passes,
        )


def _machine(world: World) -> dict[str, Any]:
    device = world.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"world_size": world.size, "launcher": world.launcher, "device": name}
