"""Time, memory and error of each way to form products, measured on one minibatch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from hessian_spectrum._core.errors import is_out_of_memory
from hessian_spectrum.distributed.memory import PeakMemory
from hessian_spectrum.loss.backends import PRECISIONS
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.minibatch_loss import Part
from hessian_spectrum.operators.curvature_products import HESSIAN, Form
from hessian_spectrum.operators.product_modes import MODES, Products

Result = TypeVar("Result")

MAX_REPEATS = 3  # a timing is the least of so many,
MIN_SECONDS = 1.0  # or of fewer, once they add up to this
# Numbers of vectors at once that each mode is timed with, besides all; "reverse" takes one at a
# time.
CHUNKS = {
    "reverse": (),
    "reverse-batched": (1, 2, 4, 8, 16),
    "forward": (1, 2, 4, 8, 16),
    "linearize": (1, 4, 16),  # each number is recorded anew, which takes seconds
}
# Peak memory of a mode over that of reverse over reverse: a bound before it is measured.
EXPECTED_PEAK = {
    "reverse-batched": lambda chunk: 1 + chunk / 2,
    "forward": lambda chunk: 1 + chunk,
    "linearize": lambda chunk: 2 + chunk / 2,
}
# Larger chunks are not timed after one that is slower for each vector than the mode's best, or in a
# mode that is slower than the best of all, by these factors.
SLOW_CHUNK, SLOW_MODE = 1.5, 3.0
FIRST_SAMPLES, GROWTH = 8, 4  # samples of the first piece that memory is measured on, and factor
MEASURABLE = 32 << 20  # bytes from which on the resident set measures memory well


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

    def scaled(self, factor: int) -> Trial:
        """A bound for ``factor`` times the samples: time and memory grow at most in proportion."""
        return replace(
            self,
            build=self.build * factor,
            apply=self.apply * factor,
            kept=self.kept * factor,
            peak=self.peak * factor,
        )


class Bench:
    """One minibatch's loss, on which product modes are tried."""

    def __init__(
        self,
        evaluator: Evaluator,
        theta: Tensor,
        precision: str | None,
        batch_size: int | None,
        form: Form = HESSIAN,
    ):
        self.evaluator, self.precision, self.batch_size = evaluator, precision, batch_size
        self.form = form
        self.statistics = evaluator.statistics(theta)
        dtype, self.eps = PRECISIONS[precision or str(evaluator.dtype).removeprefix("torch.")]
        self.theta = theta.to(dtype)

    def run(self, action: Callable[..., Result], *arguments: Any) -> Result:
        """``action(part, theta, *arguments)`` as in a run: same mode, kernels and arithmetic."""
        ev = self.evaluator
        with ev.evaluation_mode(self.precision):
            part = next(ev.parts(self.statistics, self.batch_size, self.theta.dtype))
            return action(part, self.theta, *arguments)

    def make(self, mode: str, part: Part, theta: Tensor) -> Products:
        return MODES[mode](part, theta, self.form)

    def vectors(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(count, len(self.theta), generator=generator, dtype=torch.float32)
        return vectors.to(self.theta)

    def seconds(self, action: Callable[[], object]) -> float:
        """The least of a few timings, since other work on the machine only adds to them."""
        times: list[float] = []
        while len(times) < MAX_REPEATS and sum(times) < MIN_SECONDS:
            clock = time.perf_counter()
            action()
            self.synchronize()
            times.append(time.perf_counter() - clock)
        return min(times)

    def synchronize(self) -> None:
        if self.evaluator.device.type == "cuda":
            torch.cuda.synchronize(self.evaluator.device)

    def single(self) -> tuple[float, int]:
        """Seconds, and bytes at the peak, of one product by reverse over reverse with its graph."""
        v = self.vectors(1)

        def measured(part: Part, theta: Tensor) -> tuple[float, int]:
            with PeakMemory(self.evaluator.device) as used:
                self.make("reverse", part, theta)(v)
                self.synchronize()
            return self.seconds(lambda: self.make("reverse", part, theta)(v)), used.peak

        return self.run(measured)


def calibrate(
    bench: Bench, num_probes: int, mode: str | None, room: float = math.inf
) -> tuple[list[Trial], dict[str, str]]:
    """Trials of every mode (or of ``mode``), and reasons for refusing the other modes.

    Args:
        room: bytes that may be used; a mode that is expected to take more is not tried.

    Raises:
        RuntimeError: out of memory already in reverse over reverse.
    """
    return bench.run(_calibrate, bench, num_probes, mode, room)


@dataclass(frozen=True)
class Use:
    """A mode's linear map of one minibatch, and its memory."""

    peak: int  # bytes at the peak of forming and applying it
    kept: int  # bytes that it holds
    products: Products
    build: float  # seconds to form it
    apply: float  # seconds for each vector, once it is formed


def use(bench: Bench, mode: str, count: int) -> Use | None:
    """A mode's map, after its products with ``count`` vectors; None where they do not exist, or
    differ from those of reverse over reverse by more than the root of the rounding.

    Raises:
        RuntimeError: out of memory.
    """

    def tried(part: Part, theta: Tensor) -> Use | None:
        vectors = bench.vectors(count)
        clock = time.perf_counter()
        with PeakMemory(bench.evaluator.device) as used:
            products = bench.make(mode, part, theta)
            found = products(vectors)
            bench.synchronize()
        first = time.perf_counter() - clock
        if mode != "reverse":
            expected = bench.make("reverse", part, theta)(vectors[:1])
            if not _error(found[:1], expected) <= bench.eps**0.5:
                return None
        clock = time.perf_counter()
        products(vectors)
        bench.synchronize()
        again = time.perf_counter() - clock
        return Use(used.peak, used.kept, products, max(0.0, first - again), again / count)

    try:
        return bench.run(tried)
    except Exception as error:  # of torch or of the model's own code, under a transform
        if mode == "reverse" or is_out_of_memory(error):
            raise
        return None


def agrees(bench: Bench, mode: str) -> bool:
    """Whether a mode's products are those of reverse over reverse, to the root of the rounding."""
    try:
        return mode == "reverse" or use(bench, mode, 1) is not None
    except Exception:
        return False


def _error(found: Tensor, expected: Tensor) -> float:
    norm, error = expected.norm().item(), (found - expected).norm().item()
    return error / norm if norm else (math.inf if error else 0.0)


def _calibrate(
    part: Part, theta: Tensor, bench: Bench, num_probes: int, mode: str | None, room: float
) -> tuple[list[Trial], dict[str, str]]:
    probe = bench.vectors(min(2, num_probes))
    expected = None
    trials: list[Trial] = []
    refused: dict[str, str] = {}
    reverse_peak = 0
    for name in MODES:  # "reverse" comes first: the others are compared with it
        if mode is not None and name not in (mode, "reverse"):
            continue
        expected_peak = EXPECTED_PEAK.get(name, lambda chunk: 1)(len(probe)) * reverse_peak
        if expected_peak > room:
            refused[name] = f"would take about {expected_peak / 2**30:.1f} GiB"
            continue
        try:
            found = bench.make(name, part, theta)(probe)
            expected = found if expected is None else expected
            error = _error(found, expected)
            if not error <= bench.eps**0.5:
                refused[name] = f"differs from reverse over reverse by {error:.1e}"
                continue
            if mode in (None, name) or not trials:
                best = min((trial.apply for trial in trials), default=math.inf)
                trials += _timed(bench, name, part, theta, num_probes, error, best, room)
                reverse_peak = reverse_peak or trials[0].peak
        except Exception as failed:  # of torch or of the model's own code, under a transform
            if is_out_of_memory(failed) and name == "reverse":
                raise
            refused[name] = " ".join(str(failed).split())[:200]
    return [trial for trial in trials if mode in (None, trial.mode)], refused


def _timed(
    bench: Bench,
    name: str,
    part: Part,
    theta: Tensor,
    num_probes: int,
    error: float,
    best: float,
    room: float,
) -> list[Trial]:
    """Trials of a mode, which ran once already, with growing chunks until these are slower."""
    device, together = bench.evaluator.device, name != "reverse"
    chunks = [c for c in CHUNKS.get(name, ()) if c < num_probes] + [num_probes]
    trials: list[Trial] = []
    for chunk in chunks:
        if trials and trials[-1].peak * chunk / trials[-1].chunk > room:
            break
        # One at a time costs the same for each: two are enough.
        vectors = bench.vectors(chunk if together else min(2, num_probes))
        try:
            with PeakMemory(device) as used:
                clock = time.perf_counter()
                products = bench.make(name, part, theta)
                products(vectors)
                bench.synchronize()
                first = time.perf_counter() - clock
            seconds = bench.seconds(partial(products, vectors))
        except RuntimeError as failed:
            if not is_out_of_memory(failed) or not trials:
                raise
            break
        # A first call may prepare more (a linearization for this number of rows).
        build, apply = max(0.0, first - seconds), seconds / len(vectors)
        trials.append(Trial(name, chunk, build, apply, used.kept, used.peak, error))
        own = min(trial.apply for trial in trials)
        if chunk > 1 and (apply > SLOW_CHUNK * own or own > SLOW_MODE * best):
            break
        del products
    return trials


def _once(part: Part, theta: Tensor, bench: Bench, vector: Tensor) -> Tensor:
    return bench.make("reverse", part, theta)(vector)


def bytes_of_a_sample(
    evaluator: Evaluator,
    theta: Tensor,
    precision: str | None,
    size: int,
    room: int,
    form: Form = HESSIAN,
) -> float:
    """Bytes at the peak of a product by reverse over reverse, for each sample of a minibatch.

    Measured on growing pieces, each predicted to fit from the one before: running out of memory
    cannot be caught on a CPU.
    """
    samples = min(FIRST_SAMPLES, size)
    first = Bench(evaluator, theta, precision, samples, form)
    first.run(_once, first, first.vectors(1))  # a process's first imports modules: 40 MiB
    while True:
        bench = Bench(evaluator, theta, precision, samples, form)
        vector = bench.vectors(1)
        with PeakMemory(evaluator.device) as used:
            bench.run(_once, bench, vector)
        if used.peak >= MEASURABLE or samples >= size or GROWTH * used.peak > room:
            return used.peak / samples
        samples = min(GROWTH * samples, size)
