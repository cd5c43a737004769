"""What products in float32 add to the intervals of a density."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diagonal_operators import SPECTRA, Diagonal

import hessian_spectrum as hs
from hessian_spectrum.algorithms import residual_check
from hessian_spectrum.spectral import queries, rounding
from hessian_spectrum.spectral.arithmetic import Arithmetic
from hessian_spectrum.spectral.functionals import OF_MEASURE

N = 150
SMOOTH = {
    "density": (0.1, 0.05),
    "moment": (4,),
    "trace": (),
    "frobenius_norm": (),
    "effective_dimension": (0.1,),
    "log_determinant": (3.0,),
}


def known(values):
    """The measure of these eigenvalues."""
    weights = np.full((2, len(values)), 1 / len(values))
    no = np.zeros(len(values))
    return hs.SpectralMeasure(np.sort(values), weights, len(values), no, no.astype(bool))


def value(measure, query, args):
    found = getattr(measure, query)
    return found(*args) if callable(found) else found


def wrong(measure, product_error, vector_rounding=0.0):
    return replace(measure, arithmetic=Arithmetic(product_error, vector_rounding, True))


def symmetric(seed, n=N):
    a = np.random.default_rng(seed).standard_normal((n, n))
    return (a + a.T) / np.sqrt(2)


class Wrong(hs.SymmetricOperator):
    """A matrix whose products in float32 are those of another one."""

    def __init__(self, matrix, error):
        self.exact = hs.Dense(torch.tensor(matrix))
        self.wrong = hs.Dense(torch.tensor(matrix + error))
        self.layout, self.dtype = self.exact.layout, torch.float32

    def products(self, vectors):
        return self.wrong.products(vectors.double()).float()

    def in_float64(self):
        return self.exact


# -- the bound -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:effective_dimension")
@pytest.mark.parametrize("query", SMOOTH)
def test_a_small_error_of_the_matrix_moves_no_answer_further(query):
    a, row, args = symmetric(0) / 10, OF_MEASURE[query], SMOOTH[query]
    values, vectors = np.linalg.eigh(a)
    exact = known(values)
    slopes = [value(known(values + 1e-6 * e), query, args) for e in np.eye(N)]
    slopes = (np.array(slopes) - value(exact, query, args)) / 1e-6
    worst = (vectors * slopes) @ vectors.T  # in the direction of the gradient
    moved = []
    for error in (symmetric(1), symmetric(2), np.eye(N), worst):
        error = 1e-7 * error / np.linalg.norm(error)
        bound = rounding.of_query(wrong(exact, np.linalg.norm(error) / N**0.5), row, *args)
        change = value(known(np.linalg.eigvalsh(a + error)), query, args)
        moved.append(abs(change - value(exact, query, args)) / bound)
        assert moved[-1] < 1.001
    assert moved[-1] == pytest.approx(1, rel=1e-3)  # and one as far


def test_a_count_changes_by_what_crosses_its_thresholds_only():
    exact = wrong(known(np.linspace(0, 1, N)), 1e-3)
    for query in ("mass", "count"):
        for ends in ((0.25, 0.75), (exact.nodes[30], exact.nodes[100])):
            assert rounding.of_query(exact, OF_MEASURE[query], *ends) == 0
    # Of the energy in an interval, the interval's own part of |H|_F^2.
    inside = (exact.nodes >= 0.25) & (exact.nodes <= 0.75)
    expected = N * 1e-3 * np.sqrt(np.mean(4 * exact.nodes**2 * inside))
    found = rounding.of_query(exact, OF_MEASURE["energy"], 0.25, 0.75)
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_eigenvalue_within_the_error_of_products_of_a_threshold_may_be_on_either_side():
    measure = hs.spectral_density(Diagonal(SPECTRA["outliers"]), 6, 12)
    assert measure.interval("count", 1.03, np.inf)[1] < 3.01  # 1.7, 2 and 3
    assert wrong(measure, 0.05).interval("count", 1.03, np.inf)[1] > 3.99  # and 1
    assert wrong(measure, 0.02).interval("count", 1.03, np.inf)[1] < 3.01


def test_rounded_vectors_change_an_answer_by_their_rounding_unit():
    exact = wrong(known(np.linspace(0, 1, N)), 0.0, 1e-4)
    expected = 1e-4 * np.sqrt(np.mean(exact.nodes**2))
    assert rounding.of_query(exact, OF_MEASURE["moment"], 1) == pytest.approx(expected)


# -- the error of products, as measured ------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["block", "slq", "lean"])
def test_the_measured_error_is_the_root_mean_square_over_unit_vectors(estimator):
    matrix = symmetric(0) / 10
    error = 1e-3 * symmetric(1)
    found = hs.spectral_density(Wrong(matrix, error), 4, 8, estimator=estimator)
    assert found.arithmetic.compared_with_float64
    # Measured: 1.0 to 1.3.
    assert 0.8 < found.arithmetic.product_error / (np.linalg.norm(error) / N**0.5) < 1.6


def test_an_error_along_an_outlier_is_seen_whatever_the_random_vectors_have_of_it():
    u = np.ones(N) / N**0.5
    matrix, error = symmetric(0) / 100 + 10 * np.outer(u, u), 1e-3 * np.outer(u, u)
    for seed in range(10):
        found = hs.spectral_density(Wrong(matrix, error), 4, 8, seed)
        assert found.arithmetic.product_error > 0.99 * 1e-3 / N**0.5


def test_products_in_float64_need_no_comparison():
    counted = []

    class Counting(Diagonal):
        def products(self, vectors):
            counted.append(len(vectors))
            return super().products(vectors)

    found = hs.spectral_density(Counting(SPECTRA["power law"]), 4, 5)
    assert sum(counted) == 20 and found.arithmetic.compared_with_float64
    assert found.arithmetic.product_error < 1e-15


def network(dtype):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    x, y = torch.randn(80, 6), torch.randint(4, (80,))
    ev = hs.Evaluator(net.to(dtype), torch.nn.CrossEntropyLoss(), (x.to(dtype), y))
    return hs.Hessian(ev)


@pytest.mark.filterwarnings("ignore:effective_dimension")
@pytest.mark.parametrize("make", ["network", "dense"])
def test_intervals_in_float32_cover_the_exact_matrix(make):
    """As many products as eigenvalues: no noise is left but that of float32."""
    if make == "network":
        operator, exact = network(torch.float32), network(torch.float64)
        a = exact @ np.eye(exact.n)
    else:
        single = torch.tensor(symmetric(3, 92) / 10, dtype=torch.float32)
        operator, a = hs.Dense(single), single.double().numpy()
    values = np.linalg.eigvalsh(a)
    found = hs.spectral_density(operator, 12, 12)
    blind = wrong(found, 0.0)
    missed = 0
    for query, args in SMOOTH.items():
        truth = value(known(values), query, args)
        low, high = found.interval(query, *args)
        assert low <= truth <= high, query
        assert high - low < 1e-4 * max(abs(truth), 1)
        low, high = blind.interval(query, *args)
        missed += not low <= truth <= high
    assert missed >= 4


# -- what is not known of it -----------------------------------------------------------------------


def test_where_there_are_no_products_in_float64_the_answer_says_so(tmp_path):
    measure = hs.spectral_density(Diagonal(SPECTRA["power law"], torch.float32), 4, 5)
    assert not measure.arithmetic.compared_with_float64
    length = np.sqrt(np.mean(SPECTRA["power law"] ** 2))
    assert measure.arithmetic.product_error > 0.5 * torch.finfo(torch.float32).eps * length
    hs.save(tmp_path / "run.h5", measure)
    with hs.open(tmp_path / "run.h5") as run:
        again = run["density"]
    assert again.arithmetic == measure.arithmetic
    answer = queries.ask(again, "trace", ())
    assert "float64" in answer["left_out"] and answer["left_out"] in queries.sentence(answer)
    double = queries.ask(hs.spectral_density(Diagonal(SPECTRA["power law"]), 4, 5), "trace", ())
    assert "left_out" not in double and "float64" not in queries.sentence(double)


class Counted(hs.Dense):
    """A matrix that notes how many vectors each block product has."""

    def __init__(self, matrix):
        super().__init__(torch.tensor(matrix))
        self.counts = []

    def products(self, vectors):
        self.counts.append(len(vectors))
        return super().products(vectors)


@pytest.mark.parametrize(("room", "counts"), [(3, [3, 2]), (1, [1] * 5), (9, [5]), (0.5, [1] * 5)])
def test_products_in_float64_are_as_many_at_a_time_as_there_is_room_for(room, counts, monkeypatch):
    """All at once, those of 124 million parameters ended a run that had made its 12 products."""
    monkeypatch.setattr(residual_check, "TOGETHER", int(room * 8 * N))
    matrix, wrong_by = symmetric(0), 1e-3 * symmetric(1)
    rows = torch.tensor(np.random.default_rng(2).standard_normal((5, N)))
    exact = Counted(matrix)
    found = residual_check.errors_of(rows @ torch.tensor(matrix + wrong_by), exact, rows)
    assert exact.counts == counts
    expected = np.linalg.norm(rows.numpy() @ wrong_by, axis=1)
    assert found.numpy() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("cut", "expected"), [(None, 4), (5, 3), (1, 1), (20, 4)])
def test_minibatches_in_float64_are_half_as_large(cut, expected):
    """They take twice the memory: whole ones took 1.8 times what a run was allowed."""
    torch.manual_seed(0)
    data = torch.randn(19, 3), torch.randint(2, (19,))
    ev = hs.Evaluator(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), data, batch_size=7)
    hessian = hs.Hessian(ev, plan=hs.ProductPlan(batch_size=cut))
    exact = hessian.in_float64()
    assert exact.plan.batch_size == expected
    v = torch.randn(ev.n, 2)
    assert (exact @ v.double() - hessian @ v).abs().max() < 1e-5
