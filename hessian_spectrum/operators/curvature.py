"""Curvature matrices of the loss: Hessian, Gauss-Newton, Fisher, covariance of gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.distributed.agreement import CALL, Failures, agreed, digest_of, together
from hessian_spectrum.loss import batch_norm, criteria
from hessian_spectrum.loss.batching import leading_size
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.gradient import gradient
from hessian_spectrum.loss.minibatch_loss import Part
from hessian_spectrum.loss.samples import Piece, on_fewer_if_needed
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature_products import COVARIANCE, GAUSS_NEWTON, HESSIAN, Form
from hessian_spectrum.operators.derivative_check import (
    check_jacobian,
    check_second_derivatives,
    no_second_derivatives,
)
from hessian_spectrum.operators.linearization import Linearization, ProductPlan
from hessian_spectrum.operators.product_modes import Products

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11


class Curvature(SymmetricOperator):
    """A curvature matrix of the loss at one theta, summed over minibatches and ranks.

    Args and cost: as for ``Hessian``.
    """

    form: Form

    def __init__(
        self,
        evaluator: Evaluator,
        theta: Tensor | None = None,
        plan: ProductPlan | None = None,
    ):
        name = type(self).__name__
        if not isinstance(evaluator, Evaluator):
            raise InputError(
                f"{name} of a {type(evaluator).__name__}; expected an Evaluator: "
                f"hs.{name}(hs.Evaluator(model, loss_fn, data))"
            )
        self.evaluator, self.plan = evaluator, plan or ProductPlan()
        self.is_planned = plan is not None  # if not, algorithms choose a plan
        self.layout = evaluator.layout
        self.dtype = evaluator.dtype
        self._failures = Failures(evaluator.world)
        self.theta = agreed(evaluator.world, lambda: evaluator.checked(theta), self._facts)
        self._check()
        self._local = Linearization(evaluator, self.theta, self.plan, self.form)

    def _facts(self, theta: Tensor) -> dict[str, object]:
        """What all ranks must have in common."""
        call = f"{type(self).__name__} with a plan" if self.is_planned else type(self).__name__
        return {CALL: call, "vectors theta": digest_of(theta), "plan": self.plan}

    def planned(self, plan: ProductPlan, first: Products | None = None) -> Self:
        """The same matrix with products formed by ``plan``, which was chosen on one minibatch.

        Where its mode fails for another one, that is done by reverse over reverse, with a warning.

        Args:
            first: ``Estimate.first``, the first minibatch's map, if it was formed already.
        """
        other = copy.copy(self)
        other.plan, other.is_planned = plan, True
        other._local = Linearization(
            self.evaluator, self.theta, plan, self.form, first, falls_back=True
        )
        return other

    def on(self, evaluator: Evaluator) -> Self:
        """The same kind of matrix at the same theta for another evaluator of this model and loss.

        The checks of the constructor are not repeated.
        """
        other = copy.copy(self)
        other.evaluator = evaluator
        other._local = Linearization(evaluator, self.theta, self.plan, self.form)
        return other

    def in_float64(self) -> Self:
        """The same matrix with products in float64, one vector at a time.

        This operator where its products are in float64, or where the model has none in float64.
        Samples, recalibrated BatchNorm statistics and the mean of a covariance keep the rounding of
        the evaluator's own dtype.
        """
        is_double = self.dtype == torch.float64 and self.plan.precision in (None, "float64")
        if is_double or self.evaluator.verification.arithmetic.dtype != torch.float64:
            return self
        other = self.planned(ProductPlan(batch_size=self.size_in_float64, precision="float64"))
        other.dtype = torch.float64
        return other

    @property
    def size_in_float64(self) -> int | None:
        """Samples at once: half as many, since float64 takes twice the memory; None: all."""
        if self.evaluator.is_whole:
            return self.plan.batch_size
        largest = max((leading_size(batch) for batch in self.evaluator.batches), default=1)
        return math.ceil(min(self.plan.batch_size or largest, largest) / 2)

    def forget(self) -> None:
        self._local.forget()

    def expect_repeats(self) -> None:
        if not self.is_planned and self._local.was_used:
            self._local.keep_what_fits()

    def products(self, vectors: Tensor) -> Tensor:
        return self._data_products(vectors).add_(vectors, alpha=self.evaluator.weight_decay)

    def _data_products(self, vectors: Tensor) -> Tensor:
        """Products without the weight decay's part: one all-gather and one reduce-scatter."""
        whole = self.layout.gather(vectors)
        local = self._failures.attempt(lambda: self._local(whole), whole)
        if local is whole:  # it failed: free its maps before the reduction
            self._local.forget()
        return self.layout.reduce(local)

    def raise_failure(self) -> None:
        self._failures.raise_together()

    def not_finite_on(self) -> list[int]:
        self.raise_failure()
        finite = self.layout.world.gather_objects(self._local.is_finite)
        return [rank for rank, well in enumerate(finite) if not well]

    def _check(self) -> None:
        """InputError, on every rank, if this matrix does not exist or would be wrong."""

    def _require_outputs(self) -> None:
        """InputError unless the loss is a curved function of the outputs, with their Jacobian."""
        self._check_part(_require_curved_criterion)
        check_jacobian(self.evaluator, self.theta, "outputs")

    def _require_samples(self) -> None:
        """InputError unless each sample has a loss of its own, with the losses' Jacobian."""
        ev = self.evaluator
        if ev.is_whole:
            found = batch_norm.described(batch_norm.layers(ev.model))
            raise InputError(
                f"the layer {found} makes each sample's loss depend on its minibatch "
                "(batch_norm='train'), so that it has no gradient of its own; use "
                "batch_norm='eval' or 'recalibrate'"
            )
        self._check_part(_require_additive_samples)
        check_jacobian(ev, self.theta, "samples")

    def _check_part(self, check: Callable[[Part, Tensor], None]) -> None:
        """Call ``check(part, theta)`` with the evaluator's samples on every rank that has some."""
        evaluator = self.evaluator
        statistics = evaluator.statistics(self.theta)

        def checked(pieces: tuple[Piece, ...]) -> None:
            with evaluator.evaluation_mode():
                constants = evaluator.function.constants(None, statistics)
                for piece in pieces:
                    check(evaluator.part(piece.batch, constants), self.theta)

        def attempt() -> None:
            if evaluator.verification.samples:
                on_fewer_if_needed(evaluator.function, evaluator.verification.samples, checked)

        together(evaluator.world, attempt)


class Hessian(Curvature):
    """The Hessian of the mean loss at theta (default: the model's parameters now).

    Args:
        evaluator: the loss; its weight decay is included.
        theta: shape (n,), whole, on every rank.
        plan: how products are formed, always obeyed. Default: algorithms choose one for their
            work; ``H @ V`` takes one vector at a time by reverse over reverse, which works wherever
            second derivatives do, and keeps the first-order graphs from the second product on
            where they fit half of the memory that is free then.

    Raises:
        InputError: the model has no second derivatives, or autograd gets them wrong.

    Cost of ``products`` of k vectors: one pass over this rank's data, at most one first-order
    graph a minibatch; one all-gather and one reduce-scatter of (k, n) entries.
    """

    form = HESSIAN

    def _check(self) -> None:
        check_second_derivatives(self.evaluator, self.theta)


class GaussNewton(Curvature):
    """The generalized Gauss-Newton matrix of the mean loss, weight decay included.

    ``G = (1/W) sum_b w_b J_b^T (d^2 loss_b / d outputs^2) J_b + weight_decay I`` with J the
    Jacobian of the network's outputs: the Hessian without the network's own second derivatives
    (Schraudolph 2002). Positive semidefinite where loss_fn is convex in the outputs; equal to the
    Fisher matrix for losses that are log-likelihoods, see ``Fisher``.

    Args:
        evaluator, theta, plan: as for ``Hessian``.

    Raises:
        InputError: loss_fn is linear in the network's outputs, so that the matrix is zero: a model
            that returns its loss must be asked for its outputs instead. Or loss_fn has no second
            derivatives.

    Cost: as ``Hessian``, with products of 4/3 gradients instead of 2 by operation count.
    """

    form = GAUSS_NEWTON

    def _check(self) -> None:
        self._require_outputs()


class Fisher(GaussNewton):
    """The Fisher matrix of the model's own distribution p(target | input; theta), exactly.

    ``F = (1/W) sum_i w_i E[g g^T]`` with g the gradient of -log p(y) and the expectation over y
    drawn from the model, not over the labels ("empirical Fisher": ``GradientCovariance``). For
    distributions whose natural parameters are the outputs it is the Gauss-Newton matrix (Martens
    2020): categorical (cross entropy), Bernoulli (BCE with logits), Poisson, and Gaussian (mean
    squared error over d outputs: variance d / 2).

    Raises:
        InputError: loss_fn is none of these, or has class weights.
    """

    def _check(self) -> None:
        ev = self.evaluator
        if not ev.function.is_pair or not criteria.is_negative_log_likelihood(ev.loss_fn):
            raise InputError(
                "the Fisher matrix is known for nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, "
                "nn.PoissonNLLLoss and squared errors without weights, on batches (inputs, "
                "targets); "
                "for another loss use GaussNewton, or GradientCovariance(evaluator, "
                "centered=False)"
            )
        super()._check()


class GradientCovariance(Curvature):
    """Sigma, the covariance of the gradients of single samples (uncentred: the empirical Fisher).

    ``Sigma = (1/N) sum_i g_i g_i^T - g g^T`` over the N samples, with the g_i scaled so that their
    mean g is the gradient of the mean loss: Sigma / B is the covariance of the gradient of a
    minibatch of B samples drawn with replacement. A sample is an entry of the first dimension.
    Weight decay is the same for all samples, and not included.

    One Jacobian product and one transposed product of the samples' losses; the gradients of single
    samples are never stored.

    Args:
        evaluator, theta, plan: as for ``Hessian``. Its loss must be ``reduction="none"``, or one of
            torch's own.
        centered: subtract g g^T; False gives the matrix of second moments.

    Raises:
        InputError: the losses of single samples are not known, or are no function of the sample
            alone (``batch_norm="train"``).

    Cost: as ``Hessian``, and one gradient at construction if centred.
    """

    form = COVARIANCE

    def __init__(
        self,
        evaluator: Evaluator,
        theta: Tensor | None = None,
        plan: ProductPlan | None = None,
        *,
        centered: bool = True,
    ):
        super().__init__(evaluator, theta, plan)
        self.centered = centered
        self._find_mean()

    def on(self, evaluator: Evaluator) -> Self:
        other = super().on(evaluator)
        other._find_mean()
        return other

    def in_float64(self) -> Self:
        other = super().in_float64()
        if other.centered:
            other.mean = other.mean.double()
        return other

    def _find_mean(self) -> None:
        """Compute g, shape (n_local,), if it is subtracted."""
        if self.centered:
            whole = self.evaluator.data_gradient(self.theta)
            self.mean = self.layout.local(whole[None])[0]

    def products(self, vectors: Tensor) -> Tensor:
        local = self._data_products(vectors)
        if not self.centered:
            return local
        along = self.layout.world.sum((vectors @ self.mean).double()).to(vectors)
        return local.addr_(along, self.mean, alpha=-1.0)

    def _check(self) -> None:
        self._require_samples()


def _require_curved_criterion(part: Part, theta: Tensor) -> None:
    with torch.enable_grad():
        leaf = theta.detach().requires_grad_()
        outputs = part.outputs(leaf)
        at = outputs.detach().requires_grad_()
        value = part.criterion(at)
        slope = None
        if value.requires_grad:
            slope = torch.autograd.grad(value, at, create_graph=True, materialize_grads=True)[0]
    if slope is None or not slope.requires_grad:
        raise InputError(
            "the loss is linear in what the network returns, so its Gauss-Newton matrix is zero; "
            "let the model (or forward=) return its outputs and loss_fn compute the loss of them"
        )
    try:
        torch.autograd.grad(slope, at, torch.ones_like(slope), materialize_grads=True)
    except (RuntimeError, NotImplementedError) as failed:
        if is_out_of_memory(failed):
            raise
        raise InputError(no_second_derivatives("loss", failed)) from failed
    through = torch.zeros_like(theta)
    if outputs.requires_grad:
        through = torch.autograd.grad(outputs, leaf, slope.detach(), materialize_grads=True)[0]
    whole = gradient(part, theta)
    missing = (through - whole).norm().item()
    if not missing <= part.rounding**0.5 * max(whole.norm(), through.norm()):
        raise InputError(
            "the loss depends on the parameters by another way than through the tensors that the "
            f"network returns (the gradient through them differs by {missing:.2g}), which the "
            "Gauss-Newton matrix would leave out; use weight_decay= for a penalty, and return all "
            "that loss_fn needs as tensors in tuples, lists or dicts"
        )


def _require_additive_samples(part: Part, theta: Tensor) -> None:
    with torch.no_grad():
        together, whole = part.sample_sum(theta), part(theta)
    tolerance = part.rounding**0.6 * max(abs(whole.item()), abs(together.item()))
    if not abs(whole.item() - together.item()) <= tolerance:
        raise InputError(
            f"the losses of a minibatch's samples add up to {together.item():.9g}, but its loss is "
            f"{whole.item():.9g}; is its reduction the one that was stated?"
        )
    apart = part.first_sample_apart(theta)
    if apart is not None:
        alone, among = (loss.item() for loss in apart)
        if not abs(alone - among) <= part.rounding**0.6 * max(alone, among):
            raise InputError(
                f"the first sample's loss is {alone:.9g} alone and {among:.9g} in its minibatch: "
                "loss_fn must return one row for each sample, the samples first"
            )
