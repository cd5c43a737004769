"""The ``density`` command: recurrences that are saved, resumed and extended."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from hessian_spectrum._core.errors import InputError, StateLost
from hessian_spectrum._core.json_forms import Flag, Maybe, Real, Record, Whole
from hessian_spectrum.algorithms import leave_group_out
from hessian_spectrum.algorithms import spectral_density as spectrum
from hessian_spectrum.algorithms.budget import choose
from hessian_spectrum.commands import report, sharded
from hessian_spectrum.commands.computation import Computation
from hessian_spectrum.commands.header import FREE_FIELDS
from hessian_spectrum.commands.krylov_computation import KrylovComputation
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config import DensityConfig, DensityOptions, TrackConfig
from hessian_spectrum.distributed.agreement import on_first_rank
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.lanczos import Recurrences
from hessian_spectrum.krylov.state import KrylovState, ProbeState
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.planning.product_planner import Estimate
from hessian_spectrum.planning.step_cost import answers_seconds, step_cost
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.storage import manifest_schema, run_file

CHECKED = 16  # products' time in which four are compared with float64
SMALL = 2 << 30  # bytes of Krylov vectors, on all ranks, that are kept without being asked for


class Density(KrylovComputation[DensityConfig, SpectralMeasure]):
    """A step is one of all recurrences; with data groups the last one leaves out each group."""

    command = "density"
    free_fields = FREE_FIELDS | {
        *("num_products", "num_steps", "target_error", "sigma2", "keep_state"),  # how far to go
        "num_probes",  # compared with what was chosen
        "data_groups",  # may be asked for later
    }
    manifest_form = Record(
        {
            "num_steps": Whole(),
            "exhausted": Flag(),
            "plan": Record({"num_probes": Whole(1), "num_steps": Whole(1)}),
            "config": Record(
                {"target_error": Maybe(Real(0)), "sigma2": Maybe(Real(0))},
                {"data_groups": Maybe(Whole(2))},
            ),
            "values": Record({"product_repeat_error": Real(0, finite=False)}),
        }
    )
    unresumable = ", and its Krylov vectors were not kept (--keep-state always)"

    def __init__(self, config: DensityConfig, problem: Problem, world: World):
        super().__init__(config, problem, world)
        self.sizes = sizes_of(config, self.evaluator.n)  # (num_probes, num_steps)
        self.may_end_early = config.target_error is not None
        self.groups: Sequence[Evaluator] = ()
        self.measure: SpectralMeasure | None = None  # once it is known
        self._state: ProbeState | None = None
        self._krylov_is_done = False

    @classmethod
    def chosen(cls, config: DensityConfig) -> type[Computation[DensityConfig, Any]]:
        if not config.blocks:
            return cls
        from hessian_spectrum.commands.block_densities import BlockDensities

        return BlockDensities

    @property
    def room(self) -> int:
        return self.sizes[1]

    def estimate(self, operator: Curvature) -> Estimate:
        return estimate(self.config, operator, *self.sizes)

    # -- an earlier run --------------------------------------------------------------------------

    def take_over(self, saved: dict[str, Any]) -> None:
        """Take over the probes of the earlier run, and decide how far to go."""
        config, plan = self.config, saved["plan"]
        probes, done = plan["num_probes"], saved["num_steps"]
        found = manifest_schema.num_probes(saved), manifest_schema.num_steps(saved)
        wrong_kind = (saved["kind"] == Recurrences.__name__) != (config.estimator == "slq")
        if wrong_kind or found != (probes, done) or plan["num_steps"] > self.evaluator.n:
            raise InputError(
                f"{self.states.shards.folder}: its manifest is damaged: it tells of {probes} "
                f"probes, {done} and {plan['num_steps']} steps for {self.evaluator.n} parameters, "
                f"and holds a {saved['kind']} of {found[0]} probes and {found[1]} steps; use "
                "--overwrite to start again"
            )
        if config.num_probes not in (None, probes):
            raise InputError(
                f"cannot resume: --num-probes was {probes} and is now {config.num_probes}; leave "
                "it out, or use --overwrite to start again"
            )
        groups = saved["config"].get("data_groups")
        if config.data_groups not in (None, groups) and groups is not None:
            raise InputError(
                f"cannot resume: --data-groups was {groups} and is now {config.data_groups}; leave "
                "it out, or use --overwrite to start again"
            )
        self.config = dataclasses.replace(config, data_groups=config.data_groups or groups)
        steps = plan["num_steps"]
        if not (config.num_steps is config.num_products is config.target_error is None):
            steps = sizes_of(config, self.evaluator.n, probes)[1]
        self.sizes = probes, max(steps, done)

    def require_extension(self, saved: dict[str, Any]) -> None:
        out, done = self.config.out, saved["num_steps"]
        self._require_smaller_target(saved)
        if not out.exists() or (self.sizes[1] > done and not saved["exhausted"]):
            return
        if self._asks_for_groups(saved):
            return
        with run_file.open(out) as run:
            finished = run.finished
        if finished:
            why = "no step can add anything" if saved["exhausted"] else f"it has {done} steps"
            raise InputError(
                f"{out} is finished, and {why}: extend it by more --num-steps or --num-products, "
                "or compute it again with --overwrite"
            )

    def _require_smaller_target(self, saved: dict[str, Any]) -> None:
        """A run that ended at its target has nothing to do for one that is no smaller."""
        target, before = self.config.target_error, saved["config"]["target_error"]
        ended_early = saved["num_steps"] < saved["plan"]["num_steps"] and not saved["exhausted"]
        if target is None or before is None or not ended_early:
            return
        if self.config.sigma2 != saved["config"]["sigma2"] or not self.config.out.exists():
            return
        with run_file.open(self.config.out) as run:
            if run.finished and target >= before and not self._asks_for_groups(saved):
                raise InputError(
                    f"{self.config.out} is finished, and has reached --target-error {before:g}: "
                    f"{target:g} asks for no more; name a smaller one to extend it"
                )

    def adopt(self, state: KrylovState) -> None:
        self._state = cast(ProbeState, state)  # a density's manifest holds no other kind

    def _asks_for_groups(self, saved: dict[str, Any]) -> bool:
        return bool(self.config.data_groups and not saved["config"].get("data_groups"))

    # -- the steps -------------------------------------------------------------------------------

    def prepare(self, session: Session) -> None:
        super().prepare(session)
        config, operator = self.config, self.operator
        if config.data_groups is not None:
            self.groups = leave_group_out.groups_of(
                operator, config.estimator, config.data_groups, config.seed
            )
        if self._state is None:
            place = session.basis_place
            self._state = spectrum.start(
                operator, config.estimator, *self.sizes, config.seed, place
            )
        self._look_at_state()
        if not session.rest:
            session.rest = seconds_of_answers(config.estimator, *self.sizes, operator.n)

    @property
    def state(self) -> ProbeState:
        assert self._state is not None  # the runner has called ``prepare``
        return self._state

    @property
    def is_finished(self) -> bool:
        return self._krylov_is_done and (self.measure is not None or not self.groups)

    @property
    def progress(self) -> tuple[int, int, str]:
        return self.sizes[1], self.state.num_steps, "step"

    def step(self, session: Session) -> None:
        if self._krylov_is_done:
            self.measure = self._without_groups(session)
        else:
            self._state = self.state.step(self.operator, session.checkpoints.flags)
            self._look_at_state()

    def _look_at_state(self) -> None:
        """Is it good enough? The question may cost dense algebra: it is asked once a step."""
        config = self.config
        self._krylov_is_done = spectrum.is_done(
            self.state,
            self.operator,
            self.sizes[1],
            config.target_error,
            config.sigma2 if config.target_error else None,
        )

    def _without_groups(self, session: Session) -> SpectralMeasure:
        found = spectrum.measure(self.state, self.operator)

        def on_group() -> None:
            session.checkpoints.after_step(lambda: self.save(session))

        parts = leave_group_out.replicates(self.operator, self.state, found, self.groups, on_group)
        return dataclasses.replace(found, replicates=parts)

    # -- what is kept ----------------------------------------------------------------------------

    @property
    def has_state(self) -> bool:
        return self.state.num_steps > 0

    def save(self, session: Session) -> None:
        """Everything finished so far: the state, to resume from, and its measure, to look at."""
        self._save_state(session)
        self._write(spectrum.measure(self.state, self.operator), session, finished=False)

    def finish(self, session: Session) -> SpectralMeasure:
        """The result, and where it is small the state, so that the run can be extended."""
        state, operator, keep = self.state, self.operator, self.config.keep_state
        measure = self.measure or spectrum.measure(state, operator)
        if operator.in_float64() is not operator:
            # The products in float64 may fail where there is no room for them.
            self._write(measure, session, finished=False)
            measure = spectrum.with_product_error(measure, state, operator, self.config.seed)
        session.values["product_noise"] = state.noise
        self._write(measure, session, finished=True)
        size = state.num_vectors * operator.n * operator.dtype.itemsize
        if keep == "always" or (keep == "auto" and size < SMALL):
            try:
                self._save_state(session)
            except OSError as error:  # on every rank
                raise StateLost(
                    error.errno,
                    f"{error.strerror or error}: the Krylov vectors could not be kept, so that "
                    "this run cannot be extended; its result is complete",
                    str(self.config.out),
                ) from None
        else:
            on_first_rank(self.world, self.states.remove)
        return measure

    def _save_state(self, session: Session) -> None:
        done, exhausted = self.state.num_steps, self.state.is_finished
        self.save_state(self.state, session, num_steps=done, exhausted=exhausted)

    def _write(self, measure: SpectralMeasure, session: Session, finished: bool) -> None:
        session.write(measure, spectrum.extremes(measure), finished=finished)

    def report(self, result: SpectralMeasure, values: dict[str, float]) -> str:
        ends = spectrum.extremes(result)
        return report.density(result, ends, values, self.config.sigma2, self.config.target_error)

    def config_used(self) -> DensityConfig:
        probes, steps = self.sizes
        return dataclasses.replace(
            self.config, num_probes=probes, num_steps=steps, num_products=None
        )

    def plan_entries(self) -> dict[str, Any]:
        lean = self.config.estimator == "lean"
        return {
            "estimator": self.config.estimator,
            "num_probes": self.sizes[0],
            "num_steps": self.sizes[1],
            "reorthogonalization": "none" if lean else "full, classical Gram-Schmidt twice",
        }


def estimate(
    config: DensityConfig | TrackConfig,
    operator: Curvature,
    num_probes: int,
    num_steps: int,
    count: int = 1,
) -> Estimate:
    """How products are formed, and what ``count`` densities cost."""
    passes = 2 * num_steps if config.data_groups else num_steps
    found = sharded.plan(
        config,
        operator,
        num_probes,
        count * passes,
        kept=spectrum.vectors_kept(operator.n, config.estimator, num_probes, num_steps),
        folder=config.scratch_folder,
    )
    one = found.seconds / max(1, found.products)
    checked = 0.0 if operator.in_float64() is operator else CHECKED * one
    after = checked + seconds_of_answers(config.estimator, num_probes, num_steps, operator.n)
    # Orthogonalization and exchange.
    lockstep = config.estimator == "slq"  # each probe has a basis of its own
    block, bases = (1, num_probes) if lockstep else (num_probes, 1)
    cost = step_cost(
        operator.layout, operator.dtype, operator.device, block, isinstance(operator, Curvature)
    )
    most = 2 if config.estimator == "lean" else num_steps
    beside = bases * cost.of(block * min(step, most) for step in range(1, num_steps + 1))
    return dataclasses.replace(found, beside=count * beside, after=count * after)


def seconds_of_answers(estimator: str, num_probes: int, num_steps: int, n: int) -> float:
    """Of a density's curve and report, with their intervals."""
    if estimator == "slq":
        return num_probes * answers_seconds(num_steps)
    return answers_seconds(min(num_probes * num_steps, n))


def sizes_of(config: DensityOptions, n: int, num_probes: int | None = None) -> tuple[int, int]:
    """(num_probes, num_steps) of a new run; the steps of one that has its probes."""
    if config.num_steps is not None and config.num_steps > n:
        raise InputError(
            f"--num-steps {config.num_steps} exceeds the number of parameters {n}; use "
            f"--num-steps {n} or fewer"
        )
    return choose(
        n,
        config.estimator,
        num_probes or config.num_probes,
        config.num_steps,
        config.num_products,
        config.target_error,
    )
