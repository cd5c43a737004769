"""Gradients and their covariance in the eigenvectors of the Hessian: dense definitions, eq. 3."""

from itertools import combinations

import numpy as np
import pytest
import torch
from alignment_problems import N, eigenpairs, evaluator
from dense_oracles import dense_hessian
from small_networks import data, mlp
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.analyses.noise_result import variance_factor
from hessian_spectrum.loss.sample_gradients import draw, minibatch_gradients, numbers

DRAWS = 20_000


def sample_gradients(model, samples):
    """(N, n), one backward pass a sample."""
    x, y = data(samples)
    rows = []
    for sample, label in zip(x, y):
        parts = torch.autograd.grad(
            F.cross_entropy(model(sample[None]), label[None]), list(model.parameters())
        )
        rows.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    return np.array(rows)


def covariance_of(gradients, centered=True):
    """With 1/N."""
    away = gradients - gradients.mean(0) if centered else gradients
    return away.T @ away / len(gradients)


def measured(operator):
    return hs.spectral_density(operator, num_products=60)


@pytest.mark.parametrize("centered", [True, False])
def test_every_quantity_is_its_dense_definition(centered):
    ev = evaluator()
    x, y = data(N)
    H = dense_hessian(ev.model, lambda m: F.cross_entropy(m(x), y)).numpy()
    gradients = sample_gradients(ev.model, N)
    C = covariance_of(gradients, centered)
    v, u = (np.linalg.eigh(matrix)[1][:, ::-1] for matrix in (H, C))  # the largest first

    covariance = hs.GradientCovariance(ev, centered=centered)
    found = hs.noise(
        ev,
        (1, 5, "classes"),
        (4, "full"),
        6,
        covariance=covariance,
        pairs=hs.eigenpairs(hs.Hessian(ev), 5, "both", tol=1e-12),
        noise_pairs=hs.eigenpairs(covariance, 6, "largest", tol=1e-12),
        measure=measured(hs.Hessian(ev)),
        noise_measure=measured(covariance),
        at_once=4,
    )
    assert found.dimensions.tolist() == [1, 3, 5] and found.centered == centered
    batches = np.array([gradients[draw(N, 4, 0, i)].mean(0) for i in range(6)])
    for k in (1, 3, 5):
        top, noise_top = v[:, :k], u[:, :k]
        for row, g in zip(found.gradient_share(k), (batches, gradients.mean(0)[None])):
            share = ((g @ top) ** 2).sum(1) / (g**2).sum(1)
            np.testing.assert_allclose(row[: len(g)], share, rtol=1e-9)  # measured: 2e-12
        share = ((batches @ top) ** 2).sum(1) / (batches**2).sum(1)
        error = share.std(ddof=1) / np.sqrt(6)
        np.testing.assert_allclose(found.mean_gradient_share(k)[0], share.mean(), rtol=1e-9)
        np.testing.assert_allclose(found.gradient_share_error(k), [error, 0.0], rtol=1e-9)

        projected = top @ top.T @ noise_top @ noise_top.T
        overlap = np.linalg.norm(projected) ** 2 / k
        assert found.subspace_overlap(k) == pytest.approx(overlap, rel=1e-9)
        cosines = np.linalg.svd(top.T @ noise_top, compute_uv=False)[::-1]
        np.testing.assert_allclose(np.cos(found.principal_angles(k)), cosines, rtol=1e-9)

        part = np.trace(top.T @ C @ top) / np.trace(C)
        assert found.noise_share(k) == pytest.approx(part, rel=1e-9)
        part = np.trace(noise_top.T @ H @ noise_top) / np.trace(H)
        assert found.curvature_share(k) == pytest.approx(part, rel=1e-9)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(H)[-5:], rtol=1e-9)
    np.testing.assert_allclose(found.noise_eigenvalues, np.linalg.eigvalsh(C)[-5:], rtol=1e-9)
    away = ((batches - gradients.mean(0)) ** 2).sum(1)
    np.testing.assert_allclose(found.deviation[0], away, rtol=1e-9)
    np.testing.assert_allclose(found.gradient_norm[0], np.linalg.norm(batches, axis=1), rtol=1e-9)
    assert np.isnan(found.gradient_norm[1, 1:]).all() and found.deviation[1, 0] == 0.0
    assert np.isnan(found.expected_deviation()).all() == (not centered)


def test_eigenpairs_that_are_not_given_are_computed():
    ev = evaluator(weight_decay=0.1)
    found = hs.noise(ev, (1, 4), (5,), 3)
    eye = torch.eye(ev.n, dtype=torch.float64)
    H, C = ((A @ eye).numpy() for A in (hs.Hessian(ev), hs.GradientCovariance(ev)))
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(H)[-4:], rtol=1e-6)
    np.testing.assert_allclose(found.noise_eigenvalues, np.linalg.eigvalsh(C)[-4:], rtol=1e-6)
    assert np.isnan(found.noise_share(4)) and np.isnan(found.curvature_share(4))
    again = hs.noise(ev, (1, 4), (5,), 3)
    np.testing.assert_array_equal(again.cosine, found.cosine)


def test_a_matrix_and_itself_have_the_same_subspaces_to_rounding():
    """The arc cosine of an overlap would give angles of 1e-8."""
    ev = evaluator()
    covariance = hs.GradientCovariance(ev)
    pairs = hs.eigenpairs(covariance, 4, "largest", tol=1e-12)
    found = hs.noise(
        ev,
        (2, 4),
        ("full",),
        operator=covariance,
        pairs=pairs,
        noise_pairs=pairs,
        noise_measure=measured(covariance),
    )
    assert found.subspace_overlap(4) == pytest.approx(1.0, rel=1e-12)
    assert found.principal_angles(4).max() < 1e-12  # measured: 2e-15
    share = pairs.values[2:].sum() / found.noise_trace
    assert found.noise_share(2) == pytest.approx(share, rel=1e-9)


# -- equation 3 ---------------------------------------------------------------------------------


def test_all_minibatches_without_replacement_have_the_exact_covariance():
    """All 15 pairs of six samples; the paper's factor is exact for C with 1/(N - 1)."""
    samples, size = 6, 2
    ev = evaluator(samples=samples, batch_size=4)
    chosen = [np.array(pair) for pair in combinations(range(samples), size)]
    batches = minibatch_gradients(ev, ev.theta, chosen, numbers(ev)).numpy()
    assert len(batches) == 15
    eye = torch.eye(ev.n, dtype=torch.float64)
    C = (hs.GradientCovariance(ev) @ eye).numpy()
    found, factor = covariance_of(batches), variance_factor(samples, size)
    assert factor == pytest.approx((1 / 2) * 4 / 5)
    scale = np.abs(found).max()
    assert np.abs(found - factor * C).max() < 1e-12 * scale  # measured: 3e-16
    unbiased = C * samples / (samples - 1)
    assert np.abs(found - (1 / size - 1 / samples) * unbiased).max() < 1e-12 * scale
    assert np.abs(found - (1 / size - 1 / samples) * C).max() > 0.1 * scale  # 1/6 off


def test_drawn_minibatches_have_this_covariance_and_not_the_papers():
    ev = evaluator()
    gradients, size = sample_gradients(ev.model, N), 5
    C = covariance_of(gradients)
    drawn = np.array([gradients[draw(N, size, 3, i)].mean(0) for i in range(DRAWS)])
    away = drawn - gradients.mean(0)
    squares = (away**2).sum(1)
    error = squares.std() / np.sqrt(DRAWS)
    exact = variance_factor(N, size) * np.trace(C)
    paper = (1 / size - 1 / N) * np.trace(C)
    assert abs(squares.mean() - exact) < 4 * error  # measured: 0.6
    assert abs(squares.mean() - paper) > 4 * error  # measured: 10
    along = np.linalg.eigh(C)[1][:, -4:]
    parts = (away @ along) ** 2
    expected = variance_factor(N, size) * np.linalg.eigvalsh(C)[-4:]
    assert (np.abs(parts.mean(0) - expected) < 4 * parts.std(0) / np.sqrt(DRAWS)).all()


def test_the_result_knows_what_its_deviations_should_be():
    ev = evaluator(weight_decay=0.2)  # the same for all samples
    covariance = hs.GradientCovariance(ev)
    found = hs.noise(ev, (1,), (2, 8, "full"), 300, noise_measure=measured(covariance))
    off = np.abs(found.mean_deviation() - found.expected_deviation())
    assert (off[:2] < 4 * found.deviation_error()[:2]).all()
    assert off[2] == 0.0 == found.deviation_error()[2]
    assert found.deviation_error()[0] < 0.1 * found.mean_deviation()[0]
    with pytest.raises(hs.InputError, match="minibatches of 24 samples: expected 1 to 23"):
        variance_factor(N, N + 1)


# -- what is refused ----------------------------------------------------------------------------


def test_what_is_refused():
    ev = evaluator()
    eye = torch.eye(ev.n, dtype=torch.float64)
    pairs = eigenpairs(hs.Hessian(ev) @ eye, 3)
    other = eigenpairs(hs.GradientCovariance(ev) @ eye, 3)
    bare = hs.EigenPairs(pairs.values, pairs.residuals, pairs.converged)
    cases = [
        ({"dimensions": (0,)}, "dimension 0: expected 1 to 53, the number of parameters, or 'cla"),
        ({"dimensions": (54,)}, "dimension 54"),
        ({"dimensions": ()}, "dimensions is empty"),
        ({"num_batches": 0}, "num_batches=0"),
        ({"at_once": 0}, "at_once=0"),
        ({"batch_sizes": (N + 1,)}, "batch size 24: expected 1 to 23"),
        ({"pairs": pairs}, "pairs: has 3 of the upper end; expected the 4 largest"),
        ({"pairs": bare, "dimensions": (2,)}, "pairs: has no eigenvectors"),
        ({"pairs": pairs, "noise_pairs": pairs, "dimensions": (2,)}, "pairs are of another matrix"),
        ({"pairs": other, "noise_pairs": other, "dimensions": (2,)}, "pairs are of another matrix"),
    ]
    for options, message in cases:
        with pytest.raises(hs.InputError, match=message):
            hs.noise(ev, **{"dimensions": (1, 4), "batch_sizes": (2,), **options})
    by_batch = evaluator("batch norm, dropout", batch_norm="train")
    with pytest.raises(hs.InputError, match="each sample's loss depend on its minibatch"):
        hs.noise(by_batch)
    x, _ = data(N)
    regression = hs.Evaluator(mlp(), nn.MSELoss(), (x, torch.zeros(N, 3).double()))
    with pytest.raises(hs.InputError, match="'classes': the targets are no class indices"):
        hs.noise(regression, ("classes",), (2,))
    found = hs.noise(ev, (1, 2), (2,), 2)
    for ask, message in (
        (found.subspace_overlap, "3 eigenvectors: expected a whole number, 1 to 2"),
        (found.principal_angles, "no angles of 3 dimensions; expected one of 1, 2"),
    ):
        with pytest.raises(hs.InputError, match=message):
            ask(3)


def test_frozen_statistics_of_batch_norm_have_gradients_of_samples():
    ev = evaluator("batch norm, dropout", batch_norm="recalibrate")
    found = hs.noise(ev, (2,), (1, "full"), 4)
    assert 0 < found.subspace_overlap(2) <= 1 and np.isfinite(found.deviation[0]).all()
