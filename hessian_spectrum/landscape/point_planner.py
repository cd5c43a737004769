"""Chooses how to evaluate many points, by trials on one minibatch within the available memory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.distributed.memory import PeakMemory, available, young_heap
from hessian_spectrum.landscape.parameter_points import Points, check_points
from hessian_spectrum.landscape.point_passes import PointPlan, losses_of_part
from hessian_spectrum.loss import batch_norm as normalization
from hessian_spectrum.loss.batching import leading_size
from hessian_spectrum.loss.evaluator import Evaluator

# The rounding error of superposed layers is that of the largest term. First layers are superposed
# only where the largest term is at most this many times the sum.
CANCELLATION = 16.0
MEMORY_SHARE = 0.5  # default memory, as a share of what is available
THETA_SHARE = 0.25  # of that memory, for the points of a chunk
WORTH = 20  # a trial is made if evaluating all points would take this many times as long
REPEATS, ENOUGH = 3, 0.5  # runs of a timing, of which the fastest counts; fewer after ENOUGH s
TOGETHER = (4, 16, 64)  # points in one call that are tried
CHUNK = 8  # points that share a pass over the data, one point in a call
SHARED = 256  # points that share the outputs of first layers at the vectors
SIZES = (64, 32, 128)  # minibatches of images that are tried: small enough for the caches
TRIAL_SAMPLES = 128  # samples in trials of smaller minibatches
LOST = 1.2  # larger chunks are not tried after one that is this many times as slow as the best


@dataclass(frozen=True)
class PointTrial:
    """A plan that was tried, and what was measured."""

    plan: PointPlan
    seconds: float  # for one point and sample
    peak: int  # bytes beyond those in use before the trial
    error: float  # relative difference of the loss from one point at a time, largest of two points


def plan(
    ev: Evaluator,
    points: Points,
    *,
    memory: int | None = None,
    test: Evaluator | None = None,
) -> tuple[PointPlan, tuple[PointTrial, ...]]:
    """The fastest plan found for these points, and the trials from which it was chosen.

    Trials run on the first minibatch: one point at a time; for networks with convolutions, smaller
    minibatches, channels-last images and folded BatchNorm; many points in one call, also with
    superposed first layers where rounding allows it (``Points.cancellation``). A trial is made
    only if evaluating all points would take at least 20 times as long. Trials whose losses differ
    by more than the square root of the machine epsilon are discarded. The first rank with data
    decides for all ranks.

    Args:
        memory: bytes that may be used beyond those in use; default: half of what is available.
        test: the evaluator of test data, whose samples count as work.

    Raises:
        InputError: points of another model.
    """
    check_points(ev, points, test)
    if not len(points):
        return PointPlan(), ()
    points = points.to(ev.device, ev.dtype)
    ev.statistics(points.rows(0, 1)[0])  # collective; stored for the trials, on one rank alone
    has_data = ev.world.gather_objects(next(iter(ev.batches), None) is not None)
    samples = ev.num_samples + (test.num_samples if test else 0)
    found, error = None, None
    if ev.world.rank == has_data.index(True):
        room = memory or int(MEMORY_SHARE * available(ev.world))
        work = len(points) * samples / ev.world.size
        try:
            with young_heap():
                found = _Bench(ev, points, room, work).chosen()
        except Exception as failed:
            error = failed
    ev.world.raise_together(error)
    return ev.world.gather_objects(found)[has_data.index(True)]


class _Bench:
    """Trials on the first minibatch; losses are compared with one point at a time."""

    def __init__(self, ev: Evaluator, points: Points, room: int, work: float):
        self.ev, self.points, self.room, self.work = ev, points, room, work
        self.batch = next(iter(ev.batches))
        self.size = leading_size(self.batch)
        self.trials: list[PointTrial] = []

    def chosen(self) -> tuple[PointPlan, tuple[PointTrial, ...]]:
        row = self.ev.n * (8 + 2 * self.ev.dtype.itemsize)  # bytes of a point while it is formed
        most = max(1, int(THETA_SHARE * self.room / row))
        loop = PointPlan(chunk=min(CHUNK, most))
        if self.ev.batch_norm == "recalibrate":
            return replace(loop, chunk=1), ()  # statistics take most of the time
        self._try(loop, 2, self.size)
        if self._has_images():
            self._try_sizes(loop)
        self._try_together(most)
        best = min(self.trials, key=lambda trial: trial.seconds).plan
        if best.superposed:
            best = replace(best, chunk=best.together * max(1, min(SHARED, most) // best.together))
        return best, tuple(self.trials)

    def _try_sizes(self, loop: PointPlan) -> None:
        self._try(replace(loop, channels_last=True), 2, self.size)
        if self.ev.function.can_be_cut(self.batch):
            for size in SIZES:
                if size < self.size:
                    samples = min(self.size, max(size, TRIAL_SAMPLES))
                    self._try(replace(loop, channels_last=True, batch_size=size), 2, samples)
        best = min(self.trials, key=lambda trial: trial.seconds).plan
        if normalization.layers(self.ev.model) and not self.ev.is_whole:
            samples = min(self.size, max(best.batch_size or 0, TRIAL_SAMPLES))
            self._try(replace(best, folded=True), 2, samples)

    def _try_together(self, most: int) -> None:
        superposed = self.points.cancellation() <= CANCELLATION
        one = min(self.trials, key=lambda trial: trial.seconds)
        samples = min(self.size, one.plan.batch_size or self.size)
        for linear in (True, False)[not superposed :]:
            pace, peak = one.seconds, max(one.peak, 1 << 20)
            for count in TOGETHER:
                if count > min(most, len(self.points)) or peak * 4 > self.room:
                    break
                plan = replace(one.plan, chunk=count, together=count, superposed=linear)
                trial = self._try(plan, count, samples)
                if trial is None or trial.seconds > LOST * pace:
                    break
                pace, peak = min(pace, trial.seconds), max(peak, trial.peak)

    def _try(self, plan: PointPlan, count: int, samples: int) -> PointTrial | None:
        """A trial; None if it is not worth its time, fails, or its losses differ."""
        if self.trials:
            pace = min(trial.seconds for trial in self.trials)
            if pace * self.work < WORTH * 3 * pace * count * samples:
                return None
        try:
            with warnings.catch_warnings():
                # Of operations that vmap does one by one: they are slow.
                warnings.filterwarnings("ignore", message="There is a performance drop")
                trial = self._timed(plan, count, samples)
        except Exception as failed:  # of torch or of the model's own code, under a transform
            if isinstance(failed, InputError) or not self.trials:
                raise
            if is_out_of_memory(failed):
                self.room = 0
            return None
        if not trial.error <= torch.finfo(self.ev.dtype).eps ** 0.5:
            return None
        self.trials.append(trial)
        return trial

    def _timed(self, plan: PointPlan, count: int, samples: int) -> PointTrial:
        indices = np.linspace(0, len(self.points) - 1, count).astype(int)
        some = replace(self.points, weights=self.points.weights[indices])
        theta = some.rows(0, count)
        clock = _Clock(self.ev)
        with PeakMemory(self.ev.device) as used:
            losses = clock(lambda: losses_of_part(self.ev, some, theta, plan, samples))
        while len(clock.times) < 1 + REPEATS and sum(clock.times[1:]) < ENOUGH:
            clock(lambda: losses_of_part(self.ev, some, theta, plan, samples))
        seconds = min(clock.times[1:])  # other load on the machine can only add time
        error = 0.0
        if self.trials:
            some = replace(some, weights=some.weights[:2])
            exact = losses_of_part(self.ev, some, theta[:2], PointPlan(), samples, plan.batch_size)
            error = _difference(losses[:2], exact)
        return PointTrial(plan, seconds / count / samples, used.peak, error)

    def _has_images(self) -> bool:
        images = any(getattr(leaf, "ndim", 0) == 4 for leaf in tree_leaves(self.batch))
        return images and any(isinstance(m, nn.Conv2d) for m in self.ev.model.modules())


class _Clock:
    """Runs actions, and records the seconds of each with the device synchronized."""

    def __init__(self, ev: Evaluator):
        self._device = ev.device
        self.times: list[float] = []

    def __call__(self, action: Callable[[], Tensor]) -> Tensor:
        start = time.perf_counter()
        result = action()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.times.append(time.perf_counter() - start)
        return result


def _difference(found: Tensor, exact: Tensor) -> float:
    """Largest difference where exact is finite, relative to the largest |exact|."""
    finite = exact.isfinite()
    if not finite.any():
        return 0.0
    scale = exact[finite].abs().max().item()
    return (found - exact)[finite].abs().max().item() / scale if scale else 0.0
