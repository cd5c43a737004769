"""What critical points are: polynomials, quadratics, and what is not decided."""

import math

import numpy as np
import pytest
import torch
from hand import bowl, objective, product, tensor
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum.analyses import critical

SCALES = (1e-8, 1.0, 1e8)
# Each at 0: kind, order of the deciding terms, interval of the number of negative eigenvalues.
POLYNOMIALS = {
    "x^2 + y^4": (lambda x, y: x**2 + y**4, "minimum", 4, (0, 1)),
    "x^2 - y^4": (lambda x, y: x**2 - y**4, "saddle", 4, (0, 1)),
    "-x^2 - y^4": (lambda x, y: -(x**2) - y**4, "maximum", 4, (1, 2)),
    "-x^4 - y^4": (lambda x, y: -(x**4) - y**4, "maximum", 4, (0, 2)),
    "x^4 + y^4": (lambda x, y: x**4 + y**4, "minimum", 4, (0, 2)),
    "x^4 - y^4": (lambda x, y: x**4 - y**4, "saddle", 4, (0, 2)),
    "monkey": (lambda x, y: x**3 - 3 * x * y**2, "saddle", 3, (0, 2)),
    "x^2 + y^3": (lambda x, y: x**2 + y**3, "saddle", 3, (0, 1)),
    "x^2 - y^2": (lambda x, y: x**2 - y**2, "saddle", 2, (1, 1)),
    "x^2 + y^2": (lambda x, y: x**2 + y**2, "minimum", 2, (0, 0)),
    "-x^2 - y^2": (lambda x, y: -(x**2) - y**2, "maximum", 2, (2, 2)),
}
UNDECIDED = {
    "Peano": (lambda x, y: (y - x**2) * (y - 3 * x**2), "straight lines"),
    "x^2": (lambda x, y: x**2 + 0 * y, "flat"),
    "x^2 y^2": (lambda x, y: x**2 * y**2, "flat"),  # 0 on both axes
    "x^2 + y^6": (lambda x, y: x**2 + y**6, "flat"),
}


def polynomial(function, scale=1.0, at=(0.0, 0.0), **options):
    return objective(lambda t: scale * function(*t), at, **options)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomials_are_what_they_are_known_to_be(name, scale):
    function, kind, order, index = POLYNOMIALS[name]
    found = hs.classify(polynomial(function, scale))
    assert (found.kind, found.order, found.index, found.reason) == (kind, order, index, "decided")
    assert found.degenerate == (order > 2)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", UNDECIDED)
def test_what_these_terms_cannot_decide_is_not_guessed(name, scale):
    function, reason = UNDECIDED[name]
    found = hs.classify(polynomial(function, scale))
    assert (found.kind, found.reason, found.order) == ("undecided", reason, 0)
    assert str(found).startswith("Undecided: ")


@pytest.mark.parametrize(("sign", "kind"), [(1, "minimum"), (-1, "saddle")])
def test_beside_a_degenerate_point_its_small_eigenvalue_is_within_the_noise(sign, kind):
    """At y = 1e-4 it is +-1.2e-7, a Newton step y / 3 away from the point: its sign is open."""
    found = hs.classify(polynomial(lambda x, y: x**2 + sign * y**4, at=(0.0, 1e-4)))
    assert (found.kind, found.order, found.null) == (kind, 4, 1)
    assert found.floor > 1.2e-7


@pytest.mark.parametrize("scale", SCALES)
def test_random_quadratics_have_the_index_of_their_matrix(scale):
    rng = np.random.default_rng(0)
    for index in range(7):
        q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        eigenvalues = np.concatenate([-np.ones(index), np.ones(6 - index)]) * rng.uniform(0.1, 3, 6)
        a = tensor(scale * (q * eigenvalues) @ q.T)
        found = hs.classify(objective(lambda t, a=a: t @ a @ t / 2, np.zeros(6)))
        assert found.kind == ("minimum" if index == 0 else "maximum" if index == 6 else "saddle")
        assert found.index == (index, index)
        assert found.smallest == pytest.approx(scale * eigenvalues.min(), rel=1e-12)
        assert found.largest == pytest.approx(scale * eigenvalues.max(), rel=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_a_point_with_a_gradient_is_not_critical_and_says_how_far_one_is(scale):
    found = hs.classify(bowl(scale * torch.diag(tensor([1.0, 4.0])), (0.0, 1e-3)))
    assert found.kind == "not critical"
    assert found.distance == pytest.approx(1e-3, rel=1e-12)
    assert str(found).startswith("Not critical: ")
    with pytest.raises(hs.InputError, match="has no index"):
        found.index  # noqa: B018
    slope = hs.classify(objective(lambda t: scale * t.sum(), (0.0, 0.0)))  # and no curvature
    assert (slope.kind, slope.distance) == ("not critical", math.inf)


@pytest.mark.parametrize(("few", "known"), [(3, (3, 295)), (8, (6, 6))])
def test_of_a_larger_matrix_the_ends_bound_the_index(monkeypatch, few, known):
    monkeypatch.setattr(critical, "DENSE", 20)
    eigenvalues = np.concatenate([-np.arange(1.0, 7.0), np.linspace(1, 5, 292)])
    diagonal = tensor(eigenvalues)
    found = hs.classify(objective(lambda t: (diagonal * t * t).sum() / 2, np.zeros(298)), k=few)
    assert (found.kind, found.index) == ("saddle", known)
    assert found.smallest == pytest.approx(-6.0, rel=1e-12)


@pytest.mark.parametrize(
    ("eigenvalues", "kind", "reason"),
    [
        (np.linspace(1, 5, 40), "minimum", "decided"),
        (-np.linspace(1, 5, 40), "maximum", "decided"),
        (np.concatenate([[0.0], np.linspace(1, 5, 39)]), "undecided", "flat"),
        (np.concatenate([np.zeros(6), np.linspace(1, 5, 34)]), "undecided", "null directions"),
    ],
)
def test_of_a_larger_matrix_the_ends_decide_where_they_can(monkeypatch, eigenvalues, kind, reason):
    monkeypatch.setattr(critical, "DENSE", 20)
    diagonal = tensor(eigenvalues)
    found = hs.classify(objective(lambda t: (diagonal * t * t).sum() / 2, np.zeros(40)), k=4)
    assert (found.kind, found.reason) == (kind, reason)


def test_eigenvalues_that_have_not_converged_decide_no_minimum(monkeypatch):
    monkeypatch.setattr(critical, "DENSE", 20)
    diagonal = tensor(np.geomspace(1e-3, 1, 100))
    ev = objective(lambda t: (diagonal * t * t).sum() / 2, np.zeros(100))
    found = hs.classify(ev, k=2, max_products=8)
    assert (found.kind, found.reason) == ("undecided", "eigenvalues")


def test_the_product_of_three_weights_has_a_saddle_of_the_third_order_at_two_zeros():
    """Of (1 - w1 w2 w3)^2 at (0, 0, k) the only entries of the Hessian are -2 k."""
    found = hs.classify(product(3), tensor([0.0, 0.0, 1.5]))
    assert (found.kind, found.order, found.index) == ("saddle", 2, (1, 2))
    assert (found.smallest, found.largest) == pytest.approx((-3.0, 3.0), rel=1e-14)
    origin = hs.classify(product(3), torch.zeros(3))  # -2 w1 w2 w3: no curvature at all
    assert (origin.kind, origin.order, origin.null) == ("saddle", 3, 3)


def test_in_float32_a_point_is_known_to_16_eps_and_no_better():
    """The numbers nearest to a critical point have gradients of eps |lambda|, or none at all."""

    a = tensor([1.1, 1.3, 1.7, 2.3])

    def loss(t):
        return (t.exp() - a.to(t) * t).sum()

    single = objective(loss, a.log(), dtype=torch.float32)
    coarse = hs.classify(single, tol=1e-8)
    assert (coarse.kind, coarse.reason) == ("undecided", "too coarse")
    assert hs.classify(single).kind == "minimum"
    assert hs.classify(single, a.log() + 1e-5).kind == "not critical"
    assert hs.classify(objective(loss, a.log()), tol=1e-8).kind == "minimum"
    quartic = polynomial(POLYNOMIALS["x^2 + y^4"][0], dtype=torch.float32)
    assert hs.classify(quartic).reason == "float32"
    weak = polynomial(lambda x, y: x**2 + 1e-6 * y**2 + y**3, dtype=torch.float32)
    assert (hs.classify(weak).kind, hs.classify(weak).reason) == ("undecided", "float32")
    double = polynomial(lambda x, y: x**2 + 1e-6 * y**2 + y**3)
    assert hs.classify(double).kind == "minimum"


def test_a_point_whose_loss_is_not_finite_is_that():
    ev = objective(lambda t: t.exp().exp().sum(), (0.0, 0.0))
    found = hs.classify(ev, tensor([7.0, 0.0]))
    assert (found.kind, str(found)[:11]) == ("not finite", "Not finite:")
    assert not found.degenerate


@pytest.mark.parametrize("options", [{"tol": 0.0}, {"tol": math.nan}, {"k": 0}])
def test_options_that_are_of_no_use_are_refused(options):
    with pytest.raises(hs.InputError):
        hs.classify(bowl(torch.eye(2).double()), **options)


def test_points_are_stored_and_come_back(tmp_path):
    points = [
        hs.classify(polynomial(POLYNOMIALS["x^2 + y^4"][0])),
        hs.classify(polynomial(UNDECIDED["Peano"][0])),
        hs.classify(nets()),
    ]
    hs.save(tmp_path / "x.h5", hs.CriticalPoints.of(points, starts=3))
    with hs.open(tmp_path / "x.h5") as run:
        found = run["critical"]
        assert [str(point) for point in found] == [str(point) for point in points]
        assert found.kinds == ["minimum", "undecided", "not critical"]
        assert (found.count("minimum"), found.about) == (1, {"starts": 3})
        with pytest.raises(hs.InputError, match="expected one of not finite"):
            found.count("flat")


def test_points_without_parameters_or_spectra_are_read_as_such(tmp_path):
    """As from files that were written before these were stored."""
    small, large = (hs.classify(bowl(torch.eye(n).double(), np.zeros(n))) for n in (2, 3))
    hs.save(tmp_path / "x.h5", hs.CriticalPoints.of([small, large]))
    with hs.open(tmp_path / "x.h5") as run:
        assert run["critical"].thetas is None and run["critical"].eigenvalues is None
        with pytest.raises(hs.InputError, match="takes n="):
            _ = run["critical"].index_fraction
    with pytest.raises(hs.InputError, match="thetas of shape"):
        hs.CriticalPoints.of([small, large], np.zeros((3, 2)))


def test_points_that_are_no_critical_points_are_stored_beside_others(tmp_path):
    """Not finite, not critical, too coarse to say: none has an index, and none is correlated."""
    points = [
        hs.classify(polynomial(lambda x, y: 1 / x + y**2, at=(1.0, 0.0)), tensor([0.0, 0.0])),
        hs.classify(nets()),
        hs.classify(polynomial(POLYNOMIALS["x^2 + y^2"][0], dtype=torch.float32), tol=1e-8),
        hs.classify(polynomial(POLYNOMIALS["x^2 + y^2"][0])),
    ]
    hs.save(tmp_path / "x.h5", hs.CriticalPoints.of(points[:1] + points[2:], n=2))
    with hs.open(tmp_path / "x.h5") as run:
        found = run["critical"]
    assert found.kinds == ["not finite", "undecided", "minimum"]
    assert [found[i].reason for i in range(3)] == ["decided", "too coarse", "decided"]
    assert [point.eigenvalues is None for point in found] == [True, False, False]
    assert found.is_critical.tolist() == [False, True, True]
    assert np.isnan(found.index_fraction[:2]).all() and found.index_fraction[2] == 0
    with pytest.raises(hs.InputError, match="at least 4"):
        found.rank_correlation()
    with pytest.raises(hs.InputError, match="has no index"):
        _ = points[1].index


def test_a_point_in_a_file_is_a_checkpoint_of_the_parameters_it_has(tmp_path):
    """Buffers, and what is not among them, are the model's own; another model is refused."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1, bias=False))
    rows = np.arange(14.0).reshape(2, 7)
    shapes = {"0.weight": [3, 2], "0.bias": [3]}
    points = [hs.classify(nets())] * 2
    for of_it, label in [(shapes, "a"), ({"0.weight": [3, 3]}, "b"), ({}, "c"), ({"9": [9]}, "d")]:
        found = hs.CriticalPoints.of(points, np.hstack([rows, rows])[:, :9], shapes=of_it)
        hs.save(tmp_path / f"{label}.h5", found)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    hs.zoo.load_checkpoint(net, f"{tmp_path / 'a.h5'}:1")
    after = net.state_dict()
    assert after["0.weight"].flatten().tolist() == [7, 8, 9, 10, 11, 12]
    assert after["0.bias"].tolist() == [13, 7, 8]
    for name in before.keys() - shapes.keys():
        assert torch.equal(after[name], before[name]), name
    for label, message in [("b", "of another shape"), ("c", "is damaged"), ("d", "another model")]:
        with pytest.raises(hs.InputError, match=message):
            hs.zoo.load_checkpoint(net, f"{tmp_path / label}.h5:1")
    with pytest.raises(hs.InputError, match="no such file"):
        hs.zoo.load_checkpoint(net, f"{tmp_path}/none.h5:0")
    hs.save(tmp_path / "e.h5", hs.CriticalPoints.of(points, rows))
    with pytest.raises(hs.InputError, match="does not say of which"):
        hs.zoo.load_checkpoint(net, f"{tmp_path / 'e.h5'}:0")


def test_the_rank_correlation_is_that_of_the_critical_points():
    diagonals = [[1.0, 1, 1], [-1.0, 1, 1], [-1.0, -1, 1], [-1.0, -1, -1]]
    points = [
        hs.classify(objective(lambda t, d=d, i=i: (tensor(d) * t**2).sum() + i, np.zeros(3)))
        for i, d in enumerate(diagonals)
    ]
    points.append(hs.classify(nets()))  # not critical, of the second smallest loss
    found = hs.CriticalPoints.of(points, n=3)
    assert found.is_critical.tolist() == [True] * 4 + [False]
    assert np.allclose(found.index_fraction[:4], [0, 1 / 3, 2 / 3, 1])
    assert np.isnan(found.index_fraction[4])
    assert (found.rank_correlation().value, found.rank_correlation().count) == (1.0, 4)


def nets():
    torch.manual_seed(0)
    data = torch.randn(8, 2).double(), torch.randn(8, 1).double()
    return hs.Evaluator(nn.Linear(2, 1).double(), nn.MSELoss(), data)


def test_codes_of_no_kind_and_missing_numbers_are_refused():
    with pytest.raises(hs.InputError, match="codes"):
        hs.CriticalPoints([9.0], [0.0], {})
    with pytest.raises(hs.InputError, match="miss"):
        hs.CriticalPoints([2.0], [0.0], {"loss": [1.0]})


@pytest.mark.parametrize("bias", [36.0, 36.5, 36.8101, 40.0])
def test_a_plateau_of_saturated_units_is_no_critical_point_of_a_kind(bias):
    """Where 1 - f(x) is rounding alone, so are the terms of higher order."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1), nn.Sigmoid()).double()
    x = tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    ev = hs.Evaluator(net, nn.MSELoss(), (x, tensor([[0.0], [1.0], [1.0], [0.0]])))
    theta = tensor([4.0913, 1.3369, 12.3291, -10.8845, -0.3111, -0.6125, 0.122, -0.082, bias])
    assert ev.loss(theta).item() == pytest.approx(0.5, rel=1e-14)
    assert hs.classify(ev, theta).kind in ("undecided", "not critical")
