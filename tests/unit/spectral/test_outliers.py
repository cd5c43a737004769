"""What follows from eigenpairs: ratios, signs, participation, and a measure with exact ends."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prescribed_spectra import with_spectrum

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.spectral import outliers
from hessian_spectrum.spectral.eigenpairs import EigenPairs


def some_pairs(values, residuals=0.0, converged=True, vectors=None):
    values = np.array(values, dtype=float)
    return EigenPairs(
        values,
        np.broadcast_to(residuals, values.shape).astype(float),
        np.broadcast_to(converged, values.shape),
        vectors,
    )


def test_ratios_hold_every_spectrum_that_the_residuals_allow():
    pairs = some_pairs([0.5, 1.0, 2.0, 8.0], [0.1, 0.1, 0.2, 0.4])
    cases = [
        (outliers.outlier_ratio(pairs, 3), (8.0, 0.4), (1.0, 0.1)),
        (outliers.condition_number(pairs), (8.0, 0.4), (0.5, 0.1)),
        (outliers.condition_number(pairs, -0.2), (7.8, 0.4), (0.3, 0.1)),
    ]
    for found, (a, da), (b, db) in cases:
        assert found.value == pytest.approx(a / b)
        ends = [(a + s * da) / (b + t * db) for s in (-1, 1) for t in (-1, 1)]
        assert found[1:] == pytest.approx((min(ends), max(ends)))


def test_a_damped_condition_number_is_that_of_the_damped_matrix():
    matrix = with_spectrum([-0.5, 0.1, 3.0])
    values = torch.linalg.eigvalsh(matrix + 0.7 * torch.eye(3, dtype=torch.float64))
    found = outliers.condition_number(some_pairs([-0.5, 0.1, 3.0]), 0.7)
    assert found.value == pytest.approx((values[-1] / values[0]).item())


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_sign_of_the_smallest_is_certain_only_where_its_residual_ends_before_0(scale):
    for value, residual, verdict in [
        (-2.0, 1.0, "negative"),
        (-2.0, 3.0, "undecided"),
        (2.0, 1.0, "positive"),
        (2.0, 2.0, "undecided"),
    ]:
        found = outliers.smallest(some_pairs([scale * value, 9 * scale], [scale * residual, 0.0]))
        assert found.verdict == verdict
        expected = (scale * (value - residual), scale * (value + residual))
        assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)


def test_a_spectrum_in_units_of_its_kth_eigenvalue():
    pairs = some_pairs(np.arange(1.0, 13.0), 0.3)
    found = outliers.normalized(pairs)
    np.testing.assert_allclose(found.values, pairs.values / 3)
    np.testing.assert_allclose(found.residuals, 0.1)
    np.testing.assert_array_equal(outliers.normalized(pairs, 12).values, pairs.values)


def measured(spectrum, num_probes=6, num_steps=10):
    operator = hs.Dense(with_spectrum(spectrum))
    return hs.spectral_density(operator, num_probes, num_steps)


SPECTRUM = np.concatenate([[-0.5, -0.3], np.linspace(-0.05, 0.2, 90), [1.0, 2.0, 4.0]])


def test_a_rescaled_measure_answers_as_the_rescaled_matrix_does():
    found = outliers.rescaled(measured(SPECTRUM), 4.0)
    expected = measured(SPECTRUM / 4.0)
    for query in (("count", 0.02, 0.6), ("trace",), ("quantile", 0.3), ("density", 0.01)):
        name, *numbers = query
        assert found.interval(*query) == pytest.approx(expected.interval(*query), rel=1e-5)
        if numbers:
            value = getattr(found, name)(*numbers)
            assert value == pytest.approx(getattr(expected, name)(*numbers), rel=1e-6)


def test_participation_is_the_square_of_each_layers_entries_and_sums_to_1():
    sizes = {"0.weight": 6, "0.bias": 2, "2.weight": 4}
    rows = np.random.default_rng(0).normal(size=(3, 12))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = outliers.participation(rows, sizes)
    np.testing.assert_allclose(found[:, 1], (rows[:, 6:8] ** 2).sum(axis=1))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    layers = outliers.by_layer(sizes)
    assert layers == {"0": 8, "2": 4}
    merged = outliers.participation(rows, layers)
    np.testing.assert_allclose(merged[:, 0], found[:, :2].sum(axis=1))
    # Of the subspace: what the projection onto a layer keeps of it.
    projection = np.diag([1.0] * 8 + [0.0] * 4)
    trace = np.trace(projection @ rows.T @ rows) / 3
    assert merged.mean(axis=0)[0] == pytest.approx(trace)


@pytest.mark.parametrize(
    ("sizes", "layers"),
    [
        ({"a.w": 1, "b.w": 2, "a.b": 3}, {"a.w": 1, "b.w": 2, "a.b": 3}),  # apart: as they are
        ({"theta": 5}, {"theta": 5}),
        ({"a.b.w": 1, "a.b.v": 1, "a.c.w": 1}, {"a.b": 2, "a.c": 1}),
    ],
)
def test_parameters_of_a_layer_are_counted_together(sizes, layers):
    assert outliers.by_layer(sizes) == layers


# -- a measure and pairs together -----------------------------------------------------------------


def ends(low=2, high=3, **options):
    return some_pairs([*SPECTRUM[:low], *SPECTRUM[-high:]] if low else SPECTRUM[-high:], **options)


def test_a_refined_measure_has_the_pairs_and_the_mass_of_the_rest():
    measure, n = measured(SPECTRUM), len(SPECTRUM)
    values = np.array([-0.5, -0.3, 1.0, 2.0, 4.0])
    assert measure.certified[np.searchsorted(measure.nodes, values - 1e-9)].all()
    found = outliers.refined(measure, ends())
    for value in values:  # once each
        assert found.mass(value - 1e-6, value + 1e-6) == pytest.approx(1 / n)
    assert found.count(-0.4999, -0.3001) == found.count(0.3, 0.9999) == 0
    assert found.support == (-0.5, 4.0)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)
    # What lies between keeps its shape.
    inside = (measure.nodes > -0.29) & (measure.nodes < 0.99)
    expected = np.average(measure.nodes[inside], weights=measure.weights.mean(axis=0)[inside])
    assert (found.trace - values.sum()) / (n - 5) == pytest.approx(expected, rel=1e-3)


def test_a_measure_that_knows_every_eigenvalue_stays_as_it_is():
    measure = measured(SPECTRUM, 10, 10)
    found = outliers.refined(measure, ends())
    np.testing.assert_allclose(found.nodes, measure.nodes, atol=1e-12)
    np.testing.assert_allclose(found.weights, measure.weights, atol=1e-12)


def test_the_log_determinant_near_its_pole_needs_the_pairs():
    """damping just above -lambda_min: quadrature from few steps does not see how near it is."""
    damping = 0.5 + 1e-6
    exact = np.log(SPECTRUM + damping).sum()
    plain, better = [], []
    for seed in range(16):
        operator = hs.Dense(with_spectrum(SPECTRUM))
        measure = hs.spectral_density(operator, 4, 4, seed, estimator="slq")
        plain.append(measure.log_determinant(damping) - exact)
        better.append(outliers.refined(measure, ends()).log_determinant(damping) - exact)
    # Root mean squares, measured: 11.9 and 1.3.
    assert np.linalg.norm(better) < np.linalg.norm(plain) / 4


def test_the_refined_interval_covers():
    damping = 0.6
    exact = np.log(SPECTRUM + damping).sum()
    covered = 0
    for seed in range(20):
        measure = hs.spectral_density(hs.Dense(with_spectrum(SPECTRUM)), 6, 8, seed)
        low, high = outliers.refined(measure, ends()).interval("log_determinant", damping)
        covered += low <= exact <= high
    assert covered >= 17  # 19 expected


def test_only_converged_pairs_from_the_ends_inwards_are_taken():
    measure = measured(SPECTRUM)
    pairs = ends(converged=np.array([True, False, True, False, True]))
    found = outliers.refined(measure, pairs)
    assert found.mass(4.0, 4.0) > 0.9 / len(SPECTRUM)
    assert set(found.nodes) >= {-0.5, 4.0}
    assert 1.0 not in found.nodes and -0.3 not in found.nodes
    hidden = replace(pairs, converged=np.array([False, True, True, True, True]))
    assert -0.3 not in outliers.refined(measure, hidden).nodes  # -0.5 might be anywhere beyond it
    told = outliers.refined(measure, replace(pairs, num_lower=2))
    np.testing.assert_array_equal(told.nodes, found.nodes)
    one_end = outliers.refined(measure, ends(0))
    assert one_end.support[0] == measure.support[0] and one_end.support[1] == 4.0


def test_questions_without_an_answer_are_refused():
    pairs = some_pairs([-1.0, 0.05, 3.0], 0.1)
    measure = measured(SPECTRUM)
    rows = np.eye(3)
    for ask, message in [
        (lambda: outliers.outlier_ratio(pairs, 2), r"eigenvalue 2 is 0.05, give or take 0.1"),
        (
            lambda: outliers.outlier_ratio(pairs, 4),
            "eigenvalue 4, but 3 were computed at the upper end",
        ),
        (lambda: outliers.condition_number(pairs), "use damping > 1.1"),
        (lambda: outliers.condition_number(pairs, 1.05), "at least -0.05"),
        (lambda: outliers.normalized(pairs, 3), "eigenvalue 3 is -1; expected one above 0"),
        (lambda: outliers.smallest(replace(pairs, num_lower=0)), "at the lower end"),
        (lambda: outliers.condition_number(replace(pairs, num_lower=0), 9.0), "at the lower end"),
        (lambda: outliers.outlier_ratio(replace(pairs, num_lower=2), 2), "but 1 were computed"),
        (lambda: outliers.rescaled(pairs, 0.0), r"rescaled\(unit=0.0\)"),
        (lambda: outliers.participation(rows, {"a": 2}), r"shape \(3, 3\) and layers of 2 entries"),
        (lambda: outliers.participation(rows, {"a": 3, "b": 0}), "layers of 1 entry or more"),
        (lambda: outliers.refined(measure, ends(converged=False)), "no outermost pair"),
        (lambda: outliers.refined(measure, some_pairs([-9.0, -8.0, 9.0])), None),
    ]:
        if message is None:
            assert ask().support == (-9.0, 9.0)
            continue
        with pytest.raises(InputError, match=message) as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("which", "lower", "upper"),
    [("largest", 0, 3), ("smallest", 3, 0), ("both", 3, 3), ("magnitude", 1, 2)],
)
def test_computed_pairs_know_which_end_they_are_of(which, lower, upper):
    pairs = hs.eigenpairs(hs.Dense(with_spectrum([*SPECTRUM, -3.0])), 3, which)
    assert pairs.num_lower == lower and len(pairs) == lower + upper
    for ask, known in [(outliers.smallest, lower), (lambda p: outliers.eigenvalue(p, 1), upper)]:
        if known:
            ask(pairs)
        else:
            with pytest.raises(InputError, match="end"):
                ask(pairs)
