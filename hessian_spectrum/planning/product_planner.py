"""How to form products: measured on one minibatch, planned to fit the memory there is."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.distributed.memory import available, young_heap
from hessian_spectrum.loss.backends import check_precision
from hessian_spectrum.loss.batching import leading_size
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature_products import HESSIAN, Form
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.operators.product_modes import MODES, Products
from hessian_spectrum.planning import calibration, calibration_cache
from hessian_spectrum.planning.calibration import Bench, Trial

MEMORY_SHARE = 0.8  # of what is available, unless the user says otherwise
BASIS_SHARE = 0.5  # of the memory: Krylov vectors that take more go to the next larger place
LONGEST = 120.0  # seconds of calibration; what would take longer is measured on fewer samples
CONVOLUTION_CHUNK = 4  # vectors at once: more leave the caches, and are slower for each
MANY_STEPS = 10  # from here on a linearization pays for its recording
WORTH = 20  # calibrate only where the run is estimated to take this many times as long


@dataclass(frozen=True)
class Estimate:
    """What a run will cost with its plan; memory for each rank."""

    plan: ProductPlan
    place: str  # of the Krylov vectors: "device", "host" or "disk"
    products: int
    passes: int
    basis: int  # bytes of Krylov vectors
    working: int  # bytes of vectors in flight and of the maps, at the peak, on the device
    budget: int  # bytes of the device that may be used
    seconds: float  # of the products
    calibrated: bool  # False: a default, and a guess of the time
    trials: tuple[Trial, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # modes left out, and why
    # Of this rank's first minibatch, where the plan keeps it and it was formed to be measured
    first: Products | None = field(default=None, compare=False)


def plan(
    evaluator: Evaluator,
    theta: Tensor,
    num_probes: int,
    num_steps: int,
    *,
    form: Form = HESSIAN,
    mode: str | None = None,
    precision: str | None = None,
    memory: int | None = None,
    folder: Path | None = None,
    kept: int | None = None,
) -> Estimate:
    """The fastest way to form ``num_steps`` block products of ``num_probes`` vectors that fits.

    Where the run is long enough to be worth it, every mode (or only ``mode``) is timed on one
    minibatch, its memory is measured and its products are compared with those of reverse over
    reverse; the first rank's measurements decide for all.

    Args:
        form: what is multiplied.
        precision: arithmetic of the products, a name in ``kernels.PRECISIONS``.
        memory: bytes of the device that may be used beyond those in use now, on each rank.
            Default: 80 % of what is available.
        folder: where Krylov vectors may live on a disk; None: nowhere.
        kept: how many Krylov vectors are kept. Default: all, num_probes * (num_steps + 1).

    Raises:
        InputError: an unknown mode or precision; no mode works for this model; the memory is too
            small.
    """
    if mode is not None and mode not in MODES:
        raise InputError(f"hvp={mode!r}: expected one of {', '.join(MODES)}")
    if precision is not None:
        check_precision(precision, evaluator.device)
    # Rank 0 plans for all: its share of the vectors is the largest.
    world, layout, itemsize = evaluator.world, evaluator.layout, evaluator.dtype.itemsize
    kept = num_probes * (num_steps + 1) if kept is None else kept
    basis = kept * layout.chunk * itemsize
    vectors = 4 * num_probes * layout.n * itemsize  # gathered, products, their sum, a minibatch's
    evaluator.statistics(theta)  # of all ranks; remembered for what the first does alone
    first, result, error = None, None, None
    if world.rank == 0:
        try:
            budget = memory or int(MEMORY_SHARE * available(world))
            place = _place(evaluator, basis, budget, vectors, folder)
            room = budget - vectors - (basis if place == "device" else 0)
            start = ProductPlan(mode or "reverse", precision=precision)
            with young_heap():
                measured = _measured(
                    evaluator, theta, form, num_probes, num_steps, mode, start, room
                )
            first, result = measured[-1], (budget, place, *measured[:-1])
        except Exception as refused:
            error = refused
    world.raise_together(error)
    budget, place, chosen, working, seconds, trials, refused = world.gather_objects(result)[0]
    return Estimate(
        plan=chosen,
        place=place,
        products=num_probes * num_steps,
        passes=num_steps,
        basis=basis,
        working=vectors + working,
        budget=budget,
        seconds=seconds,
        calibrated=bool(trials),
        trials=trials,
        refused=refused,
        first=first,
    )


def _place(evaluator: Evaluator, basis: int, budget: int, vectors: int, folder: Path | None) -> str:
    """The fastest place that holds the Krylov vectors and leaves room for the products."""
    if basis + vectors < budget and basis <= BASIS_SHARE * budget:
        return "device"
    if evaluator.device.type == "cuda":
        host = MEMORY_SHARE * available(evaluator.world, host=True)
        if basis <= host and vectors < budget:
            return "host"
    if folder is not None and vectors < budget:
        free = shutil.disk_usage(folder).free // evaluator.world.local_size
        if basis <= MEMORY_SHARE * free:
            return "disk"
    if basis + vectors < budget:
        return "device"
    raise InputError(
        f"the Krylov vectors take {basis / 2**30:.2f} GiB a rank and the vectors in flight "
        f"{vectors / 2**30:.2f} GiB, but the memory is {budget / 2**30:.2f} GiB, and there is no "
        "host memory or disk for them; use fewer probes or steps, more ranks, or more --memory"
    )


def _measured(
    evaluator: Evaluator,
    theta: Tensor,
    form: Form,
    num_probes: int,
    num_steps: int,
    mode: str | None,
    start: ProductPlan,
    room: int,
) -> tuple[ProductPlan, int, float, tuple[Trial, ...], dict[str, str], Products | None]:
    """(plan, bytes, seconds, trials, modes left out, first map) for this rank's share."""
    whole = next((batch for batch in evaluator.batches if evaluator.function.weight(batch)), None)
    if whole is None:  # this rank has no data: nothing to measure, nothing to wait for
        return start, 0, 0.0, (), {}, None
    size = leading_size(whole)
    limit = size
    if evaluator.function.can_be_cut(whole):
        limit = _largest_that_fits(evaluator, theta, form, start, size, room)
    while True:
        # Halves of halves: what memory allows varies a little, and would change the last bits.
        parts = 2 ** math.ceil(math.log2(size / limit))
        batch_size = math.ceil(size / parts) if parts > 1 else None
        count = evaluator.num_minibatches * parts
        try:
            bench = Bench(evaluator, theta, start.precision, batch_size, form)
            single, peak = bench.single()
            guess = num_probes * num_steps * count * single
            # Calibration forms some forty products, and more in modes that batch; recording takes
            # seconds.
            cost = 5.0 + (40 + 4 * num_probes) * single
            if guess < WORTH * min(cost, LONGEST):
                chosen, working, first = _default(
                    bench, peak, mode, count, num_probes, num_steps, room
                )
                return chosen, working, guess, (), {}, first
            # Other ranks wait for this one, and give it up after some minutes.
            share = math.ceil(cost / LONGEST) if evaluator.function.can_be_cut(whole) else 1
            samples = math.ceil((batch_size or size) / share)
            few = Bench(evaluator, theta, start.precision, samples, form)
            trials, refused = _trials(few if share > 1 else bench, num_probes, mode, room // share)
            trials = [trial.scaled(share) for trial in trials]
        except RuntimeError as error:
            if (
                not is_out_of_memory(error)
                or limit == 1
                or not evaluator.function.can_be_cut(whole)
            ):
                raise
            limit = math.ceil((batch_size or size) / 2)
            continue
        break
    if not trials:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise InputError(
            f"no way to form Hessian products works for this model ({reasons}); replace the "
            "operation that has no second derivative, such as a custom autograd.Function without "
            "double backward or a fused kernel"
        )
    options = [
        option
        for trial in trials
        for option in _options(trial, start, count, num_probes, num_steps, batch_size, room)
    ]
    if not options:
        least = min(trial.peak for trial in trials)
        raise InputError(
            f"one minibatch takes {least / 2**30:.2f} GiB, but only {room / 2**30:.2f} GiB is left "
            "for it; use a smaller --batch-size or more --memory"
        )
    seconds, working, chosen = min(options, key=lambda option: option[0])
    return chosen, working, seconds, tuple(trials), refused, None


def _default(
    bench: Bench,
    peak: int,
    mode: str | None,
    count: int,
    num_probes: int,
    num_steps: int,
    room: int,
) -> tuple[ProductPlan, int, Products | None]:
    """(plan, bytes, first map) of a run too short to be calibrated: a linearization, kept, where
    it fits.

    Decided without a clock, so that the same command takes the same plan.

    Args:
        peak: bytes of a product by reverse over reverse.
    """
    convolves = any(len(shape) == 4 for shape in bench.evaluator.layout.shapes)
    candidates = [mode] if mode else ["reverse"]
    if mode is None and num_steps >= MANY_STEPS:
        candidates.insert(0, "linearize")
    for name in candidates:
        chunk = min(CONVOLUTION_CHUNK if convolves else num_probes, num_probes)
        expected = calibration.EXPECTED.get(name, lambda k: 1)(chunk) * peak
        if name != candidates[-1] and expected > room:
            continue
        used = calibration.use(bench, name, chunk)
        if used is None:
            continue
        keep = used.peak + (count - 1) * used.kept <= room
        if name == candidates[-1] or keep:
            together = chunk if chunk < num_probes and name != "reverse" else None
            plan = ProductPlan(name, together, bench.batch_size, keep, bench.precision)
            working = used.peak + keep * (count - 1) * used.kept
            return plan, working, used.products if keep else None
    raise InputError(
        f"products by {mode} do not work for this model; leave --hvp out, or use reverse"
    )


def _trials(
    bench: Bench, num_probes: int, mode: str | None, room: int
) -> calibration_cache.Measured:
    """Measured now, or before; what was measured before is checked again: the model's code may
    have changed."""
    name = calibration_cache.key(bench, num_probes, mode, room)
    known = calibration_cache.load(name)
    if known is not None:
        modes = {trial.mode for trial in known[0]} - {"reverse"}
        if all(calibration.agrees(bench, found) for found in sorted(modes)):
            return known
    measured = calibration.calibrate(bench, num_probes, mode, room)
    calibration_cache.save(name, measured)
    return measured


def _options(
    trial: Trial,
    start: ProductPlan,
    count: int,
    num_probes: int,
    num_steps: int,
    batch_size: int | None,
    room: int,
) -> list[tuple[float, int, ProductPlan]]:
    """(seconds, bytes, plan) of this trial with its maps kept and not kept, where they fit."""
    applied = num_probes * num_steps * count * trial.apply
    options = []
    for keep in (False, True):
        working = trial.peak + keep * (count - 1) * trial.kept
        if working <= room:
            seconds = applied + trial.build * count * (1 if keep else num_steps)
            chunk = trial.chunk if trial.chunk < num_probes else None
            plan = ProductPlan(trial.mode, chunk, batch_size, keep, start.precision)
            options.append((seconds, working, plan))
    return options


def _largest_that_fits(
    evaluator: Evaluator, theta: Tensor, form: Form, start: ProductPlan, size: int, room: int
) -> int:
    """Samples of the largest minibatch whose first-order graph takes half of the room.

    Half: other modes and kept maps want their part.
    """
    bytes_of_one = calibration.bytes_of_a_sample(
        evaluator, theta, start.precision, size, room, form
    )
    return max(1, min(size, int(room / 2 / max(1.0, bytes_of_one))))
