"""How to form products: measured on one minibatch, planned to fit the memory there is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hessian_spectrum.batches import leading_size, split
from hessian_spectrum.errors import InputError
from hessian_spectrum.evaluator import Evaluator
from hessian_spectrum.linearization import ProductPlan
from hessian_spectrum.memory import PeakMemory, available
from hessian_spectrum.products import MODES, Loss

MEMORY_SHARE = 0.8  # of what is available, unless the user says otherwise
WORTH = 20  # calibrate only where the run is estimated to take this many times as long
SMALLEST_BATCH = 8  # minibatches are not cut below this
GROWTH = 4  # of the pieces on which memory is measured
VISIBLE = 32 << 20  # bytes: above, the resident set tells memory well
REPEATS = 3


@dataclass(frozen=True)
class Trial:
    """One mode at one number of vectors, on one minibatch."""

    mode: str
    chunk: int  # vectors at once
    build: float  # seconds to prepare the linear map
    apply: float  # seconds for each vector
    kept: int  # bytes that the map holds
    peak: int  # bytes at the peak of building and applying it, beyond what was there
    error: float  # |difference to reverse over reverse| / |its products|


@dataclass(frozen=True)
class Estimate:
    """What a run will cost with its plan; memory for each rank."""

    plan: ProductPlan
    products: int
    passes: int
    basis: int  # bytes of Krylov vectors
    working: int  # bytes of vectors in flight and of the maps, at the peak
    budget: int  # bytes that may be used
    seconds: float  # of the products
    calibrated: bool  # False: a default, and a guess of the time
    trials: tuple[Trial, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # modes left out, and why


def plan(
    evaluator: Evaluator,
    theta: Tensor,
    num_probes: int,
    num_steps: int,
    *,
    mode: str | None = None,
    memory: int | None = None,
) -> Estimate:
    """The fastest way to form ``num_steps`` block products of ``num_probes`` vectors that fits.

    Where the run is long enough to be worth it, every mode (or only ``mode``) is timed on one
    minibatch, its memory is measured and its products are compared with those of reverse over
    reverse; the first rank's measurements decide for all.

    Args:
        memory: bytes that may be used beyond those in use now, on each rank. Default: 80 % of
            what is available.

    Raises:
        InputError: an unknown mode; no mode works for this model; the basis alone does not
            fit the memory.
    """
    if mode is not None and mode not in MODES:
        raise InputError(f"hvp={mode!r}: expected one of {', '.join(MODES)}")
    layout = evaluator.layout
    budget = memory or int(MEMORY_SHARE * available(evaluator.world))
    itemsize = evaluator.dtype.itemsize
    basis = num_probes * (num_steps + 1) * layout.n_local * itemsize
    vectors = 4 * num_probes * layout.n * itemsize  # gathered, products, their sum, a minibatch's
    room = budget - basis - vectors
    if room <= 0:
        raise InputError(
            f"{num_probes} x {num_steps} Krylov vectors take {basis / 2**30:.2f} GiB a rank and "
            f"the vectors in flight {vectors / 2**30:.2f} GiB, but the memory is "
            f"{budget / 2**30:.2f} GiB; use fewer probes or steps, more ranks, or more --memory"
        )
    world = evaluator.world
    result, error = None, None
    if world.rank == 0:
        try:
            result = _measured(evaluator, theta, num_probes, num_steps, mode, room)
        except InputError as refused:
            error = refused
    world.raise_together(error)
    chosen, working, seconds, calibrated, trials, refused = world.gather_objects(result)[0]
    return Estimate(
        plan=chosen,
        products=num_probes * num_steps,
        passes=num_steps,
        basis=basis,
        working=vectors + working,
        budget=budget,
        seconds=seconds,
        calibrated=calibrated,
        trials=trials,
        refused=refused,
    )


def _measured(
    evaluator: Evaluator,
    theta: Tensor,
    num_probes: int,
    num_steps: int,
    mode: str | None,
    room: int,
) -> tuple:
    """(plan, bytes, seconds, calibrated, trials, refused) for this rank's share."""
    with evaluator.evaluation_mode():
        first = next(evaluator.minibatch_losses(), None)
        if first is None:  # this rank has no data: nothing to measure, nothing to wait for
            return ProductPlan(mode or "reverse"), 0, 0.0, False, (), {}
        minibatches = sum(1 for _ in evaluator.batches)
        size = _largest_that_fits(evaluator, theta, room)
        batch_size, share = size
        loss = next(evaluator.minibatch_losses(batch_size))
        count = minibatches * share
        single = _time(lambda: MODES["reverse"](loss, theta)(_vectors(evaluator, 1)), evaluator)
        guess = num_probes * num_steps * count * single
        # Calibration tries each mode at a few numbers of vectors; tracing takes seconds.
        cost = 5.0 + 20 * num_probes * single
        if guess < WORTH * cost:
            default = ProductPlan(mode or "reverse", None, batch_size, False)
            return default, 0, guess, False, (), {}
        trials, refused = _trials(evaluator, loss, theta, num_probes, mode)
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
        for option in _options(trial, count, num_probes, num_steps, batch_size, room)
    ]
    if not options:
        least = min(trial.peak for trial in trials)
        raise InputError(
            f"one minibatch takes {least / 2**30:.2f} GiB, but only {room / 2**30:.2f} GiB is left "
            "for it; use a smaller --batch-size or more --memory"
        )
    seconds, working, chosen = min(options, key=lambda option: option[0])
    return chosen, working, seconds, True, tuple(trials), refused


def _options(
    trial: Trial, count: int, num_probes: int, num_steps: int, batch_size: int | None, room: int
) -> list[tuple[float, int, ProductPlan]]:
    """(seconds, bytes, plan) of this trial with its maps kept and not kept, where they fit."""
    applied = num_probes * num_steps * count * trial.apply
    options = []
    for keep in (False, True):
        working = trial.peak + keep * (count - 1) * trial.kept
        if working <= room:
            seconds = applied + trial.build * count * (1 if keep else num_steps)
            chunk = trial.chunk if trial.chunk < num_probes else None
            options.append((seconds, working, ProductPlan(trial.mode, chunk, batch_size, keep)))
    return options


def _largest_that_fits(evaluator: Evaluator, theta: Tensor, room: int) -> tuple[int | None, int]:
    """The largest minibatch whose first-order graph fits: (batch_size, pieces of a minibatch).

    Measured on growing pieces, each predicted by the one before to fit: on a CPU running out of
    memory cannot be caught.
    """
    whole = next(iter(evaluator.batches))
    size, samples = leading_size(whole), SMALLEST_BATCH
    if size <= samples or split(whole, samples) is None:
        return None, 1
    vector = _vectors(evaluator, 1)
    while True:
        piece = next(evaluator.minibatch_losses(samples))
        with PeakMemory(evaluator.device) as used:
            MODES["reverse"](piece, theta)(vector)
        if used.peak >= VISIBLE or samples >= size or GROWTH * used.peak > room:
            break
        samples = min(GROWTH * samples, size)
    # Half of the room: other modes and kept maps want their part.
    fitting = int(room / 2 / max(1.0, used.peak / samples))
    if fitting >= size:
        return None, 1
    parts = math.ceil(size / max(SMALLEST_BATCH, fitting))
    return math.ceil(size / parts), parts


def _trials(
    evaluator: Evaluator, loss: Loss, theta: Tensor, num_probes: int, mode: str | None
) -> tuple[list[Trial], dict[str, str]]:
    """Every mode at several numbers of vectors; modes that fail or disagree are named."""
    probe = _vectors(evaluator, min(2, num_probes))
    expected = None
    trials, refused = [], {}
    tolerance = torch.finfo(evaluator.dtype).eps ** 0.5
    for name in MODES:  # "reverse" comes first: the others are compared with it
        if mode is not None and name not in (mode, "reverse"):
            continue
        try:
            found = MODES[name](loss, theta)(probe)
            if expected is None:
                expected = found
            norm = expected.norm().item()
            error = (found - expected).norm().item() / norm if norm else 0.0
            if not error <= tolerance:
                refused[name] = f"differs from reverse over reverse by {error:.1e}"
                continue
            if mode in (None, name):
                trials += _timed(evaluator, name, loss, theta, num_probes, error)
        except (RuntimeError, NotImplementedError, ValueError) as failed:
            refused[name] = " ".join(str(failed).split())[:200]
    return trials, refused


def _timed(
    evaluator: Evaluator, name: str, loss: Loss, theta: Tensor, num_probes: int, error: float
) -> list[Trial]:
    prepare = MODES[name]
    batched = name not in ("reverse", "linearize")
    chunks = sorted({1, 2, 4, 8, 16, num_probes}) if batched else [num_probes]
    kept_map = prepare(loss, theta)  # also warms up: the second is the one that is measured
    clock = time.perf_counter()
    with PeakMemory(evaluator.device) as building:
        products = prepare(loss, theta)
        _synchronize(evaluator)
    build = time.perf_counter() - clock
    del kept_map
    trials: list[Trial] = []
    for chunk in chunks:
        if chunk > num_probes:
            break
        vectors = _vectors(evaluator, chunk)
        with PeakMemory(evaluator.device) as applying:
            seconds = _time(lambda v=vectors: products(v), evaluator) / chunk
        peak = max(building.peak, building.kept + applying.peak)
        trials.append(Trial(name, chunk, build, seconds, building.kept, peak, error))
        if len(trials) > 1 and seconds > 1.5 * min(trial.apply for trial in trials):
            break  # larger blocks have stopped to pay
    return trials


def _vectors(evaluator: Evaluator, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(count, evaluator.n, generator=generator, dtype=torch.float32)
    return vectors.to(evaluator.device, evaluator.dtype)


def _time(action: Callable[[], object], evaluator: Evaluator) -> float:
    """Seconds, median of a few after a warm-up, the device synchronized."""
    times: Sequence[float] = []
    for _ in range(REPEATS + 1):
        clock = time.perf_counter()
        action()
        _synchronize(evaluator)
        times = [*times, time.perf_counter() - clock]
    return sorted(times[1:])[REPEATS // 2]


def _synchronize(evaluator: Evaluator) -> None:
    if evaluator.device.type == "cuda":
        torch.cuda.synchronize(evaluator.device)
