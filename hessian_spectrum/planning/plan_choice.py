"""The fastest plan for a workload on one rank that fits the room that is left for products."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.loss.batching import leading_size
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature_products import Form
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.operators.product_modes import Products
from hessian_spectrum.planning import calibration, calibration_cache
from hessian_spectrum.planning.calibration import Bench, Trial

MAX_CALIBRATION = 120.0  # seconds; a longer calibration is made on fewer samples
CONVOLUTION_CHUNK = 4  # vectors at once: more do not fit the caches, and are slower for each
MIN_STEPS_TO_LINEARIZE = 10  # fewer do not pay for the recording
RUN_OVER_CALIBRATION = 20  # seconds of a run over those of its calibration, from which it is made


@dataclass(frozen=True)
class Workload:
    """The products that a run forms, and what its user has decided about them."""

    evaluator: Evaluator
    theta: Tensor
    form: Form
    num_probes: int  # vectors in a block product
    num_steps: int  # block products
    mode: str | None = None  # None: any
    precision: str | None = None

    def bench(self, batch_size: int | None) -> Bench:
        return Bench(self.evaluator, self.theta, self.precision, batch_size, self.form)

    @property
    def unmeasured(self) -> ProductPlan:
        """Of a rank without data."""
        return ProductPlan(self.mode or "reverse", precision=self.precision)


@dataclass(frozen=True)
class Choice:
    """A plan and its cost on this rank."""

    plan: ProductPlan
    working: int = 0  # bytes at the peak, beside the vectors
    seconds: float = 0.0  # of all products
    trials: tuple[Trial, ...] = ()  # none: a default, not calibrated
    refused: dict[str, str] = field(default_factory=dict)  # modes left out, and why
    first: Products | None = None  # the first minibatch's map, where the plan keeps it


def choose(work: Workload, room: int) -> Choice:
    """The plan for this rank's share of the data.

    Args:
        room: bytes for products, beside all vectors.

    Raises:
        InputError: no mode works for this model, or one minibatch does not fit.
    """
    evaluator = work.evaluator
    whole = next((batch for batch in evaluator.batches if evaluator.function.weight(batch)), None)
    if whole is None:  # this rank has no data to measure
        return Choice(work.unmeasured)
    size, can_be_cut = leading_size(whole), evaluator.function.can_be_cut(whole)
    limit = _largest_that_fits(work, size, room) if can_be_cut else size
    while True:
        # Powers of two: the free memory varies a little, which would change the last bits.
        parts = 2 ** math.ceil(math.log2(size / limit))
        batch_size = math.ceil(size / parts) if parts > 1 else None
        count = evaluator.num_minibatches * parts
        try:
            bench = work.bench(batch_size)
            single, peak = bench.single()
            guess = work.num_probes * work.num_steps * count * single
            # Calibration forms some forty products, and more in batched modes; recording takes
            # seconds.
            cost = 5.0 + (40 + 4 * work.num_probes) * single
            if guess < RUN_OVER_CALIBRATION * min(cost, MAX_CALIBRATION):
                return _default(work, bench, peak, count, room)
            # The other ranks wait for this one, and take it for dead after some minutes.
            share = math.ceil(cost / MAX_CALIBRATION) if can_be_cut else 1
            few = work.bench(math.ceil((batch_size or size) / share))
            trials, refused = _trials(work, few if share > 1 else bench, room // share)
            trials = [trial.scaled(share) for trial in trials]
        except RuntimeError as error:
            if not is_out_of_memory(error) or limit == 1 or not can_be_cut:
                raise
            limit = math.ceil((batch_size or size) / 2)
            continue
        return _fastest(work, trials, refused, count, batch_size, room)


def _default(work: Workload, bench: Bench, peak: int, count: int, room: int) -> Choice:
    """For a run too short to be calibrated: a linearization, kept, where it fits.

    Decided without a clock, so that the same command takes the same plan.

    Args:
        peak: bytes of a product by reverse over reverse.
        count: minibatches.
    """
    convolves = any(len(shape) == 4 for shape in work.evaluator.layout.shapes)
    candidates = [work.mode] if work.mode else ["reverse"]
    if work.mode is None and work.num_steps >= MIN_STEPS_TO_LINEARIZE:
        candidates.insert(0, "linearize")
    for name in candidates:
        chunk = min(CONVOLUTION_CHUNK if convolves else work.num_probes, work.num_probes)
        expected = calibration.EXPECTED_PEAK.get(name, lambda k: 1)(chunk) * peak
        if name != candidates[-1] and expected > room:
            continue
        used = calibration.use(bench, name, chunk)
        if used is None:
            continue
        keep = used.peak + (count - 1) * used.kept <= room
        if name == candidates[-1] or keep:
            together = chunk if chunk < work.num_probes and name != "reverse" else None
            plan = ProductPlan(name, together, bench.batch_size, keep, bench.precision)
            working = used.peak + keep * (count - 1) * used.kept
            seconds = work.num_probes * work.num_steps * count * used.apply
            seconds += used.build * count * (1 if keep else work.num_steps)
            return Choice(plan, working, seconds, first=used.products if keep else None)
    raise InputError(
        f"products by {work.mode} do not work for this model; leave --hvp out, or use reverse"
    )


def _trials(work: Workload, bench: Bench, room: int) -> calibration_cache.Measured:
    """Trials from the cache, whose modes are checked again, or new ones.

    Checked again since the model's code may have changed.
    """
    name = calibration_cache.key(bench, work.num_probes, work.mode, room)
    known = calibration_cache.load(name)
    if known is not None:
        modes = {trial.mode for trial in known[0]} - {"reverse"}
        if all(calibration.agrees(bench, found) for found in sorted(modes)):
            return known
    measured = calibration.calibrate(bench, work.num_probes, work.mode, room)
    calibration_cache.save(name, measured)
    return measured


def _fastest(
    work: Workload,
    trials: list[Trial],
    refused: dict[str, str],
    count: int,
    batch_size: int | None,
    room: int,
) -> Choice:
    """The fastest option of the trials that fits."""
    if not trials:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise InputError(
            f"no way to form Hessian products works for this model ({reasons}); replace the "
            "operation that has no second derivative, such as a custom autograd.Function without "
            "double backward or a fused kernel"
        )
    known: dict[str, Any] = {"trials": tuple(trials), "refused": refused}
    options = [
        Choice(plan, working, seconds, **known)
        for trial in trials
        for seconds, working, plan in _options(work, trial, count, batch_size, room)
    ]
    if not options:
        least = min(trial.peak for trial in trials)
        raise InputError(
            f"one minibatch takes {least / 2**30:.2f} GiB, but only {room / 2**30:.2f} GiB is left "
            "for it; use a smaller --batch-size or more --memory"
        )
    return min(options, key=lambda option: option.seconds)


def _options(
    work: Workload, trial: Trial, count: int, batch_size: int | None, room: int
) -> list[tuple[float, int, ProductPlan]]:
    """(seconds, bytes, plan) of this trial with its maps kept and not kept, where they fit."""
    applied = work.num_probes * work.num_steps * count * trial.apply
    options = []
    for keep in (False, True):
        working = trial.peak + keep * (count - 1) * trial.kept
        if working <= room:
            seconds = applied + trial.build * count * (1 if keep else work.num_steps)
            chunk = trial.chunk if trial.chunk < work.num_probes else None
            plan = ProductPlan(trial.mode, chunk, batch_size, keep, work.precision)
            options.append((seconds, working, plan))
    return options


def _largest_that_fits(work: Workload, size: int, room: int) -> int:
    """Samples of the largest minibatch whose first-order graph takes half of the room.

    Half: other modes and kept maps take more.
    """
    bytes_of_one = calibration.bytes_of_a_sample(
        work.evaluator, work.theta, work.precision, size, room, work.form
    )
    return max(1, min(size, int(room / 2 / max(1.0, bytes_of_one))))
