"""How to evaluate many points: measured on one minibatch, within the memory there is."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.distributed.memory import PeakMemory, available, young_heap
from hessian_spectrum.landscape.parameter_points import (
    CANCELLATION,
    PointPlan,
    Points,
    check_points,
    losses_of_part,
)
from hessian_spectrum.loss import batch_norm as normalization
from hessian_spectrum.loss.batching import leading_size
from hessian_spectrum.loss.evaluator import Evaluator

MEMORY_SHARE = 0.5  # of what is available
THETA_SHARE = 0.25  # of that, for the points of a chunk
WORTH = 20  # a trial is made where all the points would take so many times as long
REPEATS, ENOUGH = 3, 0.5  # a timing is the least of so many, or of fewer after so many seconds
TOGETHER = (4, 16, 64)  # points in one call
CHUNK = 8  # points that share a reading of the data, one by one
SHARED = 256  # points that share what first layers give at the vectors
SIZES = (64, 32, 128)  # samples of an image network at once: what stays in the caches
TRIAL_SAMPLES = 128  # of trials with smaller minibatches
LOST = 1.2  # so much slower than the best: larger chunks are not tried


@dataclass(frozen=True)
class PointTrial:
    plan: PointPlan
    seconds: float  # a point and sample
    peak: int  # bytes beyond those in use before
    error: float  # of the loss, relative to one by one, the largest of two points


def plan(
    ev: Evaluator,
    points: Points,
    *,
    memory: int | None = None,
    test: Evaluator | None = None,
) -> tuple[PointPlan, tuple[PointTrial, ...]]:
    """The fastest way found to evaluate these points, and the trials that it was chosen from.

    On the first minibatch: one by one; where the network has convolutions, with smaller
    minibatches, images in channels-last order and BatchNorm folded; many points in one call, also
    with first layers superposed where rounding allows it (``Points.cancellation``). A trial is made
    only while all the points would take 20 times as long as the trial. The first rank that has data
    decides for all.

    Args:
        memory: bytes that may be used beyond those in use; default: half of what is available.
    """
    check_points(ev, points, test)
    if not len(points):
        return PointPlan(), ()
    points = points.to(ev.device, ev.dtype)
    ev.statistics(points.rows(0, 1)[0])  # of all ranks; remembered for what one does alone
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
    """Trials on the first minibatch; each is compared with one by one."""

    def __init__(self, ev: Evaluator, points: Points, room: int, work: float):
        self.ev, self.points, self.room, self.work = ev, points, room, work
        self.batch = next(iter(ev.batches))
        self.size = leading_size(self.batch)
        self.trials: list[PointTrial] = []

    def chosen(self) -> tuple[PointPlan, tuple[PointTrial, ...]]:
        row = self.ev.n * (8 + 2 * self.ev.dtype.itemsize)  # a point, while it is added up
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
        """A trial; None where it is not worth its time, fails, or gives other losses."""
        if self.trials:
            pace = min(trial.seconds for trial in self.trials)
            if pace * self.work < WORTH * 3 * pace * count * samples:
                return None
        try:
            with warnings.catch_warnings():  # an operation that vmap takes one by one is slow
                warnings.filterwarnings("ignore", message="There is a performance drop")
                trial = self._timed(plan, count, samples)
        except (RuntimeError, NotImplementedError, ValueError) as failed:
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
        seconds = min(clock.times[1:])  # what else the machine does only adds
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
    def __init__(self, ev: Evaluator):
        self._device = ev.device
        self.times: list[float] = []

    def __call__(self, action):
        start = time.perf_counter()
        result = action()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.times.append(time.perf_counter() - start)
        return result


def _difference(found: Tensor, exact: Tensor) -> float:
    finite = exact.isfinite()
    if not finite.any():
        return 0.0
    scale = exact[finite].abs().max().item()
    return (found - exact)[finite].abs().max().item() / scale if scale else 0.0
