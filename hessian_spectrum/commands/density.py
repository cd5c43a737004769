"""The ``density`` command: recurrences that are saved, resumed and extended."""

from __future__ import annotations

import dataclasses
import sys
import time
from contextlib import ExitStack
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms import spectral_density as spectrum
from hessian_spectrum.algorithms.budget import choose
from hessian_spectrum.commands import report
from hessian_spectrum.commands.runner import (
    HEADER,
    OPERATORS,
    Record,
    check_output,
    first_order,
    on_first_rank,
    print_estimate,
    require_unfinished,
    together,
    writing,
)
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config.computing import DensityConfig
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.state import ProbeState
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.planning import product_planner
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.storage import run_file
from hessian_spectrum.storage.krylov_state import RecurrenceStore

SMALL = 2 << 30  # bytes of Krylov vectors, on all ranks, that are kept without being asked for
NOT_KEPT = ", and its Krylov vectors were not kept (--keep-state always)"


def density(
    config: DensityConfig,
    arguments: dict[str, Any],
    world: World,
    stop: StopRequest | None = None,
) -> None:
    """From a problem to a finished result file.

    Args:
        arguments: of Evaluator: model, loss_fn, data and options.
        world: the ranks; all of them call this.
        stop: a listener to signals that is already at work; default: one for this call.

    Raises:
        InputError: the input, or the output's place, cannot be used; nothing was written.
        FloatingPointError: a loss or product is not finite; what was finished is saved.
        Interrupted: a signal came; ``resume`` goes on from here.
    """
    started = time.time()

    def check() -> None:
        check_output(config, NOT_KEPT)

    on_first_rank(world, check)
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest().listening())
        evaluator = Evaluator(**arguments, world=world)
        sizes = _sizes(config, evaluator.n)
        if config.dry_run:
            estimate = _estimate(config, OPERATORS[config.operator](evaluator), *sizes)
            print_estimate(estimate, evaluator, first_order(evaluator), _is_open(config))
            return
        lock = stack.enter_context(writing(config, world, stop, check))
        _density(config, DensityRecord(config, world, evaluator, lock, started), stop)


def _density(config: DensityConfig, record: DensityRecord, stop: StopRequest) -> None:
    world, evaluator = record.world, record.evaluator
    state = record.resumed_state()
    config, (num_probes, num_steps) = record.config, record.sizes
    record.values = values = first_order(evaluator)
    record.leave_if(stop)
    operator = OPERATORS[config.operator](evaluator)
    if state is None:
        operator = _planned(record, operator)
        values["product_repeat_error"] = spectrum.repeat_error(operator, config.seed)
    else:
        record.require_same_values()
        operator = operator.planned(record.product_plan)
        values["product_repeat_error"] = record.saved_values["product_repeat_error"]
    record.leave_if(stop)

    bar = record.bar(num_steps, state.num_steps if state else 0, "step")
    latest, flags = state, record.flags(stop)

    def on_step(state: ProbeState) -> None:
        nonlocal latest
        latest = state
        bar.update()
        finished = state.num_steps == num_steps or state.is_finished
        done = finished and not config.data_groups
        record.checkpoint(stop, lambda: record.save(state, operator), done, flags)

    def on_group() -> None:
        record.checkpoint(stop, lambda: record.save(latest, operator), finished=False)

    try:
        with bar:
            measure = spectrum.spectral_density(
                operator,
                num_probes,
                num_steps,
                config.seed,
                estimator=config.estimator,
                target_error=config.target_error,
                sigma2=config.sigma2 if config.target_error else None,
                data_groups=config.data_groups,
                basis=record.basis_place,
                state=state,
                on_step=on_step,
                flags=flags,
                on_group=on_group,
            )
    except FloatingPointError:
        if latest is not None and latest.num_steps:
            record.save(latest, operator)
        raise
    values["product_noise"] = latest.noise
    record.finish(latest, measure, operator)
    if world.rank == 0:
        ends = spectrum.extremes(measure)
        print(report.density(measure, ends, values, config.sigma2, config.target_error))
        print(f"written to {config.out}")


def _planned(record: DensityRecord, operator: Curvature) -> Curvature:
    """The operator of a new run, as the planner says."""
    estimate = _estimate(record.config, operator, *record.sizes)
    record.product_plan, record.place = estimate.plan, estimate.place
    open_end = _is_open(record.config)
    print_estimate(estimate, record.evaluator, record.values, open_end, sys.stderr)
    return operator.planned(estimate.plan, estimate.first)


def _is_open(config: DensityConfig) -> bool:
    return config.target_error is not None


def _sizes(config: DensityConfig, n: int, num_probes: int | None = None) -> tuple[int, int]:
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


def _estimate(
    config: DensityConfig, operator: Curvature, num_probes: int, num_steps: int
) -> product_planner.Estimate:
    return product_planner.plan(
        operator.evaluator,
        operator.theta,
        num_probes,
        2 * num_steps if config.data_groups else num_steps,
        kept=spectrum.vectors_kept(operator.n, config.estimator, num_probes, num_steps),
        form=operator.form,
        mode=config.hvp,
        precision=config.hvp_dtype,
        memory=config.memory_bytes,
        folder=config.out.parent,
    )


class DensityRecord(Record):
    """Writes the result file (rank 0) and the state of the recurrences (every rank)."""

    command = "density"
    free_fields = Record.free_fields | {
        *("num_products", "num_steps", "target_error", "sigma2", "keep_state"),  # how far to go
        "num_probes",  # compared with what was chosen
        "data_groups",  # may be asked for later
    }

    def __init__(
        self, config: DensityConfig, world: World, evaluator: Evaluator, lock, started: float
    ):
        super().__init__(config, world, evaluator, lock, started)
        self.sizes = _sizes(config, evaluator.n)
        self.states = RecurrenceStore(self.folder, world)

    def resumed_state(self) -> ProbeState | None:
        """The saved state that this run goes on from; None for a new run, which starts clean."""
        config = self.config
        if not config.resume:
            on_first_rank(self.world, self.states.remove)
            return None
        saved = self.states.manifest((*HEADER, "num_steps", "exhausted"))
        if saved is None:
            on_first_rank(self.world, lambda: require_unfinished(config, NOT_KEPT))
            return None
        together(self.world, lambda: self._take_over(saved))
        on_first_rank(self.world, lambda: self._require_extension(saved))
        layout, dtype = self.evaluator.layout, self.evaluator.dtype
        state = together(
            self.world,
            lambda: self.states.load(saved, layout, dtype, self.sizes[1], self.basis_place),
        )
        on_first_rank(self.world, self.states.shards.sweep)  # what a killed run half wrote
        return state

    def _take_over(self, saved: dict[str, Any]) -> None:
        """Refuse the state of another run; take over its probes, and decide how far to go."""
        config, plan = self.config, saved["plan"]
        self.go_on_from(saved)
        probes, done = plan["num_probes"], saved["num_steps"]
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
            steps = _sizes(config, self.evaluator.n, probes)[1]
        self.sizes = probes, max(steps, done)

    def _require_extension(self, saved: dict[str, Any]) -> None:
        """Refuse to resume a finished run that would not get further."""
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
        same = None not in (target, before) and self.config.sigma2 == saved["config"]["sigma2"]
        if not (same and ended_early and self.config.out.exists()):
            return
        with run_file.open(self.config.out) as run:
            if run.finished and target >= before and not self._asks_for_groups(saved):
                raise InputError(
                    f"{self.config.out} is finished, and has reached --target-error {before:g}: "
                    f"{target:g} asks for no more; name a smaller one to extend it"
                )

    def _asks_for_groups(self, saved: dict[str, Any]) -> bool:
        return bool(self.config.data_groups and not saved["config"].get("data_groups"))

    def save(self, state: ProbeState, operator: SymmetricOperator) -> None:
        """Everything finished so far: the state, to go on from, and its measure, to look at."""
        self._save_state(state, operator)
        self._write(spectrum.measure(state, operator), finished=False)

    def finish(
        self, state: ProbeState, measure: SpectralMeasure, operator: SymmetricOperator
    ) -> None:
        """The result, and where it is small the state, so that the run can be extended."""
        size = state.num_vectors * operator.n * operator.dtype.itemsize
        keep = self.config.keep_state
        self._write(measure, finished=True)
        if keep == "always" or (keep == "auto" and size < SMALL):
            try:
                self._save_state(state, operator)
            except OSError as error:  # on every rank; the result is there
                if self.world.rank == 0:
                    print(
                        f"the Krylov vectors could not be kept, so that this run cannot be "
                        f"extended: {error}",
                        file=sys.stderr,
                    )
        else:
            on_first_rank(self.world, self.states.remove)

    def _save_state(self, state: ProbeState, operator: SymmetricOperator) -> None:
        on_first_rank(self.world, self.lock.require)
        progress = {"num_steps": state.num_steps, "exhausted": state.is_finished}
        self.states.save(state, operator.layout, {**self.header(), **progress})

    def _write(self, measure: SpectralMeasure, finished: bool) -> None:
        self.write(measure, spectrum.extremes(measure), finished=finished)

    def config_used(self) -> DensityConfig:
        probes, steps = self.sizes
        return dataclasses.replace(
            self.config, num_probes=probes, num_steps=steps, num_products=None
        )

    def plan(self) -> dict[str, Any]:
        lean = self.config.estimator == "lean"
        return {
            "estimator": self.config.estimator,
            "num_probes": self.sizes[0],
            "num_steps": self.sizes[1],
            "reorthogonalization": "none" if lean else "full, classical Gram-Schmidt twice",
            **super().plan(),
        }
