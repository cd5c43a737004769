"""The ``eigenpairs`` command: a Krylov space that is saved and resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Real, Record, Text, Whole
from hessian_spectrum.algorithms import eigenpairs as eigensolver
from hessian_spectrum.algorithms import residual_check
from hessian_spectrum.algorithms.convergence import Goal, WantedPairs
from hessian_spectrum.commands import output, report, sharded
from hessian_spectrum.commands.header import FREE_FIELDS, RunHeader
from hessian_spectrum.commands.krylov_computation import KrylovComputation
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config import CurvatureConfig, EigenpairsConfig, defaults
from hessian_spectrum.distributed.agreement import on_first_rank, together
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.krylov.ritz import counts
from hessian_spectrum.krylov.state import KrylovState
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.planning import product_planner
from hessian_spectrum.planning.step_cost import step_cost
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.storage import hdf5_schema, run_file
from hessian_spectrum.storage.krylov_state import RecurrenceStore
from hessian_spectrum.storage.manifest_schema import HEADER
from hessian_spectrum.storage.shards import ShardedVectors

EXACT = 4  # a product in float64 takes as long as so many


class Eigenpairs(KrylovComputation[EigenpairsConfig, EigenPairs]):
    """A step is one of the Krylov space, with the restart that it may lead to."""

    command = "eigenpairs"
    free_fields = FREE_FIELDS | {"max_products", "tol", "certify"}
    manifest_form = Record(
        {
            "kind": Text(choices=(RitzSpace.__name__,)),
            "plan": Record({"basis_size": Whole(1)}),
            "values": Record({"product_repeat_error": Real(0, finite=False)}),
        }
    )

    def __init__(self, config: EigenpairsConfig, problem: Problem, world: World):
        super().__init__(config, problem, world)
        self._room = _room(config, self.evaluator)
        most = _sizes(config, self.evaluator.n)[1]
        self.goal = Goal(config.wanted, config.which, config.tol, most, config.seed, config.copies)
        self.limit = most
        self.found: WantedPairs | None = None  # at the end
        self._space: RitzSpace | None = None

    @property
    def room(self) -> int:
        return self._room

    def estimate(self, operator: Curvature) -> product_planner.Estimate:
        config = self.config
        block, most = _block(config), _sizes(config, operator.n)[1]
        steps = eigensolver.expected_steps(most, block, config.wanted, config.which)
        found = sharded.plan(config, operator, block, steps, self.room, config.scratch_folder)
        cost = step_cost(
            operator.layout, operator.dtype, operator.device, block, isinstance(operator, Curvature)
        )
        beside = cost.of(min(block * step, self.room) for step in range(1, steps + 1))
        after = 0.0
        if operator.in_float64() is not operator:
            pairs = sum(counts(config.which, config.wanted))
            exact = pairs if config.certify else residual_check.NUM_COMBINATIONS
            after = EXACT * exact * found.seconds / found.products
        return dataclasses.replace(
            found, beside=beside, after=after, what_after="products in float64"
        )

    # -- an earlier run --------------------------------------------------------------------------

    def require_unanswered(self) -> None:
        """Refuse a run whose pairs have all converged, also where vectors stand beside it."""
        if self.config.out.exists():
            with run_file.open(self.config.out) as run:
                pairs = run.get("eigenpairs") if run.finished else None
            if isinstance(pairs, EigenPairs) and pairs.converged.all():
                output.require_unfinished(self.config.out)

    def take_over(self, saved: dict[str, Any]) -> None:
        room, table = saved["plan"]["basis_size"], saved["coefficients"]
        most = self.evaluator.n + _block(self.config)
        if not len(table["h"]) + table["width"] <= room <= most:
            raise InputError(
                f"{self.states.shards.folder}: its manifest is damaged: it tells of a basis_size "
                f"of {room}; expected at most {most}, and room for the vectors that it holds; use "
                "--overwrite to start again"
            )
        self._room = room

    def adopt(self, state: KrylovState) -> None:
        assert isinstance(state, RitzSpace)
        self._space = state

    # -- the steps -------------------------------------------------------------------------------

    def prepare(self, session: Session) -> None:
        super().prepare(session)
        config, operator = self.config, self.operator
        if self._space is None:
            given = together(self.world, lambda: _given(config.start, session))
            self._space = eigensolver.first(
                operator, self.goal, _block(config), self.room, given, session.basis_place
            )
        else:
            self.found = eigensolver.finished(operator, self._space, self.goal)

    @property
    def space(self) -> RitzSpace:
        assert self._space is not None  # the runner has called ``prepare``
        return self._space

    @property
    def is_finished(self) -> bool:
        return self.found is not None

    @property
    def progress(self) -> tuple[None, int, str]:
        return None, self.space.products, "product"

    def step(self, session: Session) -> None:
        flags = session.checkpoints.flags
        self._space, self.found = eigensolver.advance(self.operator, self.space, self.goal, flags)

    # -- what is kept ----------------------------------------------------------------------------

    @property
    def has_state(self) -> bool:
        return self.space.order > 0

    def save(self, session: Session) -> None:
        """Everything finished so far: the space, to resume from, and its pairs, to look at."""
        self.save_state(self.space, session)
        pairs = eigensolver.current(self.operator, self.space, self.goal)
        session.write(pairs, finished=False)

    def finish(self, session: Session) -> EigenPairs:
        """The pairs, and the space where more products may help."""
        session.values["product_noise"] = self.space.noise
        pairs, rows, session.values["arithmetic_error"] = self._believed(session)
        vectors = self._stored(rows)
        pairs = dataclasses.replace(pairs, vectors=vectors)
        session.write(pairs, finished=True)
        shards = vectors.entries if isinstance(vectors, ShardedVectors) else None
        if not pairs.converged.all():
            self.save_state(self.space, session, **({"vectors": shards} if shards else {}))
        elif not shards:
            on_first_rank(self.world, self.states.remove)
        return pairs

    def _believed(self, session: Session) -> tuple[EigenPairs, Tensor, float]:
        """The pairs after a look at their products, which may be stopped and resumed."""
        assert self.found is not None
        certify = self.config.certify
        total = len(self.found.values) if certify else residual_check.NUM_COMBINATIONS
        with session.stage(total, 0, "product in float64") as progress:

            def on_products(count: int) -> None:
                progress.update(count)
                session.checkpoints.after_step(lambda: self.save(session))

            return residual_check.checked_pairs(
                self.operator, self.space, self.goal, self.found, certify, on_products
            )

    def _stored(self, rows: Tensor) -> np.ndarray | ShardedVectors | None:
        """This rank's entries of the vectors, as the result file holds them."""
        layout = self.operator.layout
        if not self.config.vectors:
            return None
        if len(rows) * layout.n * rows.dtype.itemsize < hdf5_schema.MAX_VECTOR_BYTES:
            return layout.gather(rows).cpu().numpy()
        return self._sharded(rows.cpu().numpy())

    def _sharded(self, rows: np.ndarray) -> ShardedVectors:
        """Eigenvectors too large for the file: each rank writes its entries, rank 0 lists them."""
        shards, layout = self.states.shards, self.operator.layout

        def write() -> dict[str, Any] | None:
            if not layout.n_local:
                return None
            name = f"vectors-rank{self.world.rank:05d}"
            return shards.write(name, {"vectors": rows}, (layout.start, layout.stop))

        entry = together(self.world, write)
        entries = [e for e in self.world.gather_objects(entry) if e is not None]
        on_first_rank(self.world, lambda: shards.commit({"vectors": entries}))
        return ShardedVectors(shards, entries)

    def report(self, result: EigenPairs, values: dict[str, float]) -> str:
        return report.eigenpairs(result, values, self.space.products)

    def plan_entries(self) -> dict[str, Any]:
        return {"block_size": _block(self.config), "basis_size": self.room}


# -- sizes -------------------------------------------------------------------------------------


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
    return config.block_size or eigensolver.BLOCK_SIZE


def _sizes(config: EigenpairsConfig, n: int) -> tuple[int, int]:
    return eigensolver.sizes(
        n, config.wanted, config.which, _block(config), config.basis_size, config.max_products
    )


# -- a warm start ------------------------------------------------------------------------------


def _given(path: Path | None, session: Session) -> np.ndarray | BlockSpace | None:
    """What an earlier run found: its eigenvectors, or the Krylov space of its density."""
    if path is None:
        return None
    n = session.computation.evaluator.n
    with run_file.open(path) as run:
        pairs = run["eigenpairs"] if "eigenpairs" in run else None
        if isinstance(pairs, EigenPairs) and pairs.vectors is not None:
            vectors = np.asarray(pairs.vectors)
            if vectors.shape[1] != n:
                raise InputError(
                    f"--start {path}: its eigenvectors have {vectors.shape[1]} entries; "
                    f"expected {n}, as many as there are parameters"
                )
            return vectors
    return _space_of(path, session)


def _space_of(path: Path, session: Session) -> BlockSpace:
    """Of the same matrix: vectors may be of another one, a Krylov space may not."""
    evaluator = session.computation.evaluator
    states = RecurrenceStore(output.state_folder(path), session.world)
    saved = states.manifest(HEADER)
    if saved is None or saved["kind"] != BlockSpace.__name__ or saved["coefficients"]["lean"]:
        raise InputError(
            f"--start {path}: holds neither eigenvectors nor, beside it, the Krylov space of a "
            "block density (density --keep-state always)"
        )
    own = {field.name for field in dataclasses.fields(EigenpairsConfig)}
    shared = {field.name for field in dataclasses.fields(CurvatureConfig)} - {"seed"}
    earlier, now = RunHeader.from_json(saved), session.header()
    try:
        free = FREE_FIELDS | (own | set(earlier.config)) - shared
        earlier.require_same_run(now, defaults(CurvatureConfig), free)
        earlier.require_same_values(now.values, evaluator.dtype)
    except InputError as error:
        why = str(error).removeprefix("cannot resume: ").split(";")[0]
        raise InputError(
            f"--start {path}: its Krylov space is of another matrix ({why}); start from its "
            "eigenvectors, or without"
        ) from None
    done = len(saved["coefficients"]["diagonal"])
    space = states.load(saved, evaluator.layout, evaluator.dtype, done)
    assert isinstance(space, BlockSpace)
    return space
