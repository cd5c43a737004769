"""The command ``track`` with densities, eigenpairs or alignments of checkpoints, in one process.

One evaluator and one plan serve all checkpoints. A step is one checkpoint, parameters and buffers,
so that its results are those that the commands ``density``, ``eigenpairs`` and ``alignment`` give
there. The result file is the state: it holds what is finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms import eigenpairs as eigensolver
from hessian_spectrum.algorithms import spectral_density as spectrum
from hessian_spectrum.analyses import trajectory
from hessian_spectrum.analyses.alignment import alignment, sizes_of
from hessian_spectrum.analyses.alignment_result import Alignment
from hessian_spectrum.analyses.curvature_map import COLUMNS, along
from hessian_spectrum.commands import density, plane_vectors, report
from hessian_spectrum.commands.computation import OPERATORS, Computation, first_order, stored_age
from hessian_spectrum.commands.header import RunHeader
from hessian_spectrum.commands.output import reopened
from hessian_spectrum.commands.points_computation import PROGRESS, saved_array
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config import TrackConfig
from hessian_spectrum.config.alignment import sizes_in
from hessian_spectrum.distributed.agreement import on_first_rank, together
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.state import ProbeState
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.point_evaluation import evaluate
from hessian_spectrum.landscape.results import Array, Trajectory
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.operators.run_check import check_on_all_data
from hessian_spectrum.planning import product_planner
from hessian_spectrum.planning.product_planner import Estimate
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.storage import merge
from hessian_spectrum.storage.hdf5_schema import Result, join_key, split_key
from hessian_spectrum.zoo import problem_loader


class TrackCurvature(Computation[TrackConfig, Trajectory]):
    """Checkpoints as iterates, and at each the values and what is computed with products."""

    command = "track"
    is_whole_on_first_rank = True
    saves_each_step = True

    def __init__(self, config: TrackConfig, problem: Problem, world: World):
        self.config, self.world = config, world
        self.labels = merge.labels_of(config.checkpoints)
        self.evaluator = ev = problem.evaluator(world)
        # (num_probes, num_steps)
        self.sizes = density.sizes_of(config, ev.n) if config.density else (0, 0)
        self.batch_sizes = sizes_of(sizes_in(config.batch_sizes), ev) if config.alignment else []
        if config.num_pairs:
            eigensolver.sizes(ev.n, config.wanted, config.which)  # refuses more than n
        self.test = _test(config, problem, world)
        self.columns = (
            *evaluate(ev, Points.of(ev.theta[None]), 0, 0, test=self.test),
            *(COLUMNS[1:] if config.eigenvalues else ()),
        )
        self.rows = np.full((len(self.labels), len(self.columns)), np.nan)
        self.done = np.zeros(len(self.labels), bool)
        self.found: dict[str, Result] = {}  # by key: what is stored of finished checkpoints

    @classmethod
    def located(cls, config: TrackConfig) -> TrackConfig:
        return plane_vectors.located(config, config.checkpoints[-1])

    # -- before the first step -------------------------------------------------------------------

    def preview(self) -> str:
        estimate = self._estimate(OPERATORS[self.config.operator](self.evaluator))
        return report.estimate(estimate, self.evaluator, self.look(), self._may_end_early)

    def load(self, session: Session) -> None:
        world, config, ev = self.world, self.config, self.evaluator

        def read() -> None:
            rows = plane_vectors.of_checkpoints(ev, config.checkpoints)
            steps, about = plane_vectors.steps_of(config.checkpoints)
            self.task = trajectory.iterates_task(ev, rows, steps, **about)
            session.digests["points"] = _digest(ev, config.checkpoints)

        together(world, read)
        plane_vectors.require_agreement(world, session.digests)
        header = self._resumed()
        if header:
            together(world, lambda: session.resume_from(header))

    def _resumed(self) -> RunHeader | None:
        """On every rank, the header of an earlier run; rank 0 takes over its results."""
        header: RunHeader | None = None

        def read() -> None:
            nonlocal header
            if not (self.config.resume and self.config.out.exists()):
                return
            with reopened(self.config.out) as run:
                saved = run.get(PROGRESS)
                columns = saved.get("columns") if isinstance(saved, Mapping) else None
                if columns is None or tuple(np.atleast_1d(columns).tolist()) != self.columns:
                    raise InputError(
                        f"{run.path} is not what an interrupted track with these options "
                        "has left: there is nothing to resume; use --overwrite to start again, or "
                        "another --out"
                    )
                header = RunHeader.from_run(run)
                rows = saved_array(run, saved, "rows", "f", 2)
                done = saved_array(run, saved, "done", "b", 1)
                if rows.shape == self.rows.shape and done.shape == self.done.shape:
                    self.rows, self.done = rows, done  # else the checkpoints differ: refused
                ours = set(self.labels)
                self.found = {key: run[key] for key in run if split_key(key)[1] in ours}

        on_first_rank(self.world, read)
        found, self.rows, self.done = self.world.gather_objects((header, self.rows, self.done))[0]
        return cast("RunHeader | None", found)

    def look(self) -> dict[str, float]:
        return first_order(self.evaluator)

    def prepare(self, session: Session) -> None:
        if session.product_plan is None:
            operator = OPERATORS[self.config.operator](self.evaluator)
            check_on_all_data(operator)
            estimate = self._estimate(operator)
            session.take(estimate)
            session.say(
                report.estimate(estimate, self.evaluator, session.values, self._may_end_early)
            )

    @property
    def _may_end_early(self) -> bool:
        return self.config.target_error is not None

    def _estimate(self, operator: Curvature) -> Estimate:
        config, count = self.config, len(self.labels)
        more = count * self._products_beside
        if config.density:
            found = density.estimate(config, operator, *self.sizes, count=count)
        else:
            found = product_planner.plan(
                operator.evaluator,
                operator.theta,
                1,
                more,
                kept=min(eigensolver.BASIS_SIZE, operator.n),
                form=operator.form,
                mode=config.hvp,
                precision=config.hvp_dtype,
                memory=config.memory_bytes,
                folder=config.scratch_folder,
            )
            more = 0
        found = dataclasses.replace(
            found,
            products=found.products + more,
            passes=found.passes + more,
            seconds=found.seconds * (1 + more / max(1, found.products)),
            beside=found.beside + found.after,
            what_beside="orthogonalization, exchange and answers",
            after=0.0,
        )
        self.expected_seconds = found.total
        return found

    @property
    def _products_beside(self) -> int:
        """Products at a checkpoint beside those of a density, as far as they can be known before.

        A minibatch's gradient takes as long as about half a product, and is counted as one.
        """
        config = self.config
        most = sum(
            1 if size == self.evaluator.num_samples else config.num_batches
            for size in self.batch_sizes
        )
        if not config.num_pairs:
            return 2 * most
        limit = config.max_products
        return 2 * most + eigensolver.expected_steps(limit, 1, config.wanted, config.which)

    # -- steps -----------------------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        return bool(self.done.all())

    @property
    def progress(self) -> tuple[int, int, str]:
        return len(self.labels), int(self.done.sum()), "checkpoint"

    def step(self, session: Session) -> None:
        index = int(self.done.argmin())
        with self._at(index):
            try:
                results = self._results(session, index)
            except FloatingPointError as error:  # on every rank; the next one may be finite
                session.warn(f"{self.config.checkpoints[index]}: no curvature: {error}")
                results = {}
        label = self.labels[index]
        self.found |= {join_key(kind, label): result for kind, result in results.items()}
        self.done[index] = True

    @contextmanager
    def _at(self, index: int) -> Iterator[None]:
        """Inside, the model is that checkpoint; on every rank, or an error on all."""
        path = self.config.checkpoints[index]
        with ExitStack() as stack:
            at = plane_vectors.at_checkpoint(self.evaluator, path)
            together(self.world, lambda: stack.enter_context(at))
            yield

    def _results(self, session: Session, index: int) -> dict[str, Result]:
        """By kind, what the commands of each kind store."""
        config, ev = self.config, self.evaluator
        point = Points.of(ev.theta[None])
        values = [column[0] for column in evaluate(ev, point, test=self.test).values()]
        self.rows[index, : len(values)] = values
        if config.eigenvalues:
            self.rows[index, len(values) :] = self._ends(session, point)
        looked = {**first_order(ev), "index": float(index)}
        looked |= stored_age(config.checkpoints[index])
        operator = OPERATORS[config.operator](ev, None, session.product_plan)
        found: dict[str, Result] = {}
        if config.density:
            looked["product_repeat_error"] = spectrum.repeat_error(operator, config.seed)
            measure, looked["product_noise"] = self._density(session, operator)
            found |= {"density": measure, "eigenpairs": spectrum.extremes(measure)}
        pairs = self._pairs(session, operator) if config.num_pairs else None
        if pairs is not None:  # in place of a density's extremes
            found["eigenpairs"] = dataclasses.replace(pairs, vectors=None)
        if config.alignment:
            top = pairs if config.largest else None
            found["alignment"] = self._alignment(session, operator, top)
        return {**found, "values": looked}

    def _pairs(self, session: Session, operator: Curvature) -> EigenPairs:
        """Of the ends that are asked for; with vectors where an alignment needs them."""
        config = self.config
        return eigensolver.eigenpairs(
            operator,
            config.wanted,
            config.which,
            config.tol,
            seed=config.seed,
            max_products=config.max_products,
            vectors=config.alignment,
            basis=session.basis_place,
            on_step=lambda space: self._heard(session),
        )

    def _alignment(
        self, session: Session, operator: Curvature, pairs: EigenPairs | None
    ) -> Alignment:
        config = self.config
        return alignment(
            self.evaluator,
            self.batch_sizes,
            config.num_batches,
            pairs=pairs,
            operator=operator,
            seed=config.seed,
            on_chunk=lambda done: self._heard(session),
        )

    def _heard(self, session: Session) -> None:
        """A signal is heard, and what is due is saved, within a checkpoint."""
        session.checkpoints.after_step(lambda: self.save(session))

    def _ends(self, session: Session, point: Points) -> Array:
        config, make = self.config, OPERATORS[self.config.operator]

        def operator(ev: Evaluator, theta: torch.Tensor) -> Curvature:
            return make(ev, theta, session.product_plan)

        tol, most = config.tol, config.max_products
        ((_, row),) = along(
            self.evaluator, point, [0], tol=tol, max_products=most, operator=operator
        )
        return row[1:]

    def _density(self, session: Session, operator: Curvature) -> tuple[SpectralMeasure, float]:
        """The measure, and the noise of its products. A signal is heard after each step."""
        config, checkpoints, (probes, steps) = self.config, session.checkpoints, self.sizes
        noise = 0.0

        def on_step(state: ProbeState) -> None:
            nonlocal noise
            noise = state.noise
            checkpoints.after_step(lambda: self.save(session), checkpoints.flags)

        measure = spectrum.spectral_density(
            operator,
            probes,
            steps,
            config.seed,
            estimator=config.estimator,
            target_error=config.target_error,
            sigma2=config.sigma2,
            data_groups=config.data_groups,
            basis=session.basis_place,
            on_step=on_step,
            flags=checkpoints.flags,
            on_group=lambda: self._heard(session),
        )
        return measure, noise

    # -- what is kept ----------------------------------------------------------------------------

    @property
    def has_state(self) -> bool:
        return bool(self.done.any())

    def _trajectory(self) -> Trajectory:
        return cast(Trajectory, self.task.finish(dict(zip(self.columns, self.rows.T))))

    def save(self, session: Session) -> None:
        state: dict[str, Any] = {"columns": list(self.columns), "rows": self.rows}
        state["done"] = self.done
        labelled = {**self.found, PROGRESS: state}
        session.write(self._trajectory(), finished=False, **labelled)

    def finish(self, session: Session) -> Trajectory:
        found = self._trajectory()
        session.write(found, finished=True, **self.found)
        return found

    def report(self, result: Trajectory, values: dict[str, float]) -> str:
        return "\n".join(
            [report.values(result, values), *report.of_each(self.found, self.config.num_pairs > 0)]
        )

    def plan_entries(self) -> dict[str, Any]:
        if not self.config.density:
            return {}
        num_probes, num_steps = self.sizes
        return {
            "estimator": self.config.estimator,
            "num_probes": num_probes,
            "num_steps": num_steps,
        }


def _test(config: TrackConfig, problem: Problem, world: World) -> Evaluator | None:
    """The same model, and so the same checkpoint at a time, on the test split."""
    if not config.test:
        return None
    split = dataclasses.replace(config, split="test")
    data = together(world, lambda: problem_loader.load(split).data)
    return dataclasses.replace(problem, data=data).evaluator(world)


def _digest(ev: Evaluator, paths: tuple[Path, ...]) -> str:
    """SHA-256 of the parameters and buffers of all checkpoints, in their order."""
    sha = hashlib.sha256()
    for path in paths:
        with plane_vectors.at_checkpoint(ev, path):
            for name, t in ev.model.state_dict().items():
                sha.update(name.encode())
                sha.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
