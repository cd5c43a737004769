"""Checks on a few samples that the derivatives which autograd forms are those of the loss.

torch silently returns zeros for the part of a Hessian behind a custom function whose backward is
marked ``once_differentiable`` or detaches what it saves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.loss.batching import cast
from hessian_spectrum.loss.casts import Casts
from hessian_spectrum.loss.difference_arithmetic import DifferenceArithmetic
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.gradient import gradient
from hessian_spectrum.loss.gradient_check import displacement
from hessian_spectrum.loss.minibatch_loss import Part
from hessian_spectrum.loss.samples import Piece, on_fewer_if_needed
from hessian_spectrum.loss.verification import SECOND_DERIVATIVES
from hessian_spectrum.operators.curvature_products import push
from hessian_spectrum.operators.differences import Difference, misfit, steps
from hessian_spectrum.operators.not_finite import require_finite_product
from hessian_spectrum.operators.product_modes import reverse

LARGE = 1e4  # a product is linear: one that is clipped is not
# By the names of torch's operations without second derivatives: what to write instead.
_WITHOUT = {
    "ctc_loss": "torch's CTC loss has none: write its forward recursion over time in the "
    "log domain, with torch.logsumexp, in place of F.ctc_loss",
    "_embedding_bag": "a bag of embeddings with mode='max' has none: write nn.Embedding, and the "
    "maximum over each bag by amax",
}
NEARBY = 1e-3  # relative: where kinks are left, as of a ReLU at exactly 0


def check_second_derivatives(evaluator: Evaluator, theta: Tensor) -> None:
    """Compare H u with central differences of the gradient, for one random direction u.

    On the evaluator's samples, once for each evaluator; in float64 where the model can. Where the
    differences of two steps disagree, as at a kink (a ReLU at exactly zero), the derivatives at
    parameters nearby are compared. If this concludes nothing, the evaluator's ``unverified`` says
    why; so it does in lower arithmetic, where a kink cannot be told from a wrong derivative.

    Raises:
        InputError: on every rank, if H u is not the derivative of the gradient on one, or is not
            finite; the sample and the operation are named.

    Cost: four gradients and a product of ``samples.ROWS`` samples.
    """
    if evaluator.verification.on_samples:
        return
    statistics = evaluator.statistics(theta)
    reason = _on_samples(
        evaluator,
        theta,
        statistics,
        lambda part, at, u, piece: _compare_product(evaluator, part, at, u, piece),
    )
    evaluator.verification.note(SECOND_DERIVATIVES, reason)
    evaluator.verification.on_samples = True


def check_jacobian(evaluator: Evaluator, theta: Tensor, of: str) -> None:
    """Compare J u and w J with central differences of what J is of, for random u and w.

    Products with the Gauss-Newton matrix and the covariance of gradients need no second
    derivatives, but a backward that autograd cannot differentiate makes J u wrong, or zero, and a
    hook on gradients makes w J wrong.

    Args:
        of: "outputs" or "samples", the part's function.

    Raises:
        InputError: on every rank, if a product is not the derivative on one.

    Cost: six evaluations and two products of ``samples.ROWS`` samples.
    """
    statistics = evaluator.statistics(theta)
    reason = _on_samples(
        evaluator,
        theta,
        statistics,
        lambda part, at, u, _: _compare_jacobian(
            part, at, u, evaluator.verification.arithmetic, of
        ),
    )
    evaluator.verification.note(f"the Jacobian of the {of}", reason)


Compare = Callable[[Part, Tensor, Tensor, Piece], bool]  # False: no conclusion


def _on_samples(
    evaluator: Evaluator, theta: Tensor, statistics: dict[str, Tensor], compare: Compare
) -> str | None:
    """``compare`` on every rank's samples, at theta or nearby; why nothing was concluded, or None.

    Called by every rank; an error of one is raised on all.
    """
    arithmetic = evaluator.verification.arithmetic
    theta = theta.to(arithmetic.dtype)
    u = displacement(evaluator.function, theta)
    away = NEARBY * displacement(evaluator.function, theta, seed=1)

    def compared(pieces: tuple[Piece, ...]) -> bool:
        with evaluator.evaluation_mode():
            constants = evaluator.function.constants(arithmetic.dtype, statistics)
            concluded = False
            for piece in pieces:
                part = evaluator.part(cast(piece.batch, arithmetic.dtype), constants)
                concluded |= any(compare(part, at, u, piece) for at in (theta, theta + away))
        return concluded

    def attempt() -> str | None:
        pieces = evaluator.verification.samples
        if not pieces or on_fewer_if_needed(evaluator.function, pieces, compared):
            return None
        return arithmetic.why or "differences of two steps disagree, as at a kink"

    return together(evaluator.world, attempt)


def _compare_product(
    evaluator: Evaluator, part: Part, theta: Tensor, u: Tensor, piece: Piece
) -> bool:
    arithmetic = evaluator.verification.arithmetic
    try:
        product = reverse(part, theta)(u[None])[0]
    except (RuntimeError, NotImplementedError) as failed:
        if is_out_of_memory(failed):
            raise
        raise InputError(no_second_derivatives("model", failed)) from failed
    require_finite_product(evaluator.layout, part, theta, u, product, piece.named)

    def difference(h: float, least: float = 0.0) -> Difference:
        ahead, behind = gradient(part, theta + h * u), gradient(part, theta - h * u)
        return Difference((ahead - behind) / (2 * h), h, max(ahead.norm().item(), least))

    wrong = misfit(product, map(difference, steps(arithmetic)), arithmetic)
    if wrong:
        # Where units are saturated a gradient is made of what rounding leaves of 1 - f(x): it is
        # known no better than the loss over the size of theta.
        with torch.enable_grad():  # a model may take derivatives of its own
            least = part(theta).detach().abs().item() / max(theta.norm().item(), 1.0)
        again = (difference(h, least) for h in steps(arithmetic))
        wrong = misfit(product, again, arithmetic)
    if wrong is None or not wrong:
        return wrong is not None
    raise InputError(
        f"Hessian products would be wrong: H u differs from differences of the gradient by "
        f"{wrong:.0%}; is there a custom autograd.Function that is once_differentiable, or whose "
        "backward detaches what it uses? Use differentiable operations"
    )


def no_second_derivatives(of: str, failed: Exception) -> str:
    """In words: torch has none for an operation of the model or of the loss; what to do."""
    text = " ".join(str(failed).split())
    known = next((advice for name, advice in _WITHOUT.items() if name in text), None)
    return f"the {of}'s second derivatives cannot be formed ({text}); " + (
        known
        or "replace the operation that has none, such as a custom autograd.Function without double "
        "backward or a fused kernel"
    )


def _compare_jacobian(
    part: Part, theta: Tensor, u: Tensor, arithmetic: DifferenceArithmetic, of: str
) -> bool:
    function = getattr(part, of)
    with torch.enable_grad(), Casts(theta.dtype) as casts:
        leaf = theta.detach().requires_grad_()
        value = function(leaf)
    if not value.requires_grad:
        return True
    if casts.lowest == torch.float64:  # the loss casts, but the outputs come before
        arithmetic = DifferenceArithmetic(torch.float64, torch.finfo(torch.float64).eps, None)
    try:
        pushed = push(value, leaf)(u)
    except RuntimeError as failed:  # this derivative does not exist: products will say so
        if is_out_of_memory(failed):
            raise
        return False

    def difference(h: float) -> Difference:
        with torch.no_grad():
            ahead, behind = function(theta + h * u), function(theta - h * u)
        return Difference((ahead - behind) / (2 * h), h, ahead.norm().item())

    differences = [difference(h) for h in steps(arithmetic)]
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    w *= LARGE
    (pulled,) = torch.autograd.grad(value, leaf, w, materialize_grads=True)
    for found, expected in (
        (
            (pulled @ u).reshape(1),
            [
                Difference(w @ d.value[:, None], d.step, d.size * w.norm().item())
                for d in differences
            ],
        ),
        (pushed, differences),
    ):
        wrong = misfit(found, expected, arithmetic)
        if wrong is None:
            return False
        if wrong:
            break
    else:
        return True
    raise InputError(
        f"products would be wrong: those with the Jacobian of the {of} differ from differences of "
        f"the {of} by {wrong:.0%}; is there a hook on gradients, or a custom autograd.Function "
        "whose backward leaves torch or detaches what it is given? Write it with differentiable "
        "operations"
    )
