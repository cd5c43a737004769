"""ReLU students on Gaussian inputs: kernels and derivatives by oracles, known local minima."""

import math

import numpy as np
import pytest
import torch
from hand import tensor
from scipy.integrate import quad

import hessian_spectrum as hs
from hessian_spectrum.zoo.student_teacher import (
    expected_gradient,
    expected_loss,
    relu_kernel,
    student_of_orthonormal_teacher,
)


def at_angle(t, lengths=(1.0, 1.0), d=5, seed=0):
    """(2, d): two vectors at that angle; the sine of a small one has all its digits."""
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0][:2]
    return tensor(
        np.stack([lengths[0] * q[0], lengths[1] * (math.cos(t) * q[0] + math.sin(t) * q[1])])
    )


@pytest.mark.parametrize("t", [0.0, 1e-3, 0.3, 0.5, 0.51, 1.57, 1.58, 2.6, 3.14, math.pi])
def test_the_kernel_is_the_integral_over_directions(t):
    """In the plane of w and v the radius has E r^2 = 2, and the direction is uniform."""
    w, v = at_angle(t, (0.7, 1.9))
    low, high = max(-math.pi / 2, t - math.pi / 2), min(math.pi / 2, t + math.pi / 2)
    integral = quad(lambda a: math.cos(a) * math.cos(a - t), low, high, epsabs=1e-14)[0]
    expected = 0.7 * 1.9 * max(integral, 0.0) / math.pi
    assert relu_kernel(w[None], v[None]).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def hessian_by_formula(students, teachers):
    """Safran and Shamir 2018, section 4.1: blocks h1 on the diagonal and h2 off it.

    With unit vectors a and b, c = 1 for acute angles and -1 for others, and e = a - c b, the
    products of normals are formed without cancellation at angles near 0 and pi.
    """

    def parts(w, v):
        a, b = w / np.linalg.norm(w), v / np.linalg.norm(v)
        c = 1 if a @ b >= 0 else -1
        e = a - c * b
        length = np.linalg.norm(e)
        t = 2 * math.asin(length / 2)
        return a, b, c, e, length * math.sqrt(1 - length**2 / 4), t if c == 1 else math.pi - t

    def h1(w, v):
        a, _, c, e, sine, _ = parts(w, v)
        normal = c * (e @ e / 2 * a - e)  # b - cos(t) a, of length sin(t)
        square = sine * (np.eye(len(w)) - np.outer(a, a))
        if sine:
            square += np.outer(normal, normal) / sine
        return np.linalg.norm(v) / (2 * math.pi * np.linalg.norm(w)) * square

    def h2(w, v):
        a, b, c, e, sine, t = parts(w, v)
        square = (math.pi - t) * np.eye(len(w))
        if sine:  # the normals' products with b and a, added up
            both = e @ e / 2 * (np.outer(a, a) + np.outer(b, b)) - np.outer(e, e)
            square += c * both / sine
        return square / (2 * math.pi)

    k, d = students.shape
    found = np.zeros((k, d, k, d))
    for i, w in enumerate(students):
        found[i, :, i] = np.eye(d) / 2 - sum(h1(w, v) for v in teachers)
        for j, other in enumerate(students):
            if i != j:
                found[i, :, i] += h1(w, other)
                found[i, :, j] = h2(w, other)
    return found.reshape(k * d, k * d)


def random_students(count, d, seed=1):
    return np.random.default_rng(seed).standard_normal((count, d))


def students(case):
    """(3, 5), and as many teachers: e_1 to e_3."""
    teachers, w = np.eye(5)[:3], random_students(3, 5)
    if case == "parallel to a teacher and to each other":
        w[0], w[1] = 1.7 * teachers[0], 0.4 * teachers[0]
    if case == "along the axes":  # 0 where angles of the plain formula have no derivative
        w = teachers.copy()
    if case == "opposite":
        w[0], w[1] = -1.7 * teachers[0], 0.4 * teachers[0]
    if case.startswith("angle"):
        w[0] = 1.3 * np.linalg.norm(w[1]) * at_angle(float(case[6:]), seed=2)[1].numpy()
        w[1] = np.linalg.norm(w[1]) * at_angle(0.0, seed=2)[0].numpy()
    return w, teachers


CASES = ["random", "parallel to a teacher and to each other", "along the axes", "opposite"]
ANGLES = [f"angle {t}" for t in ("1e-2", "1e-4", "1e-6", "1e-8", "1e-12", "3.14159")]


def student(w, teachers):
    problem = student_of_orthonormal_teacher(len(w))
    model = type(problem.model)(*w.shape).double()
    with torch.no_grad():
        model.weight.copy_(tensor(w))
    data = tensor(teachers)[None], torch.zeros(1).double()
    return hs.Evaluator(model, problem.loss_fn, data)


@pytest.mark.parametrize("case", CASES + ANGLES)
def test_gradient_and_hessian_are_those_of_the_formulas_at_every_angle(case):
    w, teachers = students(case)
    ev = student(w, teachers)
    gradient = ev.gradient().reshape(w.shape)
    assert torch.allclose(gradient, expected_gradient(tensor(w), tensor(teachers)), atol=1e-14)
    dense = (hs.Hessian(ev) @ torch.eye(ev.n).double()).numpy()
    assert np.abs(dense - hessian_by_formula(w, teachers)).max() <= 1e-14


@pytest.mark.parametrize("case", CASES)
def test_the_hessian_is_the_difference_of_gradients_where_vectors_are_parallel_too(case):
    """The gradient of F has a Lipschitz derivative: one-sided differences err by h, not h^2."""
    ev = student(*students(case))
    rng, h = np.random.default_rng(0), 1e-5
    for _ in range(3):
        v = tensor(rng.standard_normal(ev.n))
        ahead, behind = ev.gradient(ev.theta + h * v), ev.gradient(ev.theta - h * v)
        product = hs.Hessian(ev) @ v
        assert (product - (ahead - behind) / (2 * h)).norm() <= 5 * h * v.norm()
        rise = ev.loss(ev.theta + h * v) - ev.loss(ev.theta - h * v)
        assert abs(rise / (2 * h) - ev.gradient() @ v) <= 1e-8


def test_many_students_are_evaluated_as_one_by_one():
    w, teachers = tensor(random_students(12, 4).reshape(4, 3, 4)), tensor(np.eye(4))
    each = torch.stack([expected_loss(one, teachers) for one in w])
    assert torch.equal(expected_loss(w, teachers), each)
    alone = torch.stack([expected_gradient(one, teachers) for one in w])
    assert torch.allclose(expected_gradient(w, teachers), alone, rtol=0, atol=1e-15)


def test_the_teacher_itself_is_a_strict_minimum_of_loss_0():
    ev = student(np.eye(4)[[2, 0, 3, 1]], np.eye(4))
    assert abs(ev.loss()) <= 1e-15 and ev.gradient().norm() <= 1e-15
    assert hs.classify(ev).kind == "minimum"


def local_minimum(k, starts):
    """(evaluator, point): where gradient descent from some of Glorot's starts ends above 0."""
    problem = student_of_orthonormal_teacher(k)
    teachers = problem.data[0][0]
    w = tensor(np.random.default_rng(0).standard_normal((starts.stop, k, k))[starts] / k**0.5)
    for _ in range(1500):
        w -= 0.5 * expected_gradient(w, teachers)
    loss, slope = expected_loss(w, teachers), expected_gradient(w, teachers).norm(dim=(1, 2))
    ended = (loss > 0.01) & (slope < 1e-3)
    assert ended.any()
    ev = problem.evaluator()
    return ev, hs.find_critical_point(ev, w[ended][0].flatten())


# From interval arithmetic of another program, to the digits given; F with the factor 1/2.
SEVEN = [
    *((0.0140590, 5), (0.0521745, 10), (0.0683491, 1), (0.0804075, 5), (0.2194945, 1)),
    *((0.2381736, 5), (0.3477211, 5), (0.3694553, 9), (1.0131956, 1), (1.8805963, 1)),
    *((1.9315661, 5), (2.2954897, 1)),
]


def test_seven_units_have_safran_and_shamirs_minimum_with_its_multiplicities():
    ev, found = local_minimum(7, slice(0, 12))
    assert (found.outcome, found.point.kind) == ("found", "minimum")
    assert found.point.loss == pytest.approx(0.0232027149, abs=5e-11)
    expected = np.repeat(*zip(*SEVEN))
    whole = np.linalg.eigvalsh(hs.Hessian(ev, found.theta) @ np.eye(49))
    assert np.abs(whole - expected).max() <= 6e-8
    # From a Krylov space, the copies of each: 5, 10, 1, 5 at one end, 1, 5, 1, 1, 9 at the other.
    pairs = hs.eigenpairs(hs.Hessian(ev, found.theta), (21, 17), "both", 1e-9)
    assert pairs.converged.all()
    assert np.abs(pairs.values - [*expected[:21], *expected[-17:]]).max() <= 6e-8
    assert np.abs(pairs.vectors @ pairs.vectors.T - np.eye(38)).max() <= 1e-9


def test_six_units_have_the_first_of_these_minima():
    ev, found = local_minimum(6, slice(40, 48))
    assert found.point.kind == "minimum"
    assert found.point.loss == pytest.approx(0.02508, abs=5e-6)
    smallest = hs.eigenpairs(hs.Hessian(ev, found.theta), 5, "smallest", 1e-9)
    assert np.ptp(smallest.values[:4]) <= 1e-9 < 0.04 < smallest.values[4]
    assert smallest.values[0] == pytest.approx(found.point.smallest, abs=1e-9)
    assert smallest.values[0] == pytest.approx(0.00470035, abs=5e-9)


@pytest.mark.parametrize("units", [(0,), (2, 0), (2.5,)])
def test_numbers_of_units_that_are_none_are_refused(units):
    with pytest.raises(hs.InputError, match="expected a whole number"):
        student_of_orthonormal_teacher(*units)
