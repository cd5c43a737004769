"""The ``noise`` command: the result file itself is the state, one spectrum after another."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms import eigenpairs as eigensolver
from hessian_spectrum.algorithms.budget import choose
from hessian_spectrum.algorithms.spectral_density import spectral_density
from hessian_spectrum.analyses.alignment import sizes_of
from hessian_spectrum.analyses.noise import dimensions_of, noise
from hessian_spectrum.analyses.noise_result import Noise
from hessian_spectrum.commands import output, report
from hessian_spectrum.commands.computation import OPERATORS, CurvatureComputation
from hessian_spectrum.commands.header import RunHeader
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config import NoiseConfig
from hessian_spectrum.distributed.agreement import on_first_rank, together
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.planning import product_planner
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.storage import hdf5_schema, run_file
from hessian_spectrum.storage.krylov_state import RecurrenceStore

GRADIENT = 0.7  # of a product's time, over the same samples
# Labels of the matrices beside H, whose results have none.
COVARIANCE, GAUSS_NEWTON, RESIDUAL = "covariance", "gauss-newton", "residual"
PAIRS, DENSITY, NOISE = "eigenpairs", "density", "noise"


class NoiseRun(CurvatureComputation[NoiseConfig, Noise]):
    """A step is one result of the file: eigenpairs or a density of a matrix; then the shares."""

    command = "noise"
    saves_each_step = True

    def __init__(self, config: NoiseConfig, problem: Problem, world: World):
        self.config, self.world = config, world
        self.evaluator = problem.evaluator(world)
        self.sizes = sizes_of(config.sizes, self.evaluator)
        self.dimensions = dimensions_of(config.dimensions, self.evaluator)
        self.k = max(self.dimensions)
        self.num_probes, self.num_steps = 1, 0
        if config.num_products:
            self.num_probes, self.num_steps = choose(
                self.evaluator.n, num_products=config.num_products
            )
        self._require_room()
        second = "gradient-covariance" if config.centered else "gradient-second-moment"
        self._names = {"": config.operator, COVARIANCE: second}  # in OPERATORS, by label
        if config.has_parts:
            self._names |= {GAUSS_NEWTON: "gauss-newton", RESIDUAL: "gauss-newton-residual"}
        # Refused before anything is written where samples have no gradients of their own.
        self._covariance = OPERATORS[second](self.evaluator)
        kinds = [PAIRS, *([DENSITY] if config.num_products else [])]
        self._keys = [_key(kind, label) for kind in kinds for label in self._names] + [NOISE]
        self.found: dict[str, Any] = {}  # results by their keys

    def _require_room(self) -> None:
        n = self.evaluator.n
        if self.k * n * self.evaluator.dtype.itemsize >= hdf5_schema.MAX_VECTOR_BYTES:
            raise InputError(
                f"{self.k} eigenvectors of {n} entries are too large for the result file; use a "
                "smaller --k, or --parameters for some of the parameters"
            )

    def estimate(self, operator: Curvature) -> product_planner.Estimate:
        config, evaluator = self.config, self.evaluator
        together_ = max(self.num_probes, min(self.k, 8))
        products = sum(self._products(key) for key in self._keys)
        held = self.num_probes * (self.num_steps + 1)
        estimate = product_planner.plan(
            evaluator,
            operator.theta,
            together_,
            math.ceil(products / together_),
            kept=min(max(held, eigensolver.BASIS_SIZE), evaluator.n),
            form=operator.form,
            mode=config.hvp,
            precision=config.hvp_dtype,
            memory=config.memory_bytes,
        )
        one = estimate.seconds / max(1, estimate.products)
        drawn = sum(
            size * (1 if size == evaluator.num_samples else config.num_batches)
            for size in self.sizes
        )
        return dataclasses.replace(
            estimate,
            products=products,
            seconds=one * products,
            beside=GRADIENT * one * drawn / evaluator.num_samples,
            what_beside="gradients",
        )

    def _products(self, key: str) -> int:
        """That are expected for this result; of eigenpairs nobody knows before."""
        kind, label = hdf5_schema.split_key(key)
        if kind == NOISE:
            return 2 * (self.k + 1)
        if kind == DENSITY:
            return self.num_probes * self.num_steps
        return eigensolver.expected_steps(1 << 30, 1, self.k, _which(label))

    # -- an earlier run --------------------------------------------------------------------------

    def load(self, session: Session) -> None:
        config, world = self.config, self.world
        if config.overwrite:  # what another command may have left beside the file
            on_first_rank(world, RecurrenceStore(output.state_folder(config.out), world).remove)
        if world.any(config.resume and config.out.exists()):
            together(world, lambda: self._read(session))

    def _read(self, session: Session) -> None:
        """Take over the results of the earlier run; eigenvectors are read later."""
        run = session.files.enter_context(run_file.open(self.config.out))
        session.resume_from(RunHeader.from_run(run))
        self.found = {key: run[key] for key in self._keys if key in run}

    # -- the steps -------------------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        return not self._missing

    @property
    def _missing(self) -> list[str]:
        return [key for key in self._keys if key not in self.found]

    @property
    def progress(self) -> tuple[int, int, str]:
        return len(self._keys), len(self.found), "result"

    def step(self, session: Session) -> None:
        key = self._missing[0]
        kind, label = hdf5_schema.split_key(key)
        label = "" if label == hdf5_schema.DEFAULT_LABEL else label

        def on_step(_: object) -> None:
            session.checkpoints.leave_if_stopped()

        if kind == NOISE:
            self.found[key] = self._shares(session)
            return
        operator = self._operator(label, session)
        if kind == PAIRS:
            self.found[key] = eigensolver.eigenpairs(
                operator,
                self.k,
                _which(label),
                self.config.tol,
                seed=self.config.seed,
                vectors=label in ("", COVARIANCE),  # those of the parts are not used
                basis=session.basis_place,
                on_step=on_step,
            )
        else:
            self.found[key] = spectral_density(
                operator,
                self.num_probes,
                self.num_steps,
                self.config.seed,
                basis=session.basis_place,
                on_step=on_step,
            )
        operator.forget()  # the maps of one matrix at a time

    def _operator(self, label: str, session: Session) -> Curvature:
        """Of that label. All have the plan of H, which is stored and used again on resume."""
        if not label:
            return self.operator
        assert session.product_plan is not None
        if label == COVARIANCE:
            return self._covariance.planned(session.product_plan)
        return OPERATORS[self._names[label]](self.evaluator).planned(session.product_plan)

    def _shares(self, session: Session) -> Noise:
        assert session.product_plan is not None
        # Two products each: what a plan keeps of both matrices would need twice the memory.
        plan = dataclasses.replace(session.product_plan, keep=False)
        covariance: Any = self._covariance

        def on_chunk(_: int) -> None:
            session.checkpoints.leave_if_stopped()

        return noise(
            self.evaluator,
            self.dimensions,
            self.sizes,
            self.config.num_batches,
            operator=self.operator.planned(plan),
            covariance=covariance.planned(plan),
            pairs=self.found[PAIRS],
            noise_pairs=self.found[_key(PAIRS, COVARIANCE)],
            measure=self.found.get(DENSITY),
            noise_measure=self.found.get(_key(DENSITY, COVARIANCE)),
            seed=self.config.seed,
            on_chunk=on_chunk,
        )

    # -- what is kept ----------------------------------------------------------------------------

    @property
    def has_state(self) -> bool:
        return bool(self.found)

    def save(self, session: Session) -> None:
        """The results that are done."""
        session.write(finished=False, **self.found)

    def finish(self, session: Session) -> Noise:
        session.write(finished=True, **self.found)
        return self.found[NOISE]

    def report(self, result: Noise, values: dict[str, float]) -> str:
        pairs: dict[str, EigenPairs] = {
            label: self.found[_key(PAIRS, label)] for label in self._names
        }
        return report.noise(result, values, pairs)


def _key(kind: str, label: str) -> str:
    """In the result file."""
    return f"{kind}/{label}" if label else kind


def _which(label: str) -> eigensolver.Which:
    """R is indefinite; of the other matrices the largest eigenvalues are the outliers."""
    return "both" if label == RESIDUAL else "largest"
