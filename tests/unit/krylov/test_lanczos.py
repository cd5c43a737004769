"""The lockstep recurrences, against dense eigenvalues and prescribed spectra."""

import numpy as np
import pytest
import torch
from prescribed_spectra import with_spectrum

import hessian_spectrum as hs
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.krylov import lanczos

SCALES = [1e-8, 1.0, 1e8]


def run(matrix, num_probes, num_steps, seed=0):
    return run_operator(hs.Dense(matrix), num_probes, num_steps, seed)


def run_operator(operator, num_probes, num_steps, seed=0):
    probes = gaussian_probes(operator.layout, range(num_probes), seed, operator.dtype)
    state = lanczos.start(operator, probes, num_steps)
    while state.num_steps < num_steps and state.active.any():
        state = state.step(operator)
    return operator, state


def tridiagonal(state, i):
    k = state.lengths[i]
    return (
        np.diag(state.alpha[i, :k])
        + np.diag(state.beta[i, : k - 1], 1)
        + np.diag(state.beta[i, : k - 1], -1)
    )


def outliers_and_bulk(n=200, count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bulk = 1e-3 * torch.randn(n - count, generator=generator, dtype=torch.float64)
    return torch.cat([torch.linspace(1, 50, count, dtype=torch.float64), bulk])


@pytest.mark.parametrize("scale", SCALES)
def test_lanczos_relation_and_orthogonality(scale):
    matrix = scale * with_spectrum(outliers_and_bulk())
    _, state = run(matrix, 3, 60)
    for i in range(3):
        q = state.basis[i, :61]
        assert (q @ q.T - torch.eye(61).double()).abs().max() < 1e-13  # one pass alone: 0.9
        residual = q[:60] @ matrix - torch.from_numpy(tridiagonal(state, i)) @ q[:60]
        residual[-1] -= state.beta[i, 59] * q[60]
        assert residual.abs().max() < 1e-13 * 50 * scale


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", SCALES)
def test_eight_far_outliers_are_eight_ritz_values_after_a_hundred_steps(scale, dtype):
    spectrum = outliers_and_bulk()
    operator = hs.Dense((scale * with_spectrum(spectrum)).to(dtype))
    measure = hs.spectral_density(operator, 1, 100, estimator="slq")
    above = measure.nodes[measure.nodes > 0.5 * scale]
    assert len(above) == 8  # no ghosts
    tolerance = 100 * torch.finfo(dtype).eps * 50 * scale
    np.testing.assert_allclose(above, scale * spectrum[:8].numpy(), rtol=0, atol=tolerance)


def test_the_recurrences_in_lockstep_are_those_of_single_probes():
    matrix = with_spectrum(outliers_and_bulk(60))
    operator, together = run(matrix, 4, 20)
    for i in range(4):
        probe = gaussian_probes(operator.layout, [i], 0, torch.float64)
        alone = lanczos.start(operator, probe, 20)
        for _ in range(20):
            alone = alone.step(operator)
        np.testing.assert_allclose(together.alpha[i], alone.alpha[0], atol=1e-11)
        np.testing.assert_allclose(together.beta[i], alone.beta[0], atol=1e-11)


@pytest.mark.parametrize("scale", SCALES)
def test_repeated_eigenvalues_get_their_whole_weight_and_nothing_lies_between(scale):
    distinct = torch.tensor([-2.0, 0.0, 1.0, 5.0]).double()
    matrix = scale * with_spectrum(distinct.repeat_interleave(torch.tensor([1, 20, 3, 6])))
    operator = hs.Dense(matrix)
    # Six times as many steps as are needed.
    measure = hs.spectral_density(operator, 5, 25, estimator="slq")

    z = gaussian_probes(operator.layout, range(5), 0, torch.float64)
    z = z / z.norm(dim=1, keepdim=True)
    vectors = torch.linalg.eigh(matrix)[1]
    parts = (z @ vectors).square().split([1, 20, 3, 6], dim=1)
    for value, part in zip(distinct, parts):
        near = abs(measure.nodes - scale * value.item()) < 1e-12 * scale
        np.testing.assert_allclose(measure.weights[:, near].sum(1), part.sum(1), atol=1e-13)


def test_recurrences_that_end_at_different_steps():
    operator = hs.Dense(torch.diag(torch.arange(1.0, 13).double()))
    probes = torch.ones(2, 12).double()
    probes[0, 3:] = 0  # lives on three eigenvectors
    state = lanczos.start(operator, probes, 12)
    while state.num_steps < 12:
        state = state.step(operator)
    assert state.lengths.tolist() == [3, 12]
    np.testing.assert_allclose(np.linalg.eigvalsh(tridiagonal(state, 0)), [1, 2, 3], atol=1e-13)
    np.testing.assert_allclose(np.linalg.eigvalsh(tridiagonal(state, 1)), range(1, 13), atol=1e-12)


@pytest.mark.parametrize("steps", [29, 30])
def test_as_many_steps_as_the_operator_is_large_give_all_eigenvalues(steps):
    spectrum = torch.linspace(-1, 1, 30).double() ** 3
    measure = hs.spectral_density(hs.Dense(with_spectrum(spectrum)), 2, steps, estimator="slq")
    if steps == 30:
        np.testing.assert_allclose(measure.nodes.reshape(-1, 2).mean(1), spectrum, atol=1e-8)
    assert abs(measure.nodes).max() <= 1 + 1e-12
    np.testing.assert_allclose(measure.weights.sum(1), 1, atol=1e-13)


def test_the_zero_operator_and_a_single_number():
    zero = hs.spectral_density(hs.Dense(torch.zeros(9, 9)), 2, 5, estimator="slq")
    assert zero.support == (0.0, 0.0)
    one = hs.spectral_density(hs.Dense(torch.full((1, 1), 3.5).double()), 2, 1, estimator="slq")
    assert one.support == (3.5, 3.5)


@pytest.mark.parametrize("steps", [0, 31, 2.5])
def test_steps_that_cannot_be_made_are_refused(steps):
    with pytest.raises(hs.InputError, match="must lie between 1 and the operator's size 30"):
        lanczos.start(hs.Dense(torch.eye(30)), torch.ones(2, 30), steps)


def test_a_product_that_is_not_finite_is_an_error_with_the_step():
    operator = hs.Dense(torch.eye(5))
    operator._columns[2, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite at Lanczos step 1"):
        hs.spectral_density(operator, 2, 3, estimator="slq")


def test_going_on_from_a_state_gives_the_same_bits():
    operator = hs.Dense(with_spectrum(outliers_and_bulk()))
    states = []
    straight = hs.spectral_density(operator, 3, 30, estimator="slq", on_step=states.append)
    middle = states[11]
    middle.basis[:, middle.num_steps + 1 :] = 0
    resumed = hs.spectral_density(operator, 3, 30, estimator="slq", state=middle)
    assert np.array_equal(straight.nodes, resumed.nodes)
    assert np.array_equal(straight.weights, resumed.weights)


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_the_noise_of_the_products_is_measured_and_bounds_the_residuals(noise):
    class Noisy(hs.Dense):
        def products(self, vectors):
            exact = super().products(vectors)
            error = torch.randn(exact.shape, dtype=exact.dtype)
            return exact + noise * error * (exact.norm() / error.norm())

    operator = Noisy(with_spectrum(torch.linspace(1, 2, 400)))
    _, state = run_operator(operator, 10, 1)
    if noise:
        assert noise / 1.5 < state.noise < 1.5 * noise
        measure = hs.spectral_density(operator, 10, 20, estimator="slq")
        assert measure.residuals.min() > noise
    else:
        assert state.noise < 2e-15


def counted(matrix):
    """The operator, and the number of vectors in each of its products so far."""

    class Counted(hs.Dense):
        def products(self, vectors):
            rows.append(len(vectors))
            return super().products(vectors)

    rows = []
    return Counted(matrix), rows


@pytest.mark.parametrize("scale", SCALES)
def test_recurrences_go_on_while_others_have_ended_and_only_they_are_multiplied(scale):
    matrix = scale * torch.diag(torch.arange(1.0, 13).double())
    operator, rows = counted(matrix)
    probes = torch.ones(3, 12).double()
    probes[0, 3:] = 0  # lives on three eigenvectors
    probes[2, 1:] = 0  # and this one on a single one
    state = lanczos.start(operator, probes, 9)
    for _ in range(9):
        state = state.step(operator)
    assert rows == [3, 2, 2, 1, 1, 1, 1, 1, 1]
    assert state.active.tolist() == [False, True, False]
    assert state.lengths.tolist() == [3, 9, 1]
    for i, length in enumerate(state.lengths):
        assert not state.basis[i, length + (i == 1) :].any()
        assert not state.alpha[i, length:].any() and not state.beta[i, length:].any()
        q = state.basis[i, :length]
        residual = q @ matrix - torch.from_numpy(tridiagonal(state, i)) @ q
        residual[-1] -= state.beta[i, length - 1] * state.basis[i, min(length, 9)]
        assert residual.abs().max() < 1e-13 * 12 * scale  # measured: 1e-15
        assert (q @ q.T - torch.eye(length).double()).abs().max() < 1e-14
    assert 6 * scale < state.scale < 12 * scale  # of products, whatever their size


@pytest.mark.parametrize("wrong", [1e-3, -1e-3])
def test_the_second_projection_mends_a_first_one_that_is_wrong_by_a_thousandth(wrong, monkeypatch):
    operator, exact = run(with_spectrum(outliers_and_bulk(60)), 2, 12)
    dots, calls = lanczos._dots, []

    def inexact(basis, vectors):
        calls.append(0)
        return dots(basis, vectors) * (1 + wrong * (len(calls) % 2))  # the first of each pair

    monkeypatch.setattr(lanczos, "_dots", inexact)
    _, mended = run_operator(operator, 2, 12)
    # Without the correction in alpha 1e-3, without that in beta^2 1e-6 and more; measured: 4e-13.
    np.testing.assert_allclose(mended.alpha, exact.alpha, rtol=0, atol=1e-11 * 50)
    np.testing.assert_allclose(mended.beta, exact.beta, rtol=0, atol=1e-11 * 50)
    q = mended.basis[0]
    assert (q @ q.T - torch.eye(13).double()).abs().max() < 1e-11


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_is_the_largest_product_so_far_and_not_the_last(scale):
    # From the outlier's own side the products shrink as soon as it has been found.
    matrix = scale * torch.diag(torch.cat([torch.ones(1), torch.linspace(0, 1e-6, 19)]).double())
    operator = hs.Dense(matrix)
    probe = torch.ones(1, 20).double()
    probe[0, 0] = 10
    state = lanczos.start(operator, probe, 6)
    largest = []
    for k in range(6):
        state = state.step(operator)
        largest.append((matrix @ state.basis[0, k]).norm().item())
        assert state.scale == pytest.approx(max(largest), rel=1e-12)
    assert largest[-1] < 1e-4 * largest[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("epsilons", "ends"), [(9, True), (11, False)])
def test_a_recurrence_ends_at_ten_rounding_errors_of_the_largest_product(
    epsilons, ends, scale, dtype
):
    # From e_1 the first beta is the off-diagonal entry itself, in exact arithmetic and in ours.
    off = epsilons * torch.finfo(dtype).eps
    matrix = scale * torch.tensor([[1.0, off], [off, 1.0]], dtype=torch.float64)
    operator = hs.Dense(matrix.to(dtype))
    state = lanczos.start(operator, torch.tensor([[1.0, 0.0]], dtype=dtype), 2)
    state = state.step(operator)
    assert state.active.tolist() == [not ends]
    assert state.beta[0, 0] == (0 if ends else pytest.approx(off * scale, rel=1e-6))


# -- probes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4])
def test_probes_are_the_same_at_every_world_size(size):
    n = 200_001  # three and a bit chunks of the generator
    whole = gaussian_probes(Layout.of_size(n), [0, 7], 3, torch.float64)
    layouts = [Layout.of_size(n, hs.World(rank, size)) for rank in range(size)]
    shares = [gaussian_probes(layout, [0, 7], 3, torch.float64) for layout in layouts]
    assert torch.equal(torch.cat(shares, dim=1), whole)


def test_probes_are_standard_normal_and_differ_by_seed_and_index():
    layout = Layout.of_size(200_000)
    a = gaussian_probes(layout, [0, 1], 0, torch.float64)
    b = gaussian_probes(layout, [0, 1], 1, torch.float64)
    gram = torch.cat([a, b]) @ torch.cat([a, b]).T / layout.n
    assert (gram - torch.eye(4)).abs().max() < 0.012  # five standard deviations
    chunks = a[0, : 3 * 65_536].reshape(3, -1)
    assert (chunks @ chunks.T / 65_536 - torch.eye(3)).abs().max() < 0.03


def test_a_layout_with_more_ranks_than_entries_has_empty_shares():
    layouts = [Layout.of_size(5, hs.World(rank, 4)) for rank in range(4)]
    assert [layout.n_local for layout in layouts] == [2, 2, 1, 0]
    assert gaussian_probes(layouts[3], [0], 0, torch.float64).shape == (1, 0)
