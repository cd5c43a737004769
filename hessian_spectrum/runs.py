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
from hessian_spectrum.linearization import ProductPlan
from hessian_spectrum.lock import WriterLock
from hessian_spectrum.measure import SpectralMeasure
from hessian_spectrum.operators import SymmetricOperator
from hessian_spectrum.recurrence_store import RecurrenceStore
from hessian_spectrum.signals import Interrupted, StopRequest
from hessian_spectrum.sizes import choose
from hessian_spectrum.spectrum import State

# What may differ between a run and its resumption without changing a number.
FREE_FIELDS = {
    *("command", "out", "resume", "overwrite", "checkpoint_minutes"),
    *("device", "memory", "dry_run", "download"),  # the stored plan is used again
    *("num_products", "num_steps", "target_error", "sigma2", "keep_state"),  # how far to go
    "num_probes",  # compared with what was chosen
}
SMALL = 2 << 30  # bytes of Krylov vectors, on all ranks, that are kept without being asked for

OPERATORS: dict[str, Callable[[Evaluator], Curvature]] = {
    "hessian": Hessian,
    "gauss-newton": GaussNewton,
    "fisher": Fisher,
    "gradient-covariance": GradientCovariance,
    "gradient-second-moment": partial(GradientCovariance, centered=False),
}
# Beside a saved state.
HEADER = ("config", "digests", "problem", "values", "plan", "work")
HEADER += ("num_steps", "exhausted")


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
        sizes = _sizes(config, evaluator.n)
        origin = {**provenance.collect(), "digests": evaluator.digests(), **_machine(world)}
        if config.dry_run:
            estimate = _estimate(config, OPERATORS[config.operator](evaluator), *sizes)
            _print_estimate(estimate, evaluator, _first_order(evaluator), config)
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
    num_probes, num_steps = recorder.sizes
    recorder.values = values = _first_order(evaluator)
    recorder.leave_if(stop)
    operator = OPERATORS[config.operator](evaluator)
    if state is None:
        estimate = _estimate(config, operator, num_probes, num_steps)
        recorder.product_plan, recorder.place = estimate.plan, estimate.place
        _print_estimate(estimate, evaluator, values, config, sys.stderr)
    else:
        recorder.require_same_values()
    operator = operator.planned(recorder.product_plan)
    if state is None:
        values["product_repeat_error"] = spectrum.repeat_error(operator, config.seed)
    else:
        values["product_repeat_error"] = recorder.saved_values["product_repeat_error"]
    recorder.leave_if(stop)

    bar = tqdm(
        total=num_steps,
        initial=state.num_steps if state else 0,
        desc="density",
        unit="step",
        disable=None if world.rank == 0 else True,  # None: where stderr is not a terminal
    )
    latest = state

    def on_step(state: State) -> None:
        nonlocal latest
        latest = state
        bar.update()
        finished = state.num_steps == num_steps or spectrum.is_finished(state)
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
                num_probes,
                num_steps,
                config.seed,
                estimator=config.estimator,
                target_error=config.target_error,
                sigma2=config.sigma2 if config.target_error else None,
                basis=recorder.basis_place,
                state=state,
                on_step=on_step,
            )
    except FloatingPointError:
        if latest is not None and latest.num_steps:
            recorder.save(latest, operator)
        raise
    values["product_noise"] = latest.noise
    recorder.finish(latest, measure, operator)
    if world.rank == 0:
        ends = spectrum.extremes(measure)
        print(report.density(measure, ends, values, config.sigma2, config.target_error))
        print(f"written to {config.out}")


def _first_order(evaluator: Evaluator) -> dict[str, float]:
    return {
        "loss": evaluator.loss().item(),
        "gradient_norm": evaluator.gradient().norm().item(),
    }


def _print_estimate(
    estimate: planner.Estimate,
    evaluator: Evaluator,
    values: dict,
    config: DensityConfig,
    file: TextIO | None = None,
) -> None:
    if evaluator.world.rank == 0:
        open_end = config.target_error is not None
        print(report.estimate(estimate, evaluator, values, open_end), file=file, flush=True)


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
) -> planner.Estimate:
    return planner.plan(
        operator.evaluator,
        operator.theta,
        num_probes,
        num_steps,
        kept=spectrum.vectors_kept(operator.n, config.estimator, num_probes, num_steps),
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
        self.sizes = _sizes(config, evaluator.n)
        self.values: dict[str, float] = {}
        self.saved_values: dict[str, float] = {}
        self.product_plan: ProductPlan | None = None  # of the interrupted run, once it is known
        self.place = "device"  # of the Krylov vectors
        self.states = RecurrenceStore(Path(f"{config.out}.d"), world)
        self.earlier = {"seconds": 0.0, "products": 0, "passes": 0}  # before a resumption
        self.threads = torch.get_num_threads()
        self.last_save = time.monotonic()

    def resumed_state(self) -> State | None:
        """The saved state that this run goes on from; None for a new run, which starts clean."""
        config = self.config
        if not config.resume:
            on_first_rank(self.world, self.states.remove)
            return None
        saved = self.states.manifest(HEADER)
        if saved is None:
            on_first_rank(self.world, lambda: _require_unfinished(config))
            return None
        together(self.world, lambda: self._go_on_from(saved))
        on_first_rank(self.world, lambda: self._require_extension(saved))
        self.earlier, self.saved_values = saved["work"], saved["values"]
        self.product_plan = ProductPlan(**saved["plan"]["products"])
        self.place = saved["plan"]["basis"]
        # Another number of threads may add in another order: the same bits need the same plan.
        torch.set_num_threads(saved["plan"]["threads"])
        self.threads = saved["plan"]["threads"]
        layout, dtype = self.evaluator.layout, self.evaluator.dtype
        state = together(
            self.world,
            lambda: self.states.load(saved, layout, dtype, self.sizes[1], self.basis_place),
        )
        on_first_rank(self.world, self.states.shards.sweep)  # what a killed run half wrote
        return state

    def _go_on_from(self, saved: dict[str, Any]) -> None:
        """Refuse the state of another run; take over its probes, and decide how far to go."""
        config, plan = self.config, saved["plan"]
        _same_run(saved, self._header())
        probes, done = plan["num_probes"], saved["num_steps"]
        if config.num_probes not in (None, probes):
            raise InputError(
                f"cannot resume: --num-probes was {probes} and is now {config.num_probes}; leave "
                "it out, or use --overwrite to start again"
            )
        steps = plan["num_steps"]
        if not (config.num_steps is config.num_products is config.target_error is None):
            steps = _sizes(config, self.evaluator.n, probes)[1]
        self.sizes = probes, max(steps, done)

    def _require_extension(self, saved: dict[str, Any]) -> None:
        """Refuse to resume a finished run that would not get further."""
        out, done = self.config.out, saved["num_steps"]
        if not out.exists() or (self.sizes[1] > done and not saved["exhausted"]):
            return
        with store.open(out) as run:
            finished = run.finished
        if finished:
            why = "no step can add anything" if saved["exhausted"] else f"it has {done} steps"
            raise InputError(
                f"{out} is finished, and {why}: extend it by more --num-steps or --num-products, "
                "or compute it again with --overwrite"
            )

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

    def save(self, state: State, operator: SymmetricOperator) -> None:
        """Everything finished so far: the state, to go on from, and its measure, to look at."""
        self._save_state(state, operator)
        self._write(spectrum.measure(state, operator), finished=False)
        self.last_save = time.monotonic()

    def finish(self, state: State, measure: SpectralMeasure, operator: SymmetricOperator) -> None:
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

    def _save_state(self, state: State, operator: SymmetricOperator) -> None:
        on_first_rank(self.world, self.lock.require)
        progress = {"num_steps": state.num_steps, "exhausted": spectrum.is_finished(state)}
        self.states.save(state, operator.layout, {**self._header(), **progress})

    def _write(self, measure, finished: bool) -> None:
        def write():
            self.lock.require()
            store.save(
                self.config.out,
                measure,
                spectrum.extremes(measure),
                config={"command": "density", **to_dict(self._config_used())},
                plan=self._plan(),
                provenance={**self.origin, **self._work()},
                finished=finished,
                overwrite=True,
                values=self.values,
            )

        on_first_rank(self.world, write)

    def _config_used(self) -> DensityConfig:
        """With the sizes that were chosen: as --config it gives the same computation."""
        probes, steps = self.sizes
        return dataclasses.replace(
            self.config, num_probes=probes, num_steps=steps, num_products=None
        )

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
            "estimator": self.config.estimator,
            "num_probes": self.sizes[0],
            "num_steps": self.sizes[1],
            "products": dataclasses.asdict(self.product_plan),
            "basis": self.place,
            "reorthogonalization": "none"
            if self.config.estimator == "lean"
            else "full, classical Gram-Schmidt twice",
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
            f"{state} exists already, the state of an earlier run; use --resume to go on, "
            "--overwrite to start again, or another --out"
        )
    if config.resume and not state.exists():
        _require_unfinished(config)


def _require_unfinished(config: DensityConfig) -> None:
    """A finished run without its state cannot go on, and must not be computed over."""
    if config.out.exists():
        with store.open(config.out) as run:
            if run.finished:
                raise InputError(
                    f"{config.out} is finished: there is nothing to resume, and its Krylov vectors "
                    "were not kept (--keep-state always); use --overwrite to compute it again"
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
