"""Extreme eigenpairs against dense ones: both ends, copies, restarts, noise, too little of all."""

import dataclasses
import itertools
from math import comb

import numpy as np
import pytest
import torch
from prescribed_spectra import with_spectrum
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum.algorithms import residual_check
from hessian_spectrum.algorithms.convergence import WantedPairs
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.krylov.ritz import WHICH, wanted

N = 200
BULK = np.linspace(-0.1, 0.1, N)


def spectrum(*outside):
    return np.sort(np.concatenate([outside, BULK[len(outside) :]]))


SPECTRA = {
    "outliers": spectrum(-0.3, -0.2, 0.5, 0.7, 1.3),
    "three alike below": spectrum(-0.3, -0.3, -0.3, 0.9),
    "three alike above": spectrum(-0.3, 0.9, 0.9, 0.9),
    "a cluster": spectrum(-1, -1 + 1e-9, -1 + 2e-9, -1 + 3e-9),
    "one apart": spectrum(5.0),
    "even": np.linspace(-1, 1, N),
    "low rank": np.r_[np.zeros(N - 4), 1, 2, 3, 4],
    "all alike": np.full(N, 2.0),
    "zero": np.zeros(N),
}


class Counted(hs.SymmetricOperator):
    """Products by a matrix, counted; each row of them passed through ``spoil``."""

    def __init__(self, matrix, spoil=lambda rows: rows):
        self.matrix, self.spoil, self.count = matrix, spoil, 0
        self.layout, self.dtype = Layout.of_size(len(matrix)), matrix.dtype

    def products(self, vectors):
        self.count += len(vectors)
        return self.spoil(vectors @ self.matrix)


def exact(values, which, k):
    values = np.sort(values)
    return values[wanted(which, k, values)]


def misfits(matrix, pairs):
    vectors = torch.as_tensor(pairs.vectors)
    return (vectors @ matrix - torch.as_tensor(pairs.values)[:, None] * vectors).norm(dim=1).numpy()


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", SPECTRA)
def test_values_are_the_dense_ones_and_residuals_are_true(name, which):
    values = SPECTRA[name]
    matrix = with_spectrum(values)
    pairs = hs.eigenpairs(hs.Dense(matrix), 4, which, tol=1e-8)
    scale = np.abs(values).max()
    assert pairs.converged.all()
    assert np.abs(pairs.values - exact(values, which, 4)).max() <= 1e-12 * scale
    assert (misfits(matrix, pairs) <= 2 * pairs.residuals + 1e-14 * scale).all()
    assert (pairs.residuals <= 1e-8 * scale).all()
    gram = pairs.vectors @ pairs.vectors.T
    assert np.abs(gram - np.eye(len(pairs))).max() <= 1e-12


@pytest.mark.parametrize("k", [1, 2, 5, 11, 12])
@pytest.mark.parametrize("which", WHICH)
def test_as_many_as_there_are(which, k):
    values = np.random.default_rng(3).standard_normal(12)
    pairs = hs.eigenpairs(hs.Dense(with_spectrum(values)), k, which, tol=1e-8)
    assert np.abs(pairs.values - exact(values, which, k)).max() <= 1e-13


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("k", [(1, 6), (5, 2), (3, N - 2)])
def test_other_numbers_at_the_two_ends(name, k):
    values = np.sort(SPECTRA[name])
    pairs = hs.eigenpairs(hs.Dense(with_spectrum(values)), k, tol=1e-8)
    expected = values if sum(k) > N else np.r_[values[: k[0]], values[N - k[1] :]]
    assert np.abs(pairs.values - expected).max() <= 1e-12 * np.abs(values).max()
    assert pairs.num_lower == k[0]


def test_scaling_the_loss_scales_the_answer_and_nothing_else():
    matrix = with_spectrum(SPECTRA["outliers"])
    found = {}
    for scale in (1e-8, 1.0, 1e8):
        operator = Counted(scale * matrix)
        pairs = hs.eigenpairs(operator, 3, tol=1e-8)
        found[scale] = operator.count
        assert np.abs(pairs.values / scale - exact(SPECTRA["outliers"], "both", 3)).max() <= 1e-13
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e200])
def test_squares_that_are_no_numbers_change_nothing(scale):
    matrix = with_spectrum(np.r_[np.linspace(-0.1, 0.1, 36), [-0.4, 0.5, 0.58, 1.3]])
    one, other = Counted(matrix), Counted(matrix * scale)
    pairs, scaled = (hs.eigenpairs(operator, 3, tol=1e-8) for operator in (one, other))
    assert one.count == other.count and scaled.converged.all()
    assert np.abs(scaled.values / scale - pairs.values).max() <= 1e-13
    assert (scaled.residuals / scale <= 1e-8 * 1.3).all()
    near, scaled = (
        hs.eigenpairs_near(hs.Dense(matrix * s), 0.6 * s, 2, tol=1e-7) for s in (1.0, scale)
    )
    assert near.converged.all() and scaled.converged.all()
    assert np.abs(scaled.values / scale - near.values).max() <= 1e-10


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_copies_are_found_whatever_the_block_size(block_size):
    values = spectrum(-0.5, -0.5, -0.5, -0.5, -0.3)
    pairs = hs.eigenpairs(
        hs.Dense(with_spectrum(values)), 6, "smallest", 1e-8, block_size=block_size
    )
    assert np.abs(pairs.values - values[:6]).max() <= 1e-12


def test_copies_that_are_not_looked_for_save_products_and_may_be_missing():
    values = spectrum(-0.5, -0.5, -0.5, -0.3)
    careful, quick = Counted(with_spectrum(values)), Counted(with_spectrum(values))
    assert np.abs(hs.eigenpairs(careful, 4, "smallest", 1e-8).values - values[:4]).max() <= 1e-12
    pairs = hs.eigenpairs(quick, 4, "smallest", 1e-8, copies=False)
    assert quick.count < careful.count
    assert np.abs(pairs.values[:, None] - values).min(1).max() <= 1e-12  # eigenvalues all the same


def hypercube(d):
    """Eigenvalues of the Laplacian of a d-dimensional hypercube: 2 i, (d over i) times."""
    return np.repeat(2.0 * np.arange(d + 1), [comb(d, i) for i in range(d + 1)])


def grid(*sizes):
    """Eigenvalues of the Laplacian of a grid with these sizes and periodic boundaries."""
    axes = [2 - 2 * np.cos(2 * np.pi * np.arange(s) / s) for s in sizes]
    return np.sort(sum(np.meshgrid(*axes)).ravel())


MULTIPLE = {
    "hypercube": hypercube(7),
    "grid": grid(9, 9),
    "clusters": np.sort(np.r_[1.0 + 1e-10 * np.arange(4), 1.5 - 1e-12 * np.arange(3), BULK]),
    "one value five times below the largest": spectrum(0.4, 0.4, 0.4, 0.4, 0.4, 0.5),
    "plus and minus alike": spectrum(-1.0, -1.0, 1.0, 1.0, 1.0, -2.0),
}


@pytest.mark.parametrize("k", [6, 8, 10, 11])
def test_all_copies_of_the_eigenvalues_of_a_hypercube(k):
    values = hypercube(10)
    pairs = hs.eigenpairs(hs.Dense(torch.diag(torch.tensor(values))), k, "largest", 1e-8, seed=1)
    assert pairs.converged.all()
    assert np.abs(pairs.values - values[-k:]).max() <= 1e-12


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("basis_size", [None, 30])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", MULTIPLE)
def test_no_list_with_a_copy_missing_is_called_converged(name, which, basis_size, block_size):
    values = MULTIPLE[name]
    operator = Counted(torch.diag(torch.tensor(values)))
    for k, seed in itertools.product((3, 7), range(3)):
        options = {"seed": seed, "basis_size": basis_size, "block_size": block_size}
        pairs = hs.eigenpairs(operator, k, which, 1e-8, max_products=3000, **options)
        right, found = exact(values, which, k), pairs.values
        if which == "magnitude":  # of 1 and -1 either may be named
            right, found = (np.sort(np.abs(v)) for v in (right, found))
        assert pairs.converged.all()
        assert np.abs(found - right).max() <= 1e-8 * np.abs(values).max()


def test_pairs_are_in_doubt_until_nothing_can_be_missing():
    """Out of products during the search: converged only where no eigenvalue farther out can be."""
    values = np.sort(np.r_[BULK, 1.0, 0.9, 0.12, 0.115, 0.11])
    operator, states = Counted(torch.diag(torch.tensor(values))), []
    hs.eigenpairs(operator, 5, "largest", 1e-8, on_step=states.append)
    first = next(state.products for state in states if state.search)
    flags = []
    for most in range(first, operator.count - 2):
        pairs = hs.eigenpairs(operator, 5, "largest", 1e-8, max_products=most)
        assert (pairs.residuals <= 1e-8).all()
        flags.append(pairs.converged)
    counts = np.sum(flags, axis=1)
    assert counts[0] == 0 and (np.diff(counts) >= 0).all()
    assert set(counts) >= {0, 2}  # the two far out are certain long before the others
    assert all((np.diff(converged.astype(int)) >= 0).all() for converged in flags)


def test_a_search_that_is_continued_ends_as_one_that_was_not_stopped():
    values, states = MULTIPLE["one value five times below the largest"], []
    operator = Counted(torch.diag(torch.tensor(values)))
    whole = hs.eigenpairs(operator, 4, "largest", 1e-8, basis_size=20, on_step=states.append)
    middle = next(i for i, state in enumerate(states) if state.search) + 2
    states.clear()

    class Stopped(Exception):
        pass

    def stop(state):
        states.append(state)
        if len(states) > middle:
            raise Stopped

    with pytest.raises(Stopped):
        hs.eigenpairs(operator, 4, "largest", 1e-8, basis_size=20, on_step=stop)
    state = type(states[-1]).from_arrays(states[-1].to_arrays())
    state = dataclasses.replace(state, basis=states[-1].basis)
    rest = hs.eigenpairs(operator, 4, "largest", 1e-8, basis_size=20, state=state)
    assert states[-1].search is not None
    np.testing.assert_array_equal(rest.values, whole.values)
    np.testing.assert_array_equal(rest.residuals, whole.residuals)


@pytest.mark.parametrize("which", ["both", "smallest"])
def test_a_bounded_basis_gives_the_same_with_more_products(which):
    matrix = with_spectrum(SPECTRA["even"])
    free, bounded = Counted(matrix), Counted(matrix)
    states = []
    one = hs.eigenpairs(free, 4, which, tol=1e-8)
    other = hs.eigenpairs(
        bounded, 4, which, tol=1e-8, basis_size=16, max_products=5000, on_step=states.append
    )
    assert other.converged.all() and states[-1].restarts > 3
    assert max(state.order + state.width for state in states) <= 16
    assert np.abs(one.values - other.values).max() <= 1e-13
    assert bounded.count > free.count  # measured: 220 and 163 against 134 and 138


@pytest.mark.parametrize("relative", [1e-3, 1e-6])
def test_noisy_products_are_never_called_converged(relative):
    matrix = with_spectrum(SPECTRA["outliers"])

    def spoil(rows):
        return rows + relative * rows.norm(dim=1, keepdim=True) * torch.randn_like(rows) / N**0.5

    pairs = hs.eigenpairs(Counted(matrix, spoil), 3, tol=1e-2 * relative, max_products=600)
    assert not pairs.converged.any()
    assert np.abs(pairs.values - exact(SPECTRA["outliers"], "both", 3)).max() <= 2 * relative
    assert (misfits(matrix, pairs) <= 2 * pairs.residuals + 2 * relative).all()


def test_products_of_a_matrix_that_is_not_symmetric_are_not_called_converged():
    skew = torch.randn(N, N, dtype=torch.float64) * 1e-3 / N**0.5
    matrix = with_spectrum(SPECTRA["outliers"]) + skew - skew.T
    pairs = hs.eigenpairs(Counted(matrix), 3, tol=1e-6, max_products=400)
    assert not pairs.converged.any()


def test_too_few_products_give_partial_results_that_say_so():
    values = SPECTRA["outliers"]
    matrix = with_spectrum(values)
    operator = Counted(matrix)
    pairs = hs.eigenpairs(operator, 5, tol=1e-10, max_products=30)
    assert operator.count <= 30 + 2 + 10  # the look at the residuals
    assert pairs.converged.any() and not pairs.converged.all()
    done = pairs.converged
    assert np.abs(pairs.values[done][-1] - values[-1]) <= 1e-10
    assert (misfits(matrix, pairs) <= 2 * pairs.residuals + 1e-14).all()
    for value, residual in zip(pairs.values, pairs.residuals):
        assert np.abs(values - value).min() <= 2 * residual + 1e-14


def test_residuals_that_the_recurrence_does_not_know_are_found_by_a_look():
    """Products change after the recurrence: what it believed was true is not any more."""
    matrix = with_spectrum(SPECTRA["outliers"])
    operator = Counted(matrix)

    def turn(state):
        if state.num_steps == 5:
            operator.matrix = with_spectrum(SPECTRA["outliers"], seed=1)

    pairs = hs.eigenpairs(operator, 2, tol=1e-6, max_products=60, on_step=turn)
    assert (misfits(operator.matrix, pairs) <= 2 * pairs.residuals).all()
    assert not pairs.converged.any()


def test_single_precision_states_its_own_residuals():
    matrix = with_spectrum(SPECTRA["outliers"]).float()
    pairs = hs.eigenpairs(hs.Dense(matrix), 3, tol=1e-5)
    assert pairs.converged.all() and pairs.vectors.dtype == np.float32
    assert np.abs(pairs.values - exact(SPECTRA["outliers"], "both", 3)).max() <= 1e-6
    assert (misfits(matrix, pairs) <= 2 * pairs.residuals).all()


class Halves(hs.SymmetricOperator):
    """A user's operator in float32: the sum of two matrices, without products in float64."""

    def __init__(self, matrix):
        self.parts = matrix.triu(), matrix.tril(-1)
        self.layout, self.dtype = Layout.of_size(len(matrix)), matrix.dtype

    def products(self, vectors):
        return vectors @ self.parts[0] + vectors @ self.parts[1]


SINGLE = {
    "Dense": hs.Dense,
    "a user's": Halves,
    "shifted": lambda matrix: hs.Shifted(hs.Dense(matrix), 0.25),
    "shifted, a user's": lambda matrix: hs.Shifted(Halves(matrix), 0.25),
}


@pytest.mark.parametrize("tol", [2e-7, 1e-6, 3e-6])
@pytest.mark.parametrize("kind", SINGLE)
def test_no_operator_in_float32_hides_its_rounding(kind, tol):
    """Stated residuals are at least half of the true ones, and what is too large says so."""
    for seed, values in enumerate([np.linspace(-1, 1, 300), np.linspace(0, 1, 300) ** 6]):
        matrix = with_spectrum(values, seed=seed).float()
        exact = matrix.double() + (0.25 * torch.eye(300) if "shifted" in kind else 0.0)
        pairs = hs.eigenpairs(SINGLE[kind](matrix), 6, "both", tol, max_products=300)
        pairs = dataclasses.replace(pairs, vectors=pairs.vectors.astype(np.float64))
        true = misfits(exact, pairs)
        assert (pairs.residuals >= true / 2).all()
        assert not (pairs.converged & (true > tol * np.abs(pairs.values).max())).any()
        if tol == 3e-6:  # what can be reached is not refused
            assert pairs.converged.mean() >= 0.75


@pytest.mark.parametrize("kind", SINGLE)
def test_no_operator_in_float32_hides_its_rounding_inside_the_spectrum(kind):
    matrix = with_spectrum(np.linspace(-1, 1, 40)).float()
    exact = matrix.double() + (0.25 * torch.eye(40) if "shifted" in kind else 0.0)
    pairs = hs.eigenpairs_near(SINGLE[kind](matrix), 0.11, 2, tol=1e-7)
    pairs = dataclasses.replace(pairs, vectors=pairs.vectors.astype(np.float64))
    true = misfits(exact, pairs)
    assert (pairs.residuals >= true / 2).all()
    assert not (pairs.converged & (true > 1e-7 * np.abs(np.linalg.eigvalsh(exact)).max())).any()


EPS = np.finfo(np.float64).eps


class Coarse(hs.Dense):
    """Products with an error of eight units of rounding, another one each time."""

    def products(self, vectors):
        noise = torch.randn(vectors.shape, dtype=torch.float64)
        noise *= vectors.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        return super().products(vectors) + 8 * EPS * self.scale * noise


def test_no_residual_is_stated_below_the_error_of_a_product():
    """Where the recurrence says zero, what two products show is stated."""
    torch.manual_seed(0)
    operator = Coarse(with_spectrum(np.arange(1.0, 7.0)))
    operator.scale = 6.0
    values, vectors = np.linalg.eigh(operator @ np.eye(6))
    found = WantedPairs(values[-2:], np.eye(6)[:, -2:], np.zeros(2), 6.0, np.zeros(2, bool))
    rows = torch.from_numpy(vectors.T[-2:].copy())
    stated = residual_check._checked_residuals(operator, rows, found, seed=0)
    assert (stated >= 4 * EPS * operator.scale).all() and (stated <= 40 * EPS * 6).all()


class Rounded(Counted):
    """Products by a matrix that is not quite the one they are said to be of, as in float32."""

    def __init__(self, matrix, error):
        super().__init__(matrix + error * with_spectrum(np.linspace(-1, 1, N), seed=3))
        self.exact = Counted(matrix)

    def in_float64(self):
        return self.exact


@pytest.mark.parametrize("tol", [1e-2, 1e-8])
def test_what_the_arithmetic_moves_is_counted_in_every_residual(tol):
    """Symmetric rounding: the recurrence cannot see it, whatever it has converged to."""
    matrix = with_spectrum(SPECTRA["outliers"])
    operator = Rounded(matrix, 1e-4)
    pairs = hs.eigenpairs(operator, 3, tol=tol)
    true = misfits(matrix, pairs)
    assert (true > 3e-5).all() and (true <= 1.001 * pairs.residuals).all()
    assert (pairs.residuals <= 10 * np.linalg.norm(true)).all()
    assert pairs.converged.all() == (tol == 1e-2) and operator.exact.count == 2
    for value, residual in zip(pairs.values, pairs.residuals):
        assert np.abs(SPECTRA["outliers"] - value).min() <= residual


def test_a_small_residual_that_is_wrong_is_seen_beside_large_ones():
    matrix = with_spectrum(SPECTRA["outliers"])
    operator = Counted(matrix)
    top = torch.linalg.eigh(matrix)[1][:, -1]

    def turn(state):  # before the last product: the largest eigenvalue's vector is none any more
        if state.products == 22:
            bent = torch.outer(top, matrix[0])
            operator.matrix = matrix + 1e-5 * (bent + bent.T)

    pairs = hs.eigenpairs(operator, (5, 1), tol=1e-12, max_products=24, on_step=turn)
    true = misfits(operator.matrix, pairs)
    assert true[-1] < 1e-3 * true[:-1].max() and not pairs.converged.any()
    assert (true <= 2 * pairs.residuals).all()


def test_certified_pairs_have_the_values_and_residuals_of_float64():
    matrix = with_spectrum(SPECTRA["outliers"])
    operator = Rounded(matrix, 1e-4)
    pairs = hs.eigenpairs(operator, 5, tol=1e-3, certify=True)
    v = pairs.vectors
    assert operator.exact.count == 10 and pairs.converged.all()
    assert np.abs(pairs.values - ((v @ matrix.numpy()) * v).sum(1)).max() <= 1e-14
    assert np.abs(misfits(matrix, pairs) - pairs.residuals).max() <= 1e-14
    # Of second order in the error: the eigenvalues themselves moved by 1e-4.
    assert np.abs(pairs.values - exact(SPECTRA["outliers"], "both", 5))[[0, -1]].max() <= 1e-6


@pytest.mark.parametrize("precision", [None, "bfloat16"])
@pytest.mark.parametrize("certify", [False, True])
def test_residuals_of_a_float32_network_hold_in_float64(precision, certify):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    problem = model, nn.CrossEntropyLoss(), (torch.randn(40, 6), torch.randint(0, 4, (40,)))
    single, double = (hs.Evaluator(*problem, dtype=d) for d in (torch.float32, torch.float64))
    dense = hs.Hessian(double) @ torch.eye(double.n, dtype=torch.float64)
    hessian = hs.Hessian(single, plan=hs.ProductPlan(precision=precision))
    pairs = hs.eigenpairs(hessian, 3, tol=1e-3, certify=certify)
    assert pairs.vectors.dtype == np.float32
    pairs = dataclasses.replace(pairs, vectors=pairs.vectors.astype(np.float64))
    values = torch.linalg.eigvalsh(dense).numpy()
    floor = 2e-7 * np.abs(values).max()  # vectors are rounded once more when they are returned
    assert (misfits(dense, pairs) <= 1.01 * pairs.residuals + floor).all()
    for value, residual in zip(pairs.values, pairs.residuals):
        assert np.abs(values - value).min() <= residual + floor
    if certify and precision is None:
        assert np.abs(pairs.values - values[[0, 1, 2, -3, -2, -1]]).max() <= 1e-6


@pytest.mark.parametrize("certify", [False, True])
def test_what_float32_products_keep_makes_room_for_those_in_float64(certify):
    samples = torch.randn(8, 3), torch.arange(8) % 4
    ev = hs.Evaluator(nn.Linear(3, 4), nn.CrossEntropyLoss(), samples, batch_size=4)
    hessian = hs.Hessian(ev, plan=hs.ProductPlan("reverse", keep=True))
    hs.eigenpairs(hessian, 1, tol=1e-2, certify=certify)
    before = ev.counts.graphs
    hessian @ torch.randn(ev.n)
    assert ev.counts.graphs == before + 2


def test_a_tolerance_below_the_rounding_ends_and_says_no():
    operator = Counted(with_spectrum(SPECTRA["outliers"]).float())
    pairs = hs.eigenpairs(operator, 3, tol=1e-12)
    assert not pairs.converged.any() and operator.count < 200


def test_a_warm_start_takes_fewer_products():
    matrix = with_spectrum(SPECTRA["outliers"])
    near = with_spectrum(SPECTRA["outliers"], seed=0) + 1e-4 * with_spectrum(BULK, seed=7)
    cold, warm = Counted(near), Counted(near)
    vectors = hs.eigenpairs(hs.Dense(matrix), 1, tol=1e-8).vectors
    one = hs.eigenpairs(cold, 1, tol=1e-6)
    other = hs.eigenpairs(warm, 1, tol=1e-6, start=vectors)
    assert np.abs(one.values - other.values).max() <= 1e-10
    assert warm.count < cold.count


def test_a_density_run_is_gone_on_with_not_computed_again():
    matrix = with_spectrum(SPECTRA["outliers"])
    states = []
    hs.spectral_density(hs.Dense(matrix), 6, 20, on_step=states.append)
    fresh, going_on = Counted(matrix), Counted(matrix)
    # The search for copies takes a random vector of its own, however the pairs were found.
    one = hs.eigenpairs(fresh, 2, tol=1e-9, copies=False, block_size=2)
    other = hs.eigenpairs(going_on, 2, tol=1e-9, copies=False, start=states[-1])
    assert np.abs(one.values - other.values).max() <= 1e-12
    assert going_on.count <= fresh.count / 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k=0: expected a whole number"),
        ({"k": (3, 0)}, r"k\[1\]=0: expected a whole number"),
        ({"k": (3, 4), "which": "largest"}, "expected a number, or"),
        ({"k": (3, 4, 5)}, "expected a number, or"),
        ({"k": (3, N + 1)}, "exceeds the operator's size"),
        ({"k": N + 1}, "exceeds the operator's size"),
        ({"which": "top"}, "which='top'"),
        ({"tol": -1}, "tol=-1"),
        ({"basis_size": 9}, "at least"),
        ({"start": np.ones(3)}, "start of shape"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_cannot_be_used_is_refused(options, said):
    with pytest.raises(hs.InputError, match=said):
        hs.eigenpairs(hs.Dense(with_spectrum(BULK)), **{"k": 3, **options})


def test_products_that_are_not_finite_are_an_error():
    broken = Counted(with_spectrum(BULK), lambda rows: rows * float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        hs.eigenpairs(broken, 2)


# -- inside the spectrum -----------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.03, 0.6, -0.5])
def test_pairs_nearest_to_a_number_inside_the_spectrum(shift):
    values = np.concatenate([np.linspace(-0.1, 0.1, 36), [-0.4, 0.5, 0.58, 1.3]])
    matrix = with_spectrum(values)
    pairs = hs.eigenpairs_near(hs.Dense(matrix), shift, 2, tol=1e-7)
    nearest = np.sort(values[np.argsort(np.abs(values - shift))[:2]])
    assert pairs.converged.all()
    assert np.abs(pairs.values - nearest).max() <= 1e-10
    assert (misfits(matrix, pairs) <= 2 * pairs.residuals + 1e-14).all()


def test_solutions_that_fall_short_are_not_called_converged():
    pairs = hs.eigenpairs_near(
        hs.Dense(with_spectrum(SPECTRA["even"])), 0.001, 2, tol=1e-9, max_steps=3, max_solves=12
    )
    assert not pairs.converged.any()


def test_a_shift_that_is_no_number_is_refused():
    with pytest.raises(hs.InputError, match="shift=nan"):
        hs.eigenpairs_near(hs.Dense(with_spectrum(BULK)), float("nan"))
