"""The ``eigenpairs`` command: a Krylov space that is saved, resumed and gone on with."""

from __future__ import annotations

import dataclasses
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms import eigenpairs as eigensolver
from hessian_spectrum.algorithms import residual_check, spectral_density
from hessian_spectrum.algorithms.convergence import Goal, WantedPairs
from hessian_spectrum.commands import report
from hessian_spectrum.commands.runner import (
    HEADER,
    OPERATORS,
    Record,
    check_output,
    first_order,
    on_first_rank,
    print_estimate,
    require_same_values,
    require_unfinished,
    same_run,
    together,
    writing,
)
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config.computing import CurvatureConfig, EigenpairsConfig
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.planning import product_planner
from hessian_spectrum.spectral.measure import EigenPairs
from hessian_spectrum.storage import hdf5_schema, run_file
from hessian_spectrum.storage.krylov_state import RecurrenceStore
from hessian_spectrum.storage.shards import ShardedVectors

FREE = Record.free_fields


def eigenpairs(
    config: EigenpairsConfig,
    arguments: dict[str, Any],
    world: World,
    stop: StopRequest | None = None,
) -> None:
    """From a problem to a finished result file; arguments and errors as for ``density``."""
    started = time.time()

    def check() -> None:
        check_output(config, "")

    on_first_rank(world, check)
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest().listening())
        evaluator = Evaluator(**arguments, world=world)
        room = _room(config, evaluator)
        if config.dry_run:
            estimate = _estimate(config, OPERATORS[config.operator](evaluator), room)
            print_estimate(estimate, evaluator, first_order(evaluator), most=True)
            return
        lock = stack.enter_context(writing(config, world, stop, check))
        _eigenpairs(config, EigenpairsRecord(config, world, evaluator, lock, started, room), stop)


def _eigenpairs(config: EigenpairsConfig, record: EigenpairsRecord, stop: StopRequest) -> None:
    world, evaluator = record.world, record.evaluator
    space = record.resumed_state()
    record.values = values = first_order(evaluator)
    record.leave_if(stop)
    operator, formed, found = OPERATORS[config.operator](evaluator), None, None
    if space is None:
        estimate = _estimate(config, operator, record.room)
        record.product_plan, record.place = estimate.plan, estimate.place
        formed = estimate.first
        print_estimate(estimate, evaluator, values, most=True, file=sys.stderr)
    else:
        record.require_same_values()
    operator = operator.planned(record.product_plan, formed)
    if space is None:
        values["product_repeat_error"] = spectral_density.repeat_error(operator, config.seed)
        given = together(world, lambda: _given(config.start, record))
        space = eigensolver.first(
            operator, record.goal, _block(config), record.room, given, record.basis_place
        )
    else:
        values["product_repeat_error"] = record.saved_values["product_repeat_error"]
        found = eigensolver.finished(operator, space, record.goal)
    record.leave_if(stop)

    flags = record.flags(stop)
    try:
        with record.bar(None, space.products, "product") as bar:
            while found is None:
                before = space.products
                space, found = eigensolver.advance(operator, space, record.goal, flags)
                bar.update(space.products - before)
                finished = found is not None
                record.checkpoint(
                    stop, lambda now=space: record.save(now, operator), finished, flags
                )
    except FloatingPointError:
        if space.order:
            record.save(space, operator)
        raise
    values["product_noise"] = space.noise
    pairs, rows, values["arithmetic_error"] = _believed(record, operator, space, found, stop)
    record.finish(space, pairs, rows, operator)
    if world.rank == 0:
        print(report.eigenpairs(pairs, values, space.products))
        print(f"written to {config.out}")


def _believed(
    record: EigenpairsRecord,
    operator: Curvature,
    space: RitzSpace,
    found: WantedPairs,
    stop: StopRequest,
) -> tuple[EigenPairs, Tensor, float]:
    certify = record.config.certify
    total = len(found.values) if certify else residual_check.NUM_COMBINATIONS
    with record.bar(total, 0, "product in float64") as bar:

        def on_products(count: int) -> None:
            bar.update(count)
            record.checkpoint(stop, lambda: record.save(space, operator), finished=False)

        return residual_check.checked_pairs(
            operator, space, record.goal, found, certify, on_products
        )


def _room(config: EigenpairsConfig, evaluator: Evaluator) -> int:
    """Krylov vectors that are held at once: what the memory takes, if that is enough."""
    size, _ = _sizes(config, evaluator.n)
    if config.basis_size is not None:
        return size
    fitting = product_planner.vectors_that_fit(
        evaluator.layout, evaluator.dtype, config.memory_bytes
    )
    least = eigensolver.least_basis(evaluator.n, config.wanted, config.which, _block(config))
    return max(least, min(size, fitting))


def _block(config: EigenpairsConfig) -> int:
    return config.block_size or eigensolver.default_block(config.copies)


def _sizes(config: EigenpairsConfig, n: int) -> tuple[int, int]:
    return eigensolver.sizes(
        n, config.wanted, config.which, _block(config), config.basis_size, config.max_products
    )


def _estimate(config: EigenpairsConfig, operator: Curvature, room: int) -> product_planner.Estimate:
    block, most = _block(config), _sizes(config, operator.n)[1]
    return product_planner.plan(
        operator.evaluator,
        operator.theta,
        block,
        eigensolver.expected_steps(most, block),
        kept=room,
        form=operator.form,
        mode=config.hvp,
        precision=config.hvp_dtype,
        memory=config.memory_bytes,
        folder=config.out.parent,
    )


def _given(path: Path | None, record: EigenpairsRecord) -> np.ndarray | BlockSpace | None:
    """What an earlier run found: its eigenvectors, or the Krylov space of its density."""
    if path is None:
        return None
    n = record.evaluator.n
    with run_file.open(path) as run:
        pairs = run["eigenpairs"] if "eigenpairs" in run else None
        if pairs is not None and pairs.vectors is not None:
            if pairs.vectors.shape[1] != n:
                raise InputError(
                    f"--start {path}: its eigenvectors have {pairs.vectors.shape[1]} entries; "
                    f"expected {n}, as many as there are parameters"
                )
            return np.asarray(pairs.vectors)
    return _space_of(path, record)


def _space_of(path: Path, record: EigenpairsRecord) -> BlockSpace:
    """Of the same matrix: vectors may be of another one, a Krylov space may not."""
    evaluator, states = record.evaluator, RecurrenceStore(Path(f"{path}.d"), record.world)
    saved, now = states.manifest(HEADER), record.header()
    if saved is None or saved["kind"] != BlockSpace.__name__ or saved["coefficients"]["lean"]:
        raise InputError(
            f"--start {path}: holds neither eigenvectors nor, beside it, the Krylov space of a "
            "block density (density --keep-state always)"
        )
    shared = {field.name for field in dataclasses.fields(CurvatureConfig)} - {"seed", *FREE}
    for header in (saved, now):
        header["config"] = {name: header["config"].get(name) for name in shared}
    try:
        same_run(saved, now, frozenset())
        require_same_values(saved["values"], now["values"], evaluator.dtype)
    except InputError as error:
        why = str(error).removeprefix("cannot resume: ").split(";")[0]
        raise InputError(
            f"--start {path}: its Krylov space is of another matrix ({why}); start from its "
            "eigenvectors, or without"
        ) from None
    done = len(saved["coefficients"]["diagonal"])
    return states.load(saved, evaluator.layout, evaluator.dtype, done)


class EigenpairsRecord(Record):
    """Writes the pairs (rank 0) and the state of the Krylov space (every rank)."""

    command = "eigenpairs"
    free_fields = FREE | {"max_products", "tol", "certify"}

    def __init__(self, config, world, evaluator, lock, started, room: int):
        super().__init__(config, world, evaluator, lock, started)
        most = _sizes(config, evaluator.n)[1]
        self.goal = Goal(config.wanted, config.which, config.tol, most, config.seed, config.copies)
        self.room = room
        self.states = RecurrenceStore(self.folder, world)

    def resumed_state(self) -> RitzSpace | None:
        """The saved state that this run goes on from; None for a new run, which starts clean."""
        if not self.config.resume:
            on_first_rank(self.world, self.states.remove)
            return None
        on_first_rank(self.world, self._require_open)
        saved = self.states.manifest(HEADER)
        if saved is None:
            on_first_rank(self.world, lambda: require_unfinished(self.config, ""))
            return None
        together(self.world, lambda: self.go_on_from(saved))
        self.room = saved["plan"]["basis_size"]
        layout, dtype = self.evaluator.layout, self.evaluator.dtype
        space = together(
            self.world,
            lambda: self.states.load(saved, layout, dtype, self.room, self.basis_place),
        )
        on_first_rank(self.world, self.states.shards.sweep)  # what a killed run half wrote
        return space

    def _require_open(self) -> None:
        """Refuse a run whose pairs have all converged, also where vectors stand beside it."""
        if self.config.out.exists():
            with run_file.open(self.config.out) as run:
                done = run.finished and run["eigenpairs"].converged.all()
            if done:
                require_unfinished(self.config, "")

    def save(self, space: RitzSpace, operator: SymmetricOperator) -> None:
        """Everything finished so far: the space, to go on from, and its pairs, to look at."""
        self._save_state(space, operator)
        self.write(eigensolver.current(operator, space, self.goal), finished=False)

    def finish(
        self, space: RitzSpace, pairs: EigenPairs, rows: Any, operator: SymmetricOperator
    ) -> None:
        """The pairs, and the space where more products may help."""
        vectors, layout = None, operator.layout
        if self.config.vectors:
            size = len(rows) * operator.n * operator.dtype.itemsize
            if size < hdf5_schema.MAX_VECTOR_BYTES:
                vectors = layout.gather(rows).cpu().numpy()
            else:
                vectors = self._sharded(rows.cpu().numpy(), layout)
        self.write(dataclasses.replace(pairs, vectors=vectors), finished=True)
        if pairs.converged.all() and not isinstance(vectors, ShardedVectors):
            on_first_rank(self.world, self.states.remove)
        elif not pairs.converged.all():
            self._save_state(space, operator, vectors)

    def _sharded(self, rows: np.ndarray, layout: Layout) -> ShardedVectors:
        """Eigenvectors too large for the file: each rank writes its entries, rank 0 lists them."""
        shards = self.states.shards

        def write() -> dict | None:
            if not layout.n_local:
                return None
            name = f"vectors-rank{self.world.rank:05d}"
            return shards.write(name, {"vectors": rows}, (layout.start, layout.stop))

        entry = together(self.world, write)
        entries = [e for e in self.world.gather_objects(entry) if e is not None]
        on_first_rank(self.world, lambda: shards.commit({"vectors": entries}))
        return ShardedVectors(shards, entries)

    def _save_state(self, space: RitzSpace, operator: SymmetricOperator, vectors=None) -> None:
        on_first_rank(self.world, self.lock.require)
        header = self.header()
        if isinstance(vectors, ShardedVectors):
            header["vectors"] = vectors.entries
        self.states.save(space, operator.layout, header)

    def plan(self) -> dict[str, Any]:
        return {"block_size": _block(self.config), "basis_size": self.room, **super().plan()}
