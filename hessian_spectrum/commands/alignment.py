"""The ``alignment`` command: the result file itself is the state, one batch size after another."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Record, Whole
from hessian_spectrum.algorithms import eigenpairs as eigensolver
from hessian_spectrum.analyses.alignment import SHARE, alignment, gradients_at_once, sizes_of
from hessian_spectrum.analyses.alignment_result import Alignment, joined
from hessian_spectrum.commands import output, report
from hessian_spectrum.commands.computation import CurvatureComputation
from hessian_spectrum.commands.header import FREE_FIELDS, RunHeader
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config import AlignmentConfig
from hessian_spectrum.distributed.agreement import on_first_rank, together
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.krylov_schur import RitzSpace
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.planning import product_planner
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.storage import hdf5_schema, run_file
from hessian_spectrum.storage.krylov_state import RecurrenceStore
from hessian_spectrum.storage.manifest_schema import DIGESTS

GRADIENT = 0.7  # of a product's time, over the same samples


class AlignmentRun(CurvatureComputation[AlignmentConfig, Alignment]):
    """A step is one batch size. The largest eigenpairs are computed before the first one."""

    command = "alignment"
    # More sizes extend a run; eigenpairs are compared by their values, wherever they lie.
    free_fields = FREE_FIELDS | {"batch_sizes", "eigenpairs"}
    saves_each_step = True

    def __init__(self, config: AlignmentConfig, problem: Problem, world: World):
        self.config, self.world = config, world
        self.evaluator = problem.evaluator(world)
        self.sizes = self._missing = sizes_of(config.sizes, self.evaluator)
        self.at_once = 0  # gradients in one block
        self.top: EigenPairs | None = None  # the largest eigenpairs
        self.found: Alignment | None = None  # of the sizes that are done
        self._done = 0  # minibatches of this run
        self._all = 0

    @classmethod
    def check_output(cls, config: AlignmentConfig) -> None:
        if config.resume and config.out.exists():
            run_file.check_output(config.out, resume=True)
            output.require_resumable(config.out, cls.command)
        else:
            super().check_output(config)

    def estimate(self, operator: Curvature) -> product_planner.Estimate:
        config, evaluator = self.config, self.evaluator
        self.at_once = _at_once(config, evaluator)
        numbers = _minibatches(config, self._missing, evaluator)
        estimate = product_planner.plan(
            evaluator,
            operator.theta,
            self.at_once,
            sum(-(-number // self.at_once) for number in numbers),
            kept=2 * self.at_once,  # the gradients, and of unit length
            form=operator.form,
            mode=config.hvp,
            precision=config.hvp_dtype,
            memory=config.memory_bytes,
        )
        one = estimate.seconds / max(1, estimate.products)
        products, total = sum(numbers), evaluator.num_samples
        drawn = sum(number * size for number, size in zip(numbers, self._missing))
        beside = GRADIENT * one * drawn / total + self._pairs_seconds(one)
        return dataclasses.replace(
            estimate,
            products=products,
            seconds=one * products,
            beside=beside,
            what_beside="gradients and eigenpairs",
        )

    def _pairs_seconds(self, one: float) -> float:
        """Of the largest eigenpairs, where they are computed first; ``one``: of a product."""
        config, k = self.config, self.config.num_pairs
        if config.eigenpairs is not None or self.found is not None or not k:
            return 0.0
        k = min(k, self.evaluator.n)
        return one * eigensolver.expected_steps(1 << 30, 1, k, "largest")

    # -- an earlier run --------------------------------------------------------------------------

    def load(self, session: Session) -> None:
        config, world = self.config, self.world
        if config.overwrite:  # what another command may have left beside the file
            on_first_rank(world, RecurrenceStore(output.state_folder(config.out), world).remove)
        if world.any(config.resume and config.out.exists()):
            read = together(world, lambda: self._read() if world.rank == 0 else None)
            earlier, self.found = world.gather_objects(read)[0]
            together(world, lambda: session.resume_from(earlier))
            Record({"gradients_at_once": Whole(1)}).require(earlier.plan, f"{config.out}: plan")
            self.at_once = earlier.plan["gradients_at_once"]
        known = [] if self.found is None else self.found.batch_sizes.tolist()
        self._missing = [size for size in self.sizes if size not in known]
        if not self._missing:
            raise InputError(
                f"{config.out} has all of these batch sizes: extend it by other --batch-sizes, or "
                "compute it again with --overwrite"
            )
        self.top = together(world, lambda: self._stored_pairs(session))
        if self.found is not None and not np.array_equal(self.found.eigenvalues, _values(self.top)):
            raise InputError(
                f"cannot resume: {config.out} has {len(self.found.eigenvalues)} eigenpairs, and "
                "these are others; name the same --eigenpairs, or use --overwrite to start again"
            )
        self._all = sum(_minibatches(config, self._missing, self.evaluator))

    def _read(self) -> tuple[RunHeader, Alignment | None]:
        """The header of the earlier run, and its result, if there is one."""
        with run_file.open(self.config.out) as run:
            found = run.get("alignment")
            assert found is None or isinstance(found, Alignment)
            return RunHeader.from_run(run), found

    def _stored_pairs(self, session: Session) -> EigenPairs | None:
        """The eigenpairs that the user names, or that the resumed run had computed; their vectors
        are read later.

        Raises:
            InputError: they are of other parameters or data, or of another matrix.
        """
        config, path = self.config, self.config.eigenpairs
        if path is None:
            if session.earlier and config.num_pairs:
                return _pairs(session.files.enter_context(run_file.open(config.out)))
            return None
        run = session.files.enter_context(run_file.open(path))
        pairs = _pairs(run)
        if pairs is None:
            raise InputError(f"--eigenpairs {path}: holds {', '.join(run)}; expected eigenpairs")
        digests = run.provenance.get("digests", {})
        DIGESTS.require(digests, f"--eigenpairs {path}: digests")
        for name, digest in session.digests.items():
            if run.plan.get("dtype") != session.plan()["dtype"]:  # other bits of the same numbers
                break
            if None not in (digest, digests.get(name)) and digests[name] != digest:
                raise InputError(
                    f"--eigenpairs {path}: of other {name}; compute them with those of this run"
                )
        operator = run.plan.get("operator", config.operator)
        if operator != config.operator:
            raise InputError(
                f"--eigenpairs {path}: of the {operator} matrix; expected --operator {operator}"
            )
        return pairs

    # -- the steps -------------------------------------------------------------------------------

    def prepare(self, session: Session) -> None:
        super().prepare(session)
        if self.top is None and self.found is None and self.config.num_pairs:
            self.top = self._largest(session)
            session.write(self.top, finished=False)

    def _largest(self, session: Session) -> EigenPairs:
        """As the ``eigenpairs`` command finds them; not resumed, but kept with the result."""
        operator = self.operator
        k = min(self.config.num_pairs, operator.n)
        if k * operator.n * operator.dtype.itemsize >= hdf5_schema.MAX_VECTOR_BYTES:
            raise InputError(
                f"{k} eigenvectors of {operator.n} entries are too large for the result file; use "
                "a smaller --k, or compute them by the eigenpairs command and name its file: "
                "--eigenpairs"
            )
        with session.stage(None, 0, "product") as progress:

            def on_step(space: RitzSpace) -> None:
                session.checkpoints.leave_if_stopped()
                progress.update(space.products - progress.n)

            return eigensolver.eigenpairs(
                operator,
                k,
                "largest",
                seed=self.config.seed,
                basis=session.basis_place,
                on_step=on_step,
            )

    @property
    def is_finished(self) -> bool:
        return not self._missing

    @property
    def progress(self) -> tuple[int, int, str]:
        return self._all, self._done, "minibatch"

    def step(self, session: Session) -> None:
        size, *self._missing = self._missing
        before, progress = self._done, session.progress

        def on_chunk(done: int) -> None:
            session.checkpoints.leave_if_stopped()
            self._done = before + done
            if progress is not None:
                progress.update(self._done - progress.n)

        part = alignment(
            self.evaluator,
            (size,),
            self.config.num_batches,
            pairs=self.top,
            operator=self.operator,
            seed=self.config.seed,
            at_once=self.at_once,
            on_chunk=on_chunk,
        )
        self.found = part if self.found is None else joined([self.found, part])

    # -- what is kept ----------------------------------------------------------------------------

    def save(self, session: Session) -> None:
        """The batch sizes that are done, and the eigenpairs that were computed for them."""
        self._write(session, finished=False)

    def finish(self, session: Session) -> Alignment:
        self._write(session, finished=True)
        assert self.found is not None
        return self.found

    def _write(self, session: Session, finished: bool) -> None:
        assert self.found is not None
        own = [self.top] if self.top is not None and self.config.num_pairs else []
        session.write(self.found, *own, finished=finished)

    def report(self, result: Alignment, values: dict[str, float]) -> str:
        return report.alignment(result, values)

    def plan_entries(self) -> dict[str, Any]:
        return {"gradients_at_once": self.at_once}


def _pairs(run: run_file.Run) -> EigenPairs | None:
    found = run.get("eigenpairs")
    return found if isinstance(found, EigenPairs) else None


def _values(pairs: EigenPairs | None) -> np.ndarray:
    """Those of the upper end, which alignments are stored with."""
    return np.empty(0) if pairs is None else np.asarray(pairs.values)[pairs.num_lower or 0 :]


def _at_once(config: AlignmentConfig, evaluator: Evaluator) -> int:
    memory = config.memory_bytes
    fitting = gradients_at_once(evaluator, None if memory is None else int(SHARE * memory))
    return min(fitting, config.num_batches)


def _minibatches(config: AlignmentConfig, sizes: list[int], evaluator: Evaluator) -> list[int]:
    """Of each size."""
    total = round(evaluator.num_samples)
    return [1 if size == total else config.num_batches for size in sizes]
