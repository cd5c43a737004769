"""``hs.Tracker``: curvature at some steps of anybody's training loop."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hessian_spectrum._core.errors import InputError, is_whole, require_whole
from hessian_spectrum.algorithms.spectral_density import spectral_density
from hessian_spectrum.analyses.alignment import alignment, sizes_of
from hessian_spectrum.distributed.arrays import dot, length
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.storage.hdf5_schema import Result
from hessian_spectrum.tracking.recorder import Recorder, Step
from hessian_spectrum.tracking.schedule import Schedule
from hessian_spectrum.tracking.sharpness import Ends, SpareTime
from hessian_spectrum.tracking.stability import require_stepped, stability
from hessian_spectrum.tracking.track_file import TrackFile

Log = Callable[..., object]


@dataclass
class _Pending:
    """What is known of a recorded step before it is made."""

    step: int
    optimizer: Optimizer
    theta: Tensor  # (n,)
    gradient: Tensor  # (n,), of the minibatches
    cosine: float
    seconds: float = 0.0  # spent before the step


class Tracker:
    """Sharpness with its error, and what belongs to it, at some steps of a training loop::

        tracker = hs.Tracker(hs.Evaluator(model, loss_fn, probe_set), "track.h5", every=100)
        for step, batch in enumerate(loader, 1):
            loss_fn(model(batch[0]), batch[1]).backward()
            tracker.before_step(step, optimizer)
            optimizer.step()
            tracker.after_step(step)
            optimizer.zero_grad()

    Everything is evaluated on the evaluator's own data, never on the minibatch, at the parameters
    that the step starts from, with the optimizer's state that the step uses. ``after_step`` returns
    None, or at a recorded step a flat dict. Where training has diverged the record has NaN for what
    is not finite, and the training goes on:

    =================================  =========================================================
    curvature/loss                     of the evaluator's data
    curvature/gradient_norm            of that loss
    curvature/lambda_max               the largest eigenvalue of the Hessian; lambda_min the
                                       smallest
    curvature/lambda_max_error         an eigenvalue lies within it; lambda_min_error likewise
    curvature/num_above                eigenvalues above ``above`` / lr; left out where products or
                                       time ended the search for them
    curvature/preconditioned           the largest eigenvalue of the matrix that the optimizer
                                       sees, P^-1/2 (H + decay) P^-1/2 (``stability``), and _error
    curvature/threshold                above which that eigenvalue makes the optimizer unstable
    curvature/critical                 2 / eta, eta the smallest learning rate at which this
                                       update raises the loss (Kalra et al. 2026); critical_NAME:
                                       ``relative``
    curvature/captured                 share of the minibatch gradient's square in the span of the
                                       upper eigenvectors that were found
    curvature/cosine                   of this and the previous minibatch gradient
    curvature/minibatch_gradient_norm  of the gradient that the step uses
    curvature/step_length              |theta(t + 1) - theta(t)|; distance is |theta(t) - theta(0)|
    curvature/lr                       the learning rate
    curvature/minibatch_loss           what ``after_step`` was given
    curvature/products                 Hessian products of this record, without those of densities
    curvature/seconds                  spent on it
    =================================  =========================================================

    Args:
        evaluator: of the model that is trained (of DistributedDataParallel and torch.compile the
            module inside), on a fixed probe set.
        path: result file, HDF5, which grows with each record and can be read at any time.
        every, at: recorded are the steps that ``every`` divides, and those in ``at``.
        largest, smallest: eigenvalues of each end that are recorded at least.
        above: all eigenvalues above this over the learning rate are recorded, as far as
            ``max_products`` and ``max_overhead`` allow; None: no more.
        relative: other evaluators of the same model by name, along whose loss the same update is
            followed: relative critical sharpness.
        density_every: recorded steps that it divides get a density of ``num_products`` products,
            too, under the label step-000100.
        alignment_every: recorded steps that it divides get the alignment of ``alignment_batches``
            random minibatches of the evaluator's data, of each of ``alignment_sizes`` samples.
        max_overhead: the most that records may take of the time since the first step; what would
            exceed it is skipped, and the skip recorded. None: no limit.
        log: called with (dict, step=step) after each record, on the first rank.
        tol: of eigenvalues: residual over the largest |eigenvalue|; a tenth of it for the matrix
            that the optimizer sees. An eigenvalue lies within the residual, or about its square
            where it stands apart. A larger one that has just overtaken it may be missed for some
            records, the less often the smaller ``tol`` is.
        max_products: for the eigenvalues of one matrix; errors say how far those are that have not
            converged by then.
        overwrite: replace a file of another run.

    Raises:
        InputError: an argument of no use.

    Cost of a record: a gradient, some five to twenty products, as many again with a preconditioner,
    and up to ten losses; memory for 81 vectors, and three.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        path: str | Path,
        *,
        every: int = 100,
        at: Sequence[int] = (1, 10),
        largest: int = 1,
        smallest: int = 1,
        above: float | None = 1.5,
        relative: Mapping[str, Evaluator] | None = None,
        density_every: int | None = None,
        num_products: int = 180,
        alignment_every: int | None = None,
        alignment_sizes: Sequence[int | str] = (32, "full"),
        alignment_batches: int = 10,
        max_overhead: float | None = 0.05,
        log: Log | None = None,
        tol: float = 1e-2,
        max_products: int = 200,
        seed: int = 0,
        overwrite: bool = False,
    ):
        _check_evaluators(evaluator, relative or {})
        require_whole(1, every=every, largest=largest, max_products=max_products)
        require_whole(0, smallest=smallest)
        require_whole(1, num_products=num_products, alignment_batches=alignment_batches)
        intervals = {"density_every": density_every, "alignment_every": alignment_every}
        require_whole(1, **{name: each for name, each in intervals.items() if each is not None})
        if largest + smallest > evaluator.n:
            raise InputError(f"largest={largest}, smallest={smallest} of {evaluator.n} eigenvalues")
        _require_between(0, math.inf, "above 0, or None", above=above, max_overhead=max_overhead)
        if tol is None:
            raise InputError("tol=None: expected a number between 0 and 1")
        _require_between(0, 1, "between 0 and 1", tol=tol)
        if not is_whole(seed):
            raise InputError(f"seed={seed!r}: expected a whole number")
        if log is not None and not callable(log):
            raise InputError(
                f"log is a {type(log).__name__}; expected a function (dict, step=step)"
            )
        self.evaluator, self.world = evaluator, evaluator.world
        relative = dict(relative or {})
        if alignment_every is not None:
            sizes_of(alignment_sizes, evaluator)
        self.log, self.seed = log, seed
        self.density_every, self.num_products = density_every, num_products
        self.alignment_every = alignment_every
        self.alignment_sizes, self.alignment_batches = tuple(alignment_sizes), alignment_batches
        self._schedule = Schedule(every, at, max_overhead)
        self._recorder = Recorder(
            evaluator,
            largest=largest,
            smallest=smallest,
            above=above,
            relative=relative,
            tol=tol,
            max_products=max_products,
            seed=seed,
        )
        self._step = 0  # the latest that was made
        self._previous: tuple[int, Tensor] | None = None  # step and minibatch gradient
        self._is_closed = False
        self._begun: int | None = None  # the step between its two calls
        self._pending: _Pending | None = None  # the same, where it is recorded
        about = {"run": self.world.from_first(uuid.uuid4().hex), "above": above}
        self.file = TrackFile(Path(path), self.world, about, overwrite)

    # -- around the optimizer's step -----------------------------------------------------------

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        """Before ``optimizer.step()``, with the gradients in place; called by every rank.

        With a GradScaler call it after ``scaler.unscale_(optimizer)``: gradients are recorded as
        they are.

        Args:
            step: the number of this optimizer step, from 1; steps ascend.

        Raises:
            InputError: the step is not later than the one before, the tracker is closed, the
                optimizer steps other parameters, or the file is that of another run.
        """
        require_whole(1, step=step)
        if self._is_closed:
            raise InputError(
                f"before_step({step}): the tracker is closed; make a new one, and restore it by "
                "load_state_dict to go on in the same file"
            )
        if step <= self._step:
            raise InputError(
                f"before_step({step}): expected a step later than {self._step}, the latest one; "
                "after a restart restore the tracker by load_state_dict"
            )
        step = int(step)
        began = time.perf_counter()
        if self._schedule.is_first:
            require_stepped(optimizer, self._parameters())
            self.file.begin()
            self._recorder.begin()
            self._schedule.start()  # last: a refusal leaves the tracker as it was
        gradient = None
        self._begun, self._pending = step, None
        if self._schedule.is_due(step) and not self._is_skipped(step):
            require_stepped(optimizer, self._parameters())
            gradient = self._gradient()
            self._pending = _Pending(
                step, optimizer, self.evaluator.theta, gradient, self._cosine(step, gradient)
            )
        self._previous = None
        if self._schedule.is_due(step + 1):
            self._previous = step, self._gradient() if gradient is None else gradient
        if self._pending is not None:
            self._pending.seconds = time.perf_counter() - began

    def after_step(self, step: int, loss: float | Tensor | None = None) -> dict[str, float] | None:
        """After ``optimizer.step()``; called by every rank.

        Args:
            loss: of the minibatch, recorded as it is.

        Returns:
            At a recorded step, the quantities by name (see the class); otherwise None.

        Raises:
            InputError: ``before_step`` was not called for this step.
            OSError: the file cannot be written.
        """
        if step != self._begun:
            called = "" if self._begun is None else f", but for step {self._begun}"
            raise InputError(
                f"after_step({step}): before_step was not called for this step{called}; call both "
                "for each optimizer step"
            )
        step, pending = self._begun, self._pending
        self._begun = self._pending = None
        if pending is None:
            self._step = step
            return None
        began = time.perf_counter()
        rule = stability(pending.optimizer, self._parameters(), self.evaluator.weight_decay)
        made = Step(
            pending.theta,
            self.evaluator.theta - pending.theta,
            pending.gradient,
            pending.cosine,
            rule,
        )
        spare = SpareTime(self._schedule.spare())
        values, found = self._recorder.values(made, spare)
        if loss is not None:
            values["minibatch_loss"] = float(loss.detach() if isinstance(loss, Tensor) else loss)
        results = self._larger_results(step, pending.theta, found) if found.is_known else {}
        values["seconds"] = pending.seconds + time.perf_counter() - began
        self.file.note_rule(type(pending.optimizer).__name__, rule)
        self.file.append(step, values, found, results)
        self._schedule.took(pending.seconds + time.perf_counter() - began, spare.taken)
        self._step = step
        flat = {f"curvature/{name}": v for name, v in values.items() if not math.isnan(v)}
        if self.log is not None and self.world.rank == 0:
            self.log(dict(flat), step=step)
        return flat

    def _larger_results(self, step: int, theta: Tensor, found: Ends) -> dict[str, Result]:
        """The density and the alignment, where this step is to have them."""
        results: dict[str, Result] = {}
        with suppress(FloatingPointError):  # of a training that has diverged
            if self.density_every and step % self.density_every == 0:
                results[f"density/step-{step:06d}"] = spectral_density(
                    self._recorder.operator(theta), num_products=self.num_products, seed=self.seed
                )
            if self.alignment_every and step % self.alignment_every == 0:
                results[f"alignment/step-{step:06d}"] = alignment(
                    self.evaluator,
                    self.alignment_sizes,
                    self.alignment_batches,
                    pairs=found.pairs(),
                    operator=self._recorder.operator(theta),
                    seed=self.seed,
                    at_once=1,  # the same bits at every amount of free memory
                )
        return results

    def _is_skipped(self, step: int) -> bool:
        """Rank 0 decides, by its clock."""
        skipped = bool(self.world.from_first(self._schedule.is_too_much()))
        if skipped:
            self.file.skip(step)
        return skipped

    # -- the training that is looked at ----------------------------------------------------------

    def _parameters(self) -> dict[str, nn.Parameter]:
        named = dict(self.evaluator.model.named_parameters())
        return {name: named[name] for name in self.evaluator.layout.names}

    def _gradient(self) -> Tensor:
        """Of the minibatches since the last step, (n,); zeros where there is none."""
        parts = (
            torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
            for p in self._parameters().values()
        )
        return self.evaluator.layout.flatten(parts).to(self.evaluator.device, self.evaluator.dtype)

    def _cosine(self, step: int, gradient: Tensor) -> float:
        if self._previous is None or self._previous[0] != step - 1:
            return math.nan
        before = self._previous[1]
        norms = length(gradient) * length(before)
        return dot(gradient, before) / norms if norms else math.nan

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a restarted training needs, of tensors and numbers; to be saved with the model.

        Memory: six vectors of the model's size, more with more eigenvalues.
        """
        return {
            "run": self.file.run,
            "records": self.file.num_records,
            "step": self._step,
            "previous": None if self._previous is None else list(self._previous),
            "schedule": self._schedule.state_dict(),
            "recorder": self._recorder.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was called; what the file has of later steps is dropped.

        Called by every rank, before the first step.

        Raises:
            InputError: this is no state of a tracker, or one of another model, or the file is
                missing, damaged or of another run, or has fewer records.
        """
        if not isinstance(state, Mapping):
            raise InputError(
                f"load_state_dict of a {type(state).__name__}; expected what state_dict() returned"
            )
        missing = {"run", "records", "step", "previous", "schedule", "recorder"} - set(state)
        if missing:
            raise InputError(
                f"load_state_dict: no tracker's state, {', '.join(sorted(missing))} are missing; "
                "expected what state_dict() returned"
            )
        start = state["recorder"]["start"]
        if start is not None and len(start) != self.evaluator.n:
            raise InputError(
                f"load_state_dict: the state is of a model of {len(start)} parameters, the "
                f"evaluator's has {self.evaluator.n}; restore it with the model that was trained"
            )
        self._is_closed = False
        self.file.restore(state["run"], int(state["step"]), int(state["records"]))
        device = self.evaluator.device
        self._step = int(state["step"])
        previous = state["previous"]
        self._previous = None if previous is None else (int(previous[0]), previous[1].to(device))
        self._schedule.load_state_dict(state["schedule"])
        self._recorder.load_state_dict(state["recorder"], device)

    def close(self) -> None:
        """The training has ended: mark the file as finished."""
        self._is_closed = True
        self.file.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self._is_closed = True
            self.file.leave()


def _check_evaluators(evaluator: Any, relative: Mapping[str, Any]) -> None:
    if not isinstance(evaluator, Evaluator):
        raise InputError(
            f"Tracker of a {type(evaluator).__name__}; expected an hs.Evaluator of the model that "
            "is trained, on a fixed probe set"
        )
    for name, other in relative.items():
        if not isinstance(name, str) or not name:
            raise InputError(f"relative[{name!r}]: expected a name, such as 'test'")
        if not isinstance(other, Evaluator):
            raise InputError(
                f"relative[{name!r}] is a {type(other).__name__}; expected an hs.Evaluator"
            )
        if other.layout.names != evaluator.layout.names:
            raise InputError(f"relative[{name!r}]: of another model than the tracker's")


def _require_between(low: float, high: float, expected: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, Real) or not low < value < high:
            raise InputError(f"{name}={value!r}: expected a number {expected}")
