"""Compute -> save -> resume -> stop on signal: where numerics and storage meet."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from hessian_spectrum import planner, provenance, report, spectrum, store
from hessian_spectrum.config import DensityConfig, to_dict
from hessian_spectrum.curvature import Curvature, Fisher, GaussNewton, GradientCovariance, Hessian
from hessian_spectrum.distributed import World
from hessian_spectrum.errors import InputError
from hessian_spectrum.evaluator import Evaluator
from hessian_spectrum.krylov.basis import Place
from hessian_spectrum.krylov.lanczos import Recurrences
from hessian_spectrum.linearization import ProductPlan
from hessian_spectrum.lock import WriterLock
from hessian_spectrum.operators import SymmetricOperator
from hessian_spectrum.recurrence_store import RecurrenceStore
from hessian_spectrum.signals import Interrupted, StopRequest

# What may differ between a run and its resumption without changing a number.
FREE_FIELDS = {
    *("command", "out", "resume", "overwrite", "checkpoint_minutes"),
    *("device", "memory", "dry_run", "download"),  # the stored plan is used again
}

OPERATORS: dict[str, Callable[[Evaluator], Curvature]] = {
    "hessian": Hessian,
    "gauss-newton": GaussNewton,
    "fisher": Fisher,
    "gradient-covariance": GradientCovariance,
    "gradient-second-moment": partial(GradientCovariance, centered=False),
}
HEADER = ("config", "digests", "problem", "values", "plan", "work")  # beside a saved state


def density(
    config: DensityConfig,
    arguments: dict[str, Any],
    world: World,
    stop: StopRequest | None = None,
) -> None:
    """The ``density`` command: from a problem to a finished result file.

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
    on_first_rank(world, lambda: _check_output(config))
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest().listening())
        evaluator = Evaluator(**arguments, world=world)
        if config.num_steps > evaluator.n:
            raise InputError(
                f"--num-steps {config.num_steps} exceeds the number of parameters {evaluator.n}; "
                f"use --num-steps {evaluator.n} or fewer"
            )
        origin = {**provenance.collect(), "digests": evaluator.digests(), **_machine(world)}
        if config.dry_run:
            estimate = _estimate(config, OPERATORS[config.operator](evaluator))
            _print_estimate(estimate, evaluator, _first_order(evaluator))
            return
        stack.enter_context(stop.deferred())
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # a resume sets its own
        lock = WriterLock(config.out)
        on_first_rank(world, lambda: stack.enter_context(lock))
        # Again, now that nobody else may write.
        on_first_rank(world, lambda: _check_output(config))
        recorder = _Recorder(config, world, origin, evaluator, lock, started)
        _density(config, evaluator, recorder, stop)


def _density(
    config: DensityConfig, evaluator: Evaluator, recorder: _Recorder, stop: StopRequest
) -> None:
    world = evaluator.world
    state = recorder.resumed_state()
    recorder.values = values = _first_order(evaluator)
    recorder.leave_if(stop)
    operator = OPERATORS[config.operator](evaluator)
    if state is None:
        estimate = _estimate(config, operator)
        recorder.product_plan, recorder.place = estimate.plan, estimate.place
        _print_estimate(estimate, evaluator, values, sys.stderr)
    else:
        recorder.require_same_values()
    operator = operator.planned(recorder.product_plan)
    if state is None:
        values["product_repeat_error"] = spectrum.repeat_error(operator, config.seed)
    else:
        values["product_repeat_error"] = recorder.saved_values["product_repeat_error"]
    recorder.leave_if(stop)

    bar = tqdm(
        total=config.num_steps,
        initial=state.num_steps if state else 0,
        desc="density",
        unit="step",
        disable=None if world.rank == 0 else True,  # None: where stderr is not a terminal
    )
    latest = state

    def on_step(state: Recurrences) -> None:
        nonlocal latest
        latest = state
        bar.update()
        finished = state.num_steps == config.num_steps or not state.active.any()
        stopping, due = recorder.agree(stop.name is not None, recorder.is_due())
        if stopping and not finished:
            recorder.save(state, operator)
            raise Interrupted(stop.name or "a signal to another rank", agreed=True)
        if due and not finished:
            recorder.save(state, operator)

    try:
        with bar:
            measure = spectrum.spectral_density(
                operator,
                config.num_probes,
                config.num_steps,
                config.seed,
                basis=recorder.basis_place,
                state=state,
                on_step=on_step,
            )
    except FloatingPointError:
        if latest is not None and latest.num_steps:
            recorder.save(latest, operator)
        raise
    values["product_noise"] = latest.noise
    recorder.finish(measure)
    if world.rank == 0:
        print(report.density(measure, spectrum.extremes(measure), values))
        print(f"written to {config.out}")


def _first_order(evaluator: Evaluator) -> dict[str, float]:
    return {
        "loss": evaluator.loss().item(),
        "gradient_norm": evaluator.gradient().norm().item(),
    }


def _print_estimate(
    estimate: planner.Estimate, evaluator: Evaluator, values: dict, file: TextIO | None = None
) -> None:
    if evaluator.world.rank == 0:
        print(report.estimate(estimate, evaluator, values), file=file, flush=True)


def _estimate(config: DensityConfig, operator: Curvature) -> planner.Estimate:
    return planner.plan(
        operator.evaluator,
        operator.theta,
        config.num_probes,
        config.num_steps,
        form=operator.form,
        mode=config.hvp,
        precision=config.hvp_dtype,
        memory=config.memory_bytes,
        folder=config.out.parent,
    )


class _Recorder:
    """Writes the result file (rank 0) and the state of the recurrences (every rank)."""

    def __init__(
        self,
        config: DensityConfig,
        world: World,
        origin: dict,
        evaluator: Evaluator,
        lock: WriterLock,
        started: float,
    ):
        self.config, self.world, self.origin, self.evaluator = config, world, origin, evaluator
        self.lock, self.started = lock, started
        self.values: dict[str, float] = {}
        self.saved_values: dict[str, float] = {}
        self.product_plan: ProductPlan | None = None  # of the interrupted run, once it is known
        self.place = "device"  # of the Krylov vectors
        self.states = RecurrenceStore(Path(f"{config.out}.d"), world)
        self.earlier = {"seconds": 0.0, "products": 0, "passes": 0}  # before a resumption
        self.threads = torch.get_num_threads()
        self.last_save = time.monotonic()

    def resumed_state(self) -> Recurrences | None:
        """The saved state that this run goes on from; None for a new run, which starts clean."""
        config = self.config
        if not config.resume:
            on_first_rank(self.world, self.states.remove)
            return None
        saved = self.states.manifest(HEADER)
        if saved is None:
            return None
        together(self.world, lambda: _same_run(saved, self._header()))
        self.earlier, self.saved_values = saved["work"], saved["values"]
        self.product_plan = ProductPlan(**saved["plan"]["products"])
        self.place = saved["plan"]["basis"]
        # Another number of threads may add in another order: the same bits need the same plan.
        torch.set_num_threads(saved["plan"]["threads"])
        self.threads = saved["plan"]["threads"]
        layout, dtype = self.evaluator.layout, self.evaluator.dtype
        state = together(
            self.world,
            lambda: self.states.load(saved, layout, dtype, config.num_steps, self.basis_place),
        )
        on_first_rank(self.world, self.states.shards.sweep)  # what a killed run half wrote
        return state

    @property
    def basis_place(self) -> Place:
        return self.config.out.parent if self.place == "disk" else self.place

    def require_same_values(self) -> None:
        """The loss may have changed where no digest tells: in the problem file's code."""
        tolerance = torch.finfo(self.evaluator.dtype).eps ** 0.6  # another number of ranks rounds
        for name, before in self.saved_values.items():
            now = self.values.get(name, before)
            if abs(now - before) > tolerance * max(abs(now), abs(before)):
                raise InputError(
                    f"cannot resume: the {name.replace('_', ' ')} was {before:.9g} and is now "
                    f"{now:.9g}; restore the model, the loss and the data, or use --overwrite to "
                    "start again"
                )

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

    def save(self, state: Recurrences, operator: SymmetricOperator) -> None:
        """Everything finished so far: the state, to go on from, and its measure, to look at."""
        on_first_rank(self.world, self.lock.require)
        self.states.save(state, operator.layout, self._header())
        self._write(spectrum.measure(state, operator), finished=False)
        self.last_save = time.monotonic()

    def finish(self, measure) -> None:
        self._write(measure, finished=True)
        # The file holds the result; the state is only for going on.
        on_first_rank(self.world, self.states.remove)

    def _write(self, measure, finished: bool) -> None:
        def write():
            self.lock.require()
            store.save(
                self.config.out,
                measure,
                spectrum.extremes(measure),
                config={"command": "density", **to_dict(self.config)},
                plan=self._plan(),
                provenance={**self.origin, **self._work()},
                finished=finished,
                overwrite=True,
                values=self.values,
            )

        on_first_rank(self.world, write)

    def _header(self) -> dict[str, Any]:
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
            "plan": self._plan() if self.product_plan else {},
            "work": self._work(),
        }

    def _plan(self) -> dict[str, Any]:
        evaluator = self.evaluator
        return {
            "estimator": "slq",
            "products": dataclasses.asdict(self.product_plan),
            "basis": self.place,
            "reorthogonalization": "full, classical Gram-Schmidt twice",
            "data_kept_on_device": evaluator.batches.kept,
            "threads": self.threads,
            "parameters": evaluator.n,
            "total_weight": evaluator.total_weight,
            "dtype": str(evaluator.dtype).removeprefix("torch."),
            "batch_norm": evaluator.batch_norm,
            "dropout": evaluator.dropout,
            "operator": self.config.operator,
            "fallbacks": list(evaluator.fallbacks),
        }

    def _work(self) -> dict[str, Any]:
        counts = self.evaluator.counts
        return {
            "seconds": self.earlier["seconds"] + time.time() - self.started,
            "products": self.earlier["products"] + counts.products,
            "passes": self.earlier["passes"] + counts.passes,
        }


def _check_output(config: DensityConfig) -> None:
    store.check_output(config.out, overwrite=config.overwrite, resume=config.resume)
    state = Path(f"{config.out}.d")
    if state.exists() and not (config.resume or config.overwrite):
        raise InputError(
            f"{state} exists already, the state of an interrupted run; use --resume to go on, "
            "--overwrite to start again, or another --out"
        )
    if config.resume and config.out.exists():
        with store.open(config.out) as run:
            if run.finished:
                raise InputError(
                    f"{config.out} is finished: there is nothing to resume; use --overwrite to "
                    "compute it again"
                )


def _same_run(saved: dict, now: dict) -> None:
    before, options = saved["config"], now["config"]
    for name in sorted(set(before) | set(options)):
        if name not in FREE_FIELDS and before.get(name) != options.get(name):
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


def _machine(world: World) -> dict[str, Any]:
    device = world.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"world_size": world.size, "launcher": world.launcher, "device": name}


def together(world: World, action: Callable[[], Any]) -> Any:
    """Do it on every rank; what fails on one fails on all, before the next collective."""
    result, error = None, None
    try:
        result = action()
    except Exception as failed:
        error = failed
    world.raise_together(error)
    return result


def on_first_rank(world: World, action: Callable[[], Any]) -> None:
    together(world, action if world.rank == 0 else lambda: None)
