"""The ``alignment`` command: the result file itself is the state, one batch size after another."""

from __future__ import annotations

import dataclasses
import sys
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms import eigenpairs as eigensolver
from hessian_spectrum.analyses.alignment import SHARE, alignment, gradients_at_once, sizes_of
from hessian_spectrum.analyses.alignment_result import Alignment, joined
from hessian_spectrum.commands import report
from hessian_spectrum.commands.runner import (
    OPERATORS,
    Record,
    check_output,
    first_order,
    on_first_rank,
    print_estimate,
    together,
    writing,
)
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config.computing import AlignmentConfig
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.planning import product_planner
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.storage import hdf5_schema, run_file
from hessian_spectrum.storage.krylov_state import RecurrenceStore


def align(
    config: AlignmentConfig,
    arguments: dict[str, Any],
    world: World,
    stop: StopRequest | None = None,
) -> None:
    """From a problem to a finished result file; each batch size is written when it is done.

    Args:
        arguments: of Evaluator: model, loss_fn, data and options.
        world: the ranks; all of them call this.
        stop: a listener to signals that is already at work; default: one for this call.

    Raises:
        InputError: the input, or the output's place, cannot be used; nothing was written.
        FloatingPointError: the loss is not finite.
        Interrupted: a signal came; ``resume`` goes on with the batch size it came in.
    """
    started = time.time()

    def check() -> None:
        _check_output(config)

    on_first_rank(world, check)
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest().listening())
        evaluator = Evaluator(**arguments, world=world)
        sizes = sizes_of(config.sizes, evaluator)
        if config.dry_run:
            operator = OPERATORS[config.operator](evaluator)
            at_once = _at_once(config, evaluator)
            estimate = _estimate(config, operator, sizes, at_once)
            print_estimate(estimate, evaluator, first_order(evaluator))
            return
        lock = stack.enter_context(writing(config, world, stop, check))
        record = AlignmentRecord(config, world, evaluator, lock, started)
        _align(config, record, sizes, stop, stack)


def _align(
    config: AlignmentConfig,
    record: AlignmentRecord,
    sizes: list[int],
    stop: StopRequest,
    stack: ExitStack,
) -> None:
    world, evaluator = record.world, record.evaluator
    found = record.earlier_result(sizes)
    missing = [size for size in sizes if found is None or size not in found.batch_sizes]
    record.top = together(world, lambda: record.stored_pairs(stack))
    if found is not None and not np.array_equal(found.eigenvalues, _values(record.top)):
        raise InputError(
            f"cannot resume: {config.out} has {len(found.eigenvalues)} eigenpairs, and these are "
            "others; name the same --eigenpairs, or use --overwrite to start again"
        )
    record.values = values = first_order(evaluator)
    record.require_same_values()
    record.leave_if(stop)
    operator = OPERATORS[config.operator](evaluator)
    if record.product_plan is None:
        record.at_once = _at_once(config, evaluator)
        estimate = _estimate(config, operator, missing, record.at_once)
        record.product_plan, record.place = estimate.plan, estimate.place
        print_estimate(estimate, evaluator, values, file=sys.stderr)
    operator = operator.planned(record.product_plan)
    if record.top is None and found is None and config.num_pairs:
        record.top = _largest(config, record, operator, stop)
        record.write(record.top, finished=False)

    with record.bar(sum(_minibatches(config, missing, evaluator)), 0, "minibatch") as bar:
        for size in missing:
            before = bar.n

            def on_chunk(done: int, before: int = before) -> None:
                record.leave_if(stop)
                bar.update(before + done - bar.n)

            part = alignment(
                evaluator,
                (size,),
                config.num_batches,
                pairs=record.top,
                operator=operator,
                seed=config.seed,
                at_once=record.at_once,
                on_chunk=on_chunk,
            )
            found = part if found is None else joined([found, part])
            record.save(found, finished=size == missing[-1])
    if world.rank == 0:
        print(report.alignment(found, values))
        print(f"written to {config.out}")


def _values(pairs: EigenPairs | None) -> np.ndarray:
    """Those of the upper end, which alignments are stored with."""
    return np.empty(0) if pairs is None else np.asarray(pairs.values)[pairs.num_lower or 0 :]


def _largest(
    config: AlignmentConfig, record: AlignmentRecord, operator: Curvature, stop: StopRequest
) -> EigenPairs:
    """As the ``eigenpairs`` command finds them; not resumed, but kept with the result."""
    n = operator.n
    k = min(config.num_pairs, n)
    if k * n * operator.dtype.itemsize >= hdf5_schema.MAX_VECTOR_BYTES:
        raise InputError(
            f"{k} eigenvectors of {n} entries are too large for the result file; use a smaller "
            "--k, or compute them by the eigenpairs command and name its file: --eigenpairs"
        )
    with record.bar(None, 0, "product") as bar:

        def on_step(space: RitzSpace) -> None:
            record.leave_if(stop)
            bar.update(space.products - bar.n)

        return eigensolver.eigenpairs(
            operator, k, "largest", seed=config.seed, basis=record.basis_place, on_step=on_step
        )


class AlignmentRecord(Record):
    """Its state is the result file: the batch sizes that are done."""

    command = "alignment"
    # More sizes extend a run; eigenpairs are compared by their values, wherever they lie.
    free_fields = Record.free_fields | {"batch_sizes", "eigenpairs"}
    at_once = 0  # gradients in one block
    top: EigenPairs | None = None

    def save(self, found: Alignment, finished: bool) -> None:
        """The batch sizes that are done, and the eigenpairs that were computed for them."""
        own = [self.top] if self.top is not None and self.config.num_pairs else []
        self.write(found, *own, finished=finished)

    def earlier_result(self, sizes: list[int]) -> Alignment | None:
        """What an earlier run has finished; None for a new run, which starts clean."""
        if self.config.overwrite:  # what another command may have left beside the file
            on_first_rank(self.world, RecurrenceStore(self.folder, self.world).remove)
        if not self.world.any(self.config.resume and self.config.out.exists()):
            return None
        saved = self.world.gather_objects(
            together(self.world, lambda: self._saved() if self.world.rank == 0 else None)
        )[0]
        header, found = saved
        together(self.world, lambda: self.go_on_from(header))
        self.at_once = header["plan"]["gradients_at_once"]
        if found is not None and set(sizes) <= set(found.batch_sizes.tolist()):
            raise InputError(
                f"{self.config.out} has all of these batch sizes: extend it by other "
                "--batch-sizes, or compute it again with --overwrite"
            )
        return found

    def _saved(self) -> tuple[dict[str, Any], Alignment | None]:
        """The header of a record, as the result file has it, and the result, if there is one."""
        with run_file.open(self.config.out) as run:
            if run.config.get("command") != self.command:
                raise InputError(
                    f"{self.config.out} is no result of {self.command}: there is nothing to "
                    "resume; use --overwrite, or another --out"
                )
            plan, provenance = run.plan, run.provenance
            header = {
                "config": run.config,
                "digests": provenance["digests"],
                "problem": {
                    "parameters": plan["parameters"],
                    "total_weight": plan["total_weight"],
                    "dtype": f"torch.{plan['dtype']}",
                },
                "values": dict(run["values"]),
                "plan": plan,
                "work": {name: provenance[name] for name in ("seconds", "products", "passes")},
            }
            return header, run.get("alignment")

    def stored_pairs(self, stack: ExitStack) -> EigenPairs | None:
        """The eigenpairs that the user names, or that the resumed run had computed; their vectors
        are read later.

        Raises:
            InputError: they are of other parameters or data, or of another matrix.
        """
        config = self.config
        if config.eigenpairs is None and self.product_plan and config.num_pairs:  # resumed
            return stack.enter_context(run_file.open(config.out)).get("eigenpairs")
        path = config.eigenpairs
        if path is None:
            return None
        run = stack.enter_context(run_file.open(path))
        if "eigenpairs" not in run:
            raise InputError(f"--eigenpairs {path}: holds {', '.join(run)}; expected eigenpairs")
        digests = run.provenance.get("digests", {})
        for name, digest in self.origin["digests"].items():
            if run.plan.get("dtype") != self.plan()["dtype"]:  # other bits of the same numbers
                break
            if None not in (digest, digests.get(name)) and digests[name] != digest:
                raise InputError(
                    f"--eigenpairs {path}: of other {name}; compute them with those of this run"
                )
        operator = run.plan.get("operator", self.config.operator)
        if operator != self.config.operator:
            raise InputError(
                f"--eigenpairs {path}: of the {operator} matrix; expected --operator {operator}"
            )
        return run["eigenpairs"]

    def plan(self) -> dict[str, Any]:
        return {**super().plan(), "gradients_at_once": self.at_once}


def _check_output(config: AlignmentConfig) -> None:
    if config.resume and config.out.exists():
        run_file.check_output(config.out, resume=True)
    else:
        check_output(config, "")


def _at_once(config: AlignmentConfig, evaluator: Evaluator) -> int:
    memory = config.memory_bytes
    fitting = gradients_at_once(evaluator, None if memory is None else int(SHARE * memory))
    return min(fitting, config.num_batches)


def _minibatches(config: AlignmentConfig, sizes: list[int], evaluator: Evaluator) -> list[int]:
    """Of each size."""
    total = round(evaluator.num_samples)
    return [1 if size == total else config.num_batches for size in sizes]


def _estimate(
    config: AlignmentConfig, operator: Curvature, sizes: list[int], at_once: int
) -> product_planner.Estimate:
    numbers = _minibatches(config, sizes, operator.evaluator)
    passes = sum(-(-number // at_once) for number in numbers)
    estimate = product_planner.plan(
        operator.evaluator,
        operator.theta,
        at_once,
        passes,
        kept=2 * at_once,  # the gradients, and of unit length
        form=operator.form,
        mode=config.hvp,
        precision=config.hvp_dtype,
        memory=config.memory_bytes,
    )
    return dataclasses.replace(estimate, products=sum(numbers))
