"""``hs.Tracker``: curvature at some steps of anybody's training loop."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms.spectral_density import spectral_density
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature import Hessian
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.operators.transforms import Preconditioned, Shifted
from hessian_spectrum.planning import product_planner
from hessian_spectrum.tracking.critical_step import critical_step
from hessian_spectrum.tracking.sharpness import Ends, EndsFinder, ends
from hessian_spectrum.tracking.stability import Stability, require_stepped, stability
from hessian_spectrum.tracking.track_file import TrackFile

EXPECTED_PRODUCTS = 20  # of a record, for a plan
STEPS_HELD = 81  # Krylov vectors
Log = Callable[..., object]


@dataclass
class _Pending:
    """What is known of a recorded step before it is made."""

    step: int
    optimizer: Optimizer
    theta: Tensor  # (n,)
    cosine: float
    started: float  # by perf_counter
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

    ============================  ==============================================================
    curvature/loss                of the evaluator's data
    curvature/gradient_norm       of that loss
    curvature/lambda_max          the largest eigenvalue of the Hessian; lambda_min the smallest
    curvature/lambda_max_error    an eigenvalue lies within it; lambda_min_error likewise
    curvature/num_above           eigenvalues above ``above`` / lr
    curvature/preconditioned      the largest eigenvalue of the matrix that the optimizer sees,
                                  P^-1/2 (H + decay) P^-1/2 (``stability``), and _error
    curvature/threshold           above which that eigenvalue makes the optimizer unstable
    curvature/critical            2 / eta, eta the smallest learning rate at which this update
                                  raises the loss (Kalra et al. 2026); critical_NAME: ``relative``
    curvature/cosine              of this and the previous minibatch gradient
    curvature/step_length         |theta(t + 1) - theta(t)|; distance is |theta(t) - theta(0)|
    curvature/lr                  the learning rate
    curvature/minibatch_loss      what ``after_step`` was given
    curvature/products            Hessian products of this record
    curvature/seconds             spent on it
    ============================  ==============================================================

    Quantities that are not known are NaN and left out of the dict.

    Args:
        evaluator: of the model that is trained (of DistributedDataParallel and torch.compile the
            module inside), on a fixed probe set.
        path: result file, HDF5, which grows with each record and can be read at any time.
        every, at: recorded are the steps that ``every`` divides, and those in ``at``.
        largest, smallest: eigenvalues of each end that are recorded at least.
        above: all eigenvalues above this over the learning rate are recorded; None: no more.
        relative: other evaluators of the same model by name, along whose loss the same update is
            followed: relative critical sharpness.
        density_every: recorded steps that it divides get a density of ``num_products`` products,
            too, under the label step-000100.
        max_overhead: the most that records may take of the time since the first step; what would
            exceed it is skipped, and the skip recorded. None: no limit.
        log: called with (dict, step=step) after each record, on the first rank.
        tol: of eigenvalues: residual over the largest |eigenvalue|; errors are about its square.
        max_products: for one search of eigenvalues.
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
        max_overhead: float | None = 0.05,
        log: Log | None = None,
        tol: float = 1e-2,
        max_products: int = 200,
        seed: int = 0,
        overwrite: bool = False,
    ):
        _check(evaluator, every, largest, smallest, above, density_every, max_overhead)
        self.evaluator, self.world = evaluator, evaluator.world
        self.every, self.at = every, frozenset(at)
        self.largest, self.smallest, self.above = largest, smallest, above
        self.relative = dict(relative or {})
        for name, other in self.relative.items():
            if other.layout.names != evaluator.layout.names:
                raise InputError(f"relative[{name!r}]: of another model than the tracker's")
        self.density_every, self.num_products = density_every, num_products
        self.max_overhead, self.log, self.seed = max_overhead, log, seed
        self._finder = EndsFinder(tol, max_products, seed)
        self._seen_finder = EndsFinder(tol, max_products, seed)  # of the preconditioned matrix
        self._plan: ProductPlan | None = None
        self._critical: dict[str, float] = {}  # steps, where the search for the next one begins
        self._step = 0  # the latest that was made
        self._start: Tensor | None = None  # theta before the first step
        self._previous: tuple[int, Tensor] | None = None  # step and minibatch gradient
        self._pending: _Pending | None = None
        self._spent, self._elapsed = 0.0, 0.0  # seconds on records, and of earlier starts
        self._last_record = 0.0  # seconds of the latest one
        self._clock: float | None = None  # of the first step after this start
        about = {"run": self.world.from_first(uuid.uuid4().hex), "above": above}
        self.file = TrackFile(Path(path), self.world, about, overwrite)

    # -- around the optimizer's step -----------------------------------------------------------

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        """Before ``optimizer.step()``, with the gradients in place; called by every rank.

        Args:
            step: the number of this optimizer step, from 1; steps ascend.

        Raises:
            InputError: the step is not later than the one before, the optimizer steps other
                parameters, or the file is that of another run.
        """
        if not isinstance(step, int) or step <= self._step:
            raise InputError(
                f"before_step({step}): expected a step later than {self._step}, the latest one; "
                "after a restart restore the tracker by load_state_dict"
            )
        began = time.perf_counter()
        if self._clock is None:
            self._clock = began
            self.file.begin()
        if self._start is None:
            self._start = self.evaluator.theta
        gradient = None
        self._pending = None
        if self._is_due(step) and not self._is_skipped(step):
            require_stepped(optimizer, self._parameters())
            gradient = self._gradient()
            self._pending = _Pending(
                step, optimizer, self.evaluator.theta, self._cosine(step, gradient), began
            )
        self._previous = None
        if self._is_due(step + 1):
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
        pending = self._pending
        if pending is None:
            self._step = max(self._step, step)
            return None
        if pending.step != step:
            raise InputError(
                f"after_step({step}): before_step was called for step {pending.step}; call both "
                "for each optimizer step"
            )
        self._pending = None
        began = time.perf_counter()
        values, found = self._record(pending)
        if loss is not None:
            values["minibatch_loss"] = float(loss.detach() if isinstance(loss, Tensor) else loss)
        results = {}
        if self.density_every and step % self.density_every == 0 and found.is_known:
            operator = self._operator(pending.theta)
            with suppress(FloatingPointError):
                results[f"density/step-{step:06d}"] = spectral_density(
                    operator, num_products=self.num_products, seed=self.seed
                )
        values["seconds"] = pending.seconds + time.perf_counter() - began
        self.file.append(step, values, found, results)
        self._last_record = pending.seconds + time.perf_counter() - began
        self._spent += self._last_record
        self._step = step
        flat = {f"curvature/{name}": v for name, v in values.items() if not math.isnan(v)}
        if self.log is not None and self.world.rank == 0:
            self.log(dict(flat), step=step)
        return flat

    # -- one record ------------------------------------------------------------------------------

    def _record(self, pending: _Pending) -> tuple[dict[str, float], Ends]:
        ev, theta = self.evaluator, pending.theta
        update = ev.theta - theta
        rule = stability(pending.optimizer, self._parameters(), ev.weight_decay)
        before = ev.counts.products
        operator = self._operator(theta)
        values = {
            "loss": ev.loss(theta[None]).item(),  # NaN and infinities are recorded
            "gradient_norm": ev.gradient(theta).norm().item(),
            "lr": rule.lr,
            "step_length": update.norm().item(),
            "distance": (theta - self._beginning).norm().item(),
            "cosine": pending.cosine,
        }
        above = math.inf if self.above is None or not rule.lr else self.above / rule.lr
        found = Ends.unknown(self.smallest, self.largest)
        if math.isfinite(values["loss"]):
            # A product that is not finite is an outcome of training, like a loss that is not.
            with suppress(FloatingPointError):
                found = ends(self._finder, operator, self.smallest, self.largest, above)
                values |= self._seen(operator, rule, found)
            values |= self._critical_sharpness(theta, update, rule.lr, values["loss"])
        values |= _named(found, above)
        values["threshold"] = math.nan if rule.threshold is None else rule.threshold
        values["products"] = ev.counts.products - before
        operator.forget()
        self.file.note_rule(type(pending.optimizer).__name__, rule)
        return values, found

    def _seen(self, operator: SymmetricOperator, rule: Stability, found: Ends) -> dict[str, float]:
        """The largest eigenvalue of the matrix that the optimizer sees."""
        if rule.threshold is None:
            return {}
        if rule.preconditioner is not None:
            base = Shifted(operator, rule.shift) if rule.shift else operator
            seen = Preconditioned(base, rule.preconditioner.to(operator.device))
            top = ends(self._seen_finder, seen, min(1, seen.n - 1), 1, math.inf)
            return {
                "preconditioned": float(top.values[-1]),
                "preconditioned_error": float(top.residuals[-1]),
            }
        return {
            "preconditioned": float(found.values[-1]) + rule.shift,
            "preconditioned_error": float(found.residuals[-1]),
        }

    def _critical_sharpness(
        self, theta: Tensor, update: Tensor, lr: float, loss: float
    ) -> dict[str, float]:
        """2 / eta on this loss and on the relative ones."""
        found = {}
        for name, ev in (("", self.evaluator), *self.relative.items()):
            base = loss if not name else ev.loss(theta).item()

            def rise(step: float, ev: Evaluator = ev, base: float = base) -> float:
                return ev.loss((theta + step * update)[None]).item() - base

            first = self._critical.get(name, 1.0)
            step = critical_step(rise, first)[0] if update.any() else math.nan
            if 0 < step < math.inf:
                self._critical[name] = step
            key = f"critical_{name}" if name else "critical"
            # A loss that rises at once, or never, has no critical step.
            found[key] = 2 / (step * lr) if 0 < step < math.inf and lr else math.nan
        return found

    def _operator(self, theta: Tensor) -> Hessian:
        operator = Hessian(self.evaluator, theta)
        if self._plan is None:
            self._plan = product_planner.plan(
                self.evaluator,
                theta,
                1,
                EXPECTED_PRODUCTS,
                mode="reverse",  # a recording does not pay for so few products
                kept=STEPS_HELD,
                place="device",
            ).plan
        return operator.planned(self._plan)

    # -- when ------------------------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        return step in self.at or step % self.every == 0

    def _is_skipped(self, step: int) -> bool:
        """Would one more record like the latest take too much of the time? Rank 0 decides."""
        if self.max_overhead is None:
            return False
        spent = self._spent + self._last_record
        share = spent / max(1e-9, self._seconds + self._last_record)
        skipped = self.world.from_first(self._spent > 0 and share > self.max_overhead)
        if skipped:
            self.file.skip(step)
        return skipped

    @property
    def _seconds(self) -> float:
        """Since the first step, over all starts."""
        now = 0.0 if self._clock is None else time.perf_counter() - self._clock
        return self._elapsed + now

    # -- the training that is looked at ----------------------------------------------------------

    @property
    def _beginning(self) -> Tensor:
        assert self._start is not None  # ``before_step`` sets it
        return self._start

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
        norms = (gradient.norm() * before.norm()).item()
        return (gradient @ before).item() / norms if norms else math.nan

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a restarted training needs, of tensors and numbers; to be saved with the model.

        Memory: six vectors of the model's size, more with more eigenvalues.
        """
        finders = {"own": self._finder, "seen": self._seen_finder}
        return {
            "run": self.file.run,
            "records": self.file.num_records,
            "step": self._step,
            "start": self._start,
            "previous": None if self._previous is None else list(self._previous),
            "critical": dict(self._critical),
            "spent": self._spent,
            "last_record": self._last_record,
            "elapsed": self._seconds,
            "finders": {name: finder.state_dict() for name, finder in finders.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was called; what the file has of later steps is dropped.

        Called by every rank, before the first step.

        Raises:
            InputError: the file is missing, damaged or of another run, or has fewer records.
        """
        self.file.restore(state["run"], int(state["step"]), int(state["records"]))
        device = self.evaluator.device
        self._step = int(state["step"])
        self._start = None if state["start"] is None else state["start"].to(device)
        previous = state["previous"]
        self._previous = None if previous is None else (int(previous[0]), previous[1].to(device))
        self._critical = dict(state["critical"])
        self._spent, self._last_record = float(state["spent"]), float(state["last_record"])
        self._elapsed, self._clock = float(state["elapsed"]), None
        self._finder.load_state_dict(state["finders"]["own"], device)
        self._seen_finder.load_state_dict(state["finders"]["seen"], device)

    def close(self) -> None:
        """The training has ended: mark the file as finished."""
        self.file.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()


def _named(found: Ends, above: float) -> dict[str, float]:
    values = {
        "lambda_max": float(found.values[-1]),
        "lambda_max_error": float(found.residuals[-1]),
        "num_above": math.nan,
    }
    if found.is_known and math.isfinite(above):
        values["num_above"] = float((found.upper > above).sum())
    if found.num_lower:
        values["lambda_min"] = float(found.values[0])
        values["lambda_min_error"] = float(found.residuals[0])
    return values


def _check(
    evaluator: Evaluator,
    every: int,
    largest: int,
    smallest: int,
    above: float | None,
    density_every: int | None,
    max_overhead: float | None,
) -> None:
    if not isinstance(evaluator, Evaluator):
        raise InputError(
            f"Tracker of a {type(evaluator).__name__}; expected an hs.Evaluator of the model that "
            "is trained, on a fixed probe set"
        )
    for name, value, least in (
        ("every", every, 1),
        ("largest", largest, 1),
        ("smallest", smallest, 0),
        ("density_every", density_every, 1),
    ):
        if value is not None and (not isinstance(value, int) or value < least):
            raise InputError(f"{name}={value}: expected a whole number, {least} or more")
    if largest + smallest > evaluator.n:
        raise InputError(f"largest={largest}, smallest={smallest} of {evaluator.n} eigenvalues")
    for name, number in (("above", above), ("max_overhead", max_overhead)):
        if number is not None and not 0 < number < math.inf:
            raise InputError(f"{name}={number}: expected a number above 0, or None")
