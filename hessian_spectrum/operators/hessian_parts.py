"""The terms of two decompositions of the Hessian that no other operator is.

``H = G + R``, with the Gauss-Newton matrix G of ``curvature.GaussNewton``::

    R = (1/W) sum_i w_i sum_j (d loss_i / d outputs_j) d^2 outputs_j / d theta^2

and, for losses ``-log p_i``, with the centred covariance C of ``curvature.GradientCovariance``
(Xing, Arpit, Tsirigotis & Bengio 2018, "A walk with SGD", eq. 2)::

    H = C + g g^T + (1/N) sum_i (d loss_i / d p_i) d^2 p_i / d theta^2,   d loss_i / d p_i = -1/p_i

Weight decay adds its multiple of I to G and to H, and to none of the others.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import CALL, agreed, digest_of
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.operators.curvature_products import LIKELIHOOD, RESIDUAL
from hessian_spectrum.operators.derivative_check import check_second_derivatives


class GaussNewtonResidual(Curvature):
    """R = H - G, the network's own second derivatives, weighted by the slopes of the loss.

    Formed as the Hessian of ``<s, outputs(theta)>`` with the frozen slopes s = d loss / d outputs,
    not as a difference of products: it is as accurate as H where G is much larger. Zero for a
    network that is linear in theta, and where the loss of every sample is at its minimum.

    Args:
        evaluator, theta, plan: as for ``Hessian``.

    Raises:
        InputError: as ``GaussNewton`` and as ``Hessian``.

    Cost: as ``Hessian``.
    """

    form = RESIDUAL

    def products(self, vectors: Tensor) -> Tensor:
        return self._data_products(vectors)

    def _check(self) -> None:
        self._require_outputs()
        check_second_derivatives(self.evaluator, self.theta)


class LikelihoodCurvature(Curvature):
    """-(1/W) sum_i (1/p_i) d^2 p_i / d theta^2 with p_i = exp(-loss_i), the last term of eq. 2.

    Formed as the Hessian of ``-(1/W) sum_i p_i(theta) / p_i`` with the denominators frozen, not as
    the difference of the other terms. It is zero in expectation over labels that the model itself
    has drawn. For a loss that is no negative log-likelihood p_i is exp(-loss_i), and the equation
    holds as it stands.

    With W other than N, as with ignored targets or class weights, losses are ``-log p_i`` times
    their weight, and ``H = (W / N) (C + g g^T)`` plus this.

    Args:
        evaluator, theta, plan: as for ``GradientCovariance``.

    Raises:
        InputError: as ``GradientCovariance`` and as ``Hessian``.

    Cost: as ``Hessian``.
    """

    form = LIKELIHOOD

    def products(self, vectors: Tensor) -> Tensor:
        return self._data_products(vectors)

    def _check(self) -> None:
        self._require_samples()
        check_second_derivatives(self.evaluator, self.theta)


class GradientOuterProduct(SymmetricOperator):
    """g g^T, g the gradient of the mean loss over all data without weight decay.

    Its only eigenvalue beside 0 is |g|^2, with the eigenvector g / |g|.

    Args:
        evaluator: the loss.
        theta: shape (n,), whole, on every rank; default: the model's parameters now.

    Cost: one gradient at construction; of ``products`` of k vectors one reduction of k numbers, and
    4 k n / P flops on each of P ranks.
    """

    def __init__(self, evaluator: Evaluator, theta: Tensor | None = None):
        if not isinstance(evaluator, Evaluator):
            raise InputError(
                f"GradientOuterProduct of a {type(evaluator).__name__}; expected an Evaluator"
            )
        self.layout, self.dtype = evaluator.layout, evaluator.dtype
        self.theta = agreed(
            evaluator.world,
            lambda: evaluator.checked(theta),
            lambda at: {CALL: "GradientOuterProduct", "vectors theta": digest_of(at)},
        )
        # (n_local,)
        self.gradient = self.layout.local(evaluator.data_gradient(self.theta)[None])[0]

    def in_float64(self) -> SymmetricOperator:
        """The same matrix in float64: of the same g, converted."""
        if self.dtype == torch.float64:
            return self
        other = copy.copy(self)
        other.dtype, other.gradient = torch.float64, self.gradient.double()
        return other

    def products(self, vectors: Tensor) -> Tensor:
        along = self.layout.world.sum((vectors @ self.gradient).double()).to(vectors)
        return torch.outer(along, self.gradient)
