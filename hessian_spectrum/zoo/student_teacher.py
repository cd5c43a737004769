"""ReLU students of ReLU teachers on Gaussian inputs: the expected loss in closed form.

k student units w_i learn the sum of n teacher units v_j (Safran and Shamir 2018,
arXiv:1712.08968, equation 2):

    F(w) = E_x (sum_i relu(w_i x) - sum_j relu(v_j x))^2 / 2,    x ~ N(0, I).

There is no sampling: the expectations are arc-cosine kernels of first order (Cho and Saul 2009).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import require_whole
from hessian_spectrum.loss.problem import Problem

# Up to this sin^2(t / 2) a series is used. Beyond it rounding is at most 64 eps in second
# derivatives, and the series has 16 terms to eps.
SERIES = 1 / 16
TERMS = 16
# Of asin(sqrt q) / sqrt q = sum_m c_m q^m, c_m = (2m)! / (4^m m!^2 (2m + 1)); and so of
# G(q) = int_0^q 4 asin(sqrt s) ds = q^(3/2) sum_m 4 c_m q^m / (m + 3/2).
COEFFICIENTS = [4 * math.comb(2 * m, m) / (4**m * (2 * m + 1) * (m + 1.5)) for m in range(TERMS)]


def relu_kernel(w: Tensor, v: Tensor) -> Tensor:
    """E relu(w x) relu(v x), x ~ N(0, I): (..., k, d), (..., n, d) -> (..., k, n), of all pairs.

    |w| |v| (sin t + (pi - t) cos t) / (2 pi), t the angle of w and v. Second derivatives are right
    at every angle, 0 and pi too; the third does not exist there. At w = 0 or v = 0 there is no
    derivative, and autograd's is NaN.
    """
    lengths = w.norm(dim=-1)[..., :, None] * v.norm(dim=-1)[..., None, :]
    a, b = (x / x.norm(dim=-1, keepdim=True) for x in (w, v))
    a, b = a[..., :, None, :], b[..., None, :, :]
    # sin^2(t / 2) and cos^2(t / 2): smooth functions of a and b, without cancellation.
    near, far = (a - b).square().sum(-1) / 4, (a + b).square().sum(-1) / 4
    is_acute = near <= far
    excess = _excess(torch.where(is_acute, near, far))
    cosine = torch.where(is_acute, 1 - 2 * near, torch.zeros_like(near))
    return lengths * (cosine / 2 + excess / (2 * math.pi))


def _excess(q: Tensor) -> Tensor:
    """G(q) = sin t - t cos t for q = sin^2(t / 2) in [0, 1/2].

    G' = 2 t and G'' = 2 / sqrt(q (1 - q)). G'' is infinite at q = 0, where the gradient of q is 0
    and so the term of second order in the vectors, G'' dq^2, is 0: it is taken out there.
    """
    is_zero, is_small = q == 0, q <= SERIES
    small = torch.where(is_zero | ~is_small, torch.full_like(q, SERIES), q)
    series = torch.full_like(q, COEFFICIENTS[-1])
    for coefficient in reversed(COEFFICIENTS[:-1]):
        series = series * small + coefficient
    large = torch.where(is_small, torch.full_like(q, 0.5), q)
    sine, angle = 2 * (large * (1 - large)).sqrt(), 2 * large.sqrt().asin()
    found = torch.where(is_small, small**1.5 * series, sine - angle * (1 - 2 * large))
    return torch.where(is_zero, torch.zeros_like(q), found)


def expected_loss(students: Tensor, teachers: Tensor) -> Tensor:
    """F, (..., k, d) and (..., n, d) -> (...): of many students or teachers at once."""

    def total(w: Tensor, v: Tensor) -> Tensor:
        return relu_kernel(w, v).sum((-2, -1))

    return total(students, students) / 2 - total(students, teachers) + total(teachers, teachers) / 2


def expected_gradient(students: Tensor, teachers: Tensor) -> Tensor:
    """dF/dw, (..., k, d), by Safran and Shamir's formula: one pass without autograd.

    dF/dw_i = sum_j g(w_i, w_j) - sum_j g(w_i, v_j) with
    g(w, v) = (|v| sin t w / |w| + (pi - t) v) / (2 pi). Angles near 0 and pi are known to
    sqrt(eps) only; g changes with t by no more than |v| sin t / (2 pi), and so it is known to eps.

    NaN where a student or a teacher is 0.
    """
    others = torch.cat([students, -teachers.expand(*students.shape[:-2], -1, -1)], -2)
    sign = torch.ones(others.shape[-2]).to(students)
    sign[students.shape[-2] :] = -1
    lengths = others.norm(dim=-1)
    units = students / students.norm(dim=-1, keepdim=True)
    cosine = sign * (units @ (others / lengths[..., None]).mT).clamp(-1, 1)
    sine = (1 - cosine.square()).sqrt()
    along = (sine * (sign * lengths)[..., None, :]).sum(-1, keepdim=True) * units
    return (along + (math.pi - cosine.acos()) @ others) / (2 * math.pi)


class ReluStudent(nn.Module):
    """x -> sum_i relu(w_i x), as what it loses against each teacher: (N, n, d) -> (N,).

    The expected loss is over x; the N samples are teachers.

    Args:
        units: k.
        inputs: d. The weights, (k, d), are Glorot's: Gaussian of variance 2 / (k + d).
    """

    def __init__(self, units: int, inputs: int):
        super().__init__()
        require_whole(1, units=units, inputs=inputs)
        self.weight = nn.Parameter(torch.empty(units, inputs))
        nn.init.xavier_normal_(self.weight)

    def forward(self, teachers: Tensor) -> Tensor:
        return expected_loss(self.weight, teachers)


def student_of_orthonormal_teacher(units: int, teacher_units: int | None = None) -> Problem:
    """k units that learn n orthonormal ones, v_j = e_j, in n dimensions; float64.

    The mean over one sample, the teacher, is F. Safran and Shamir's theorem 1 has local minima
    of F > 0 for 6 <= k = n <= 20.

    Args:
        units: k, those of the student.
        teacher_units: n, by default k.

    Raises:
        InputError: a number of units below 1.
    """
    n = units if teacher_units is None else teacher_units
    require_whole(1, units=units, teacher_units=n)
    teacher = torch.eye(n, dtype=torch.float64)[None]
    return Problem(
        model=ReluStudent(units, n).double(),
        loss_fn=_mean,
        data=(teacher, torch.zeros(1, dtype=torch.float64)),
        dtype=torch.float64,
    )


def _mean(losses: Tensor, _: Tensor) -> Tensor:
    return losses.mean()
