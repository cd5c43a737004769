"""Errors over data sets: the jackknife, groups of samples, T without each of them."""

import numpy as np
import pytest
import torch
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum import InputError
from hessian_spectrum.algorithms import leave_group_out
from hessian_spectrum.loss.data_groups import random_groups
from hessian_spectrum.spectral import jackknife
from hessian_spectrum.spectral.jackknife import Replicates

K = 4


def network():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def samples(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (count,), generator=generator)


def evaluator(data, **options):
    torch.manual_seed(0)
    return hs.Evaluator(network(), nn.CrossEntropyLoss(), data, **options)


def rows(ev):
    """Every sample of an evaluator, inputs and label in one row."""
    return torch.cat([torch.cat([x, y[:, None]], 1) for x, y in ev.batches])


def as_set(ev):
    return {tuple(row) for row in rows(ev).tolist()}


# -- the jackknife -----------------------------------------------------------------------------


def test_of_a_mean_over_single_samples_it_is_the_classical_standard_error():
    values = np.random.default_rng(0).standard_normal(20)
    without = (values.sum() - values) / 19
    shares = np.full(20, 1 / 20)
    found = jackknife.standard_error(np.array([values.mean()]), without[:, None], shares)
    assert found == pytest.approx(values.std(ddof=1) / np.sqrt(20), rel=1e-12)


def test_of_uneven_groups_the_variance_of_a_mean_is_unbiased():
    rng, sizes = np.random.default_rng(1), np.array([2, 5, 9, 14])
    edges = np.cumsum(sizes)[:-1]
    squares = []
    for _ in range(4000):
        sums = np.array([part.sum() for part in np.split(rng.standard_normal(30), edges)])
        without = (sums.sum() - sums) / (30 - sizes)
        whole = np.array([sums.sum() / 30])
        squares.append(jackknife.standard_error(whole, without[:, None], sizes / 30) ** 2)
    assert np.mean(squares) == pytest.approx(1 / 30, rel=0.05)  # measured: 0.3 %


def test_what_only_the_probes_scatter_by_is_taken_off():
    """Half of the variance is the probes'; without the correction it would be twice as large."""
    rng, groups, probes = np.random.default_rng(2), 10, 8
    squares = []
    for _ in range(1000):
        data = rng.standard_normal((groups, 1))
        noise = rng.standard_normal((groups, probes)) * np.sqrt(probes)
        without = (data + noise) / (groups - 1)
        found = jackknife.standard_error(np.zeros(probes), without, np.full(groups, 1 / groups))
        squares.append(found**2)
    assert np.mean(squares) == pytest.approx(1 / groups, rel=0.15)  # 0.07 too much: the floor


def test_replicates_that_do_not_belong_together_are_refused():
    with pytest.raises(InputError, match="do not belong together"):
        Replicates(np.zeros((3, 5)), np.zeros((3, 2, 4)), np.full(3, 1 / 3))


# -- groups of samples ---------------------------------------------------------------------------


def test_groups_share_the_samples_out_whatever_the_order_and_the_minibatches():
    x, y = samples(97)
    groups = random_groups(evaluator((x, y), batch_size=13), K)
    order = torch.randperm(97)
    again = random_groups(evaluator((x[order], y[order]), batch_size=40), K)
    assert [as_set(g) for g in groups] == [as_set(g) for g in again]
    assert sum(len(as_set(g)) for g in groups) == 97 == sum(g.num_samples for g in groups)
    assert set.union(*map(as_set, groups)) == as_set(evaluator((x, y)))
    other = random_groups(evaluator((x, y)), K, seed=1)
    assert [as_set(g) for g in other] != [as_set(g) for g in groups]


def test_sorted_labels_are_mixed():
    x, y = samples(300)
    groups = random_groups(evaluator((x, y.sort().values)), 3)
    for group in groups:
        assert torch.bincount(rows(group)[:, -1].long(), minlength=3).min() > 15


def test_dicts_with_texts_are_divided_too():
    data = [{"x": torch.randn(5), "y": torch.tensor(i % 3), "name": str(i)} for i in range(30)]
    torch.manual_seed(0)
    ev = hs.Evaluator(
        network(),
        lambda out, batch: nn.functional.cross_entropy(out, batch["y"]),
        data,
        forward=lambda model, batch: model(batch["x"]),
        batch_size=7,
    )
    names = [name for g in random_groups(ev, 3) for batch in g.batches for name in batch["name"]]
    assert sorted(names, key=int) == [str(i) for i in range(30)]


def test_what_has_no_samples_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(), samples(20), batch_norm="train")
    with pytest.raises(InputError, match="batch_norm='eval'"):
        random_groups(ev, K)
    with pytest.raises(InputError, match="use fewer groups"):
        random_groups(evaluator(samples(5)), 40)
    with pytest.raises(InputError, match="2 or more"):
        random_groups(evaluator(samples(5)), 1)
    H = hs.Hessian(evaluator(samples(20)))
    with pytest.raises(InputError, match="Krylov vectors"):
        hs.spectral_density(H, 2, 3, estimator="lean", data_groups=K)
    with pytest.raises(InputError, match="Hessian or another"):
        hs.spectral_density(hs.Shifted(H, 1.0), 2, 3, data_groups=K)


# -- T without a group ---------------------------------------------------------------------------

KINDS = {
    "hessian": hs.Hessian,
    "gauss-newton": hs.GaussNewton,
    "covariance": hs.GradientCovariance,
    "second moment": lambda ev: hs.GradientCovariance(ev, centered=False),
}


@pytest.mark.parametrize("estimator", ["block", "slq"])
@pytest.mark.parametrize("kind", KINDS)
def test_t_without_a_group_is_that_of_the_other_samples(kind, estimator):
    """As a matrix of an evaluator of these samples alone, in the same basis; uneven weights."""
    x, y = samples(61)
    y[::7] = -100  # ignored: a group's weight is not its number of samples
    ev = evaluator((x, y), batch_size=13, weight_decay=0.1)
    operator, states = KINDS[kind](ev), []
    measure = hs.spectral_density(operator, 3, 5, estimator=estimator, on_step=states.append)
    whole = leave_group_out._Reduced(operator, states[-1], measure)
    groups = random_groups(ev, K)
    for i, group in enumerate(groups):
        part = leave_group_out._Reduced(operator.on(group), states[-1])
        rest = torch.cat([rows(g) for j, g in enumerate(groups) if j != i])
        others = KINDS[kind](evaluator((rest[:, :5], rest[:, 5].long()), weight_decay=0.1))
        expected = states[-1].compressed(others)
        for t, own in zip(whole.without(part), expected):
            np.testing.assert_allclose(t, own, atol=1e-12 * np.abs(own).max())


def test_the_groups_of_all_samples_add_up_to_t():
    """With nothing left out the replicate would be the measure itself."""
    ev, states = evaluator(samples(50)), []
    operator = hs.Hessian(ev)
    measure = hs.spectral_density(operator, 3, 5, on_step=states.append)
    t = states[-1].compressed(operator)[0]
    np.testing.assert_allclose(t, measure.rules[0].t, atol=1e-13)
    nodes, weights = leave_group_out._replicate([measure.rules[0].t], measure, operator.n)
    np.testing.assert_allclose(nodes, measure.nodes, atol=1e-13)
    np.testing.assert_allclose(weights, measure.weights, atol=1e-12)


# -- against the truth: many data sets -------------------------------------------------------------


def ask(measure, name, args):
    value = getattr(measure, name)
    return value(*args) if callable(value) else value


def test_every_query_has_one_and_it_is_unknown_without_groups():
    ev = evaluator(samples(80))
    H = hs.Hessian(ev, plan=hs.ProductPlan())  # one plan for both runs
    measure = hs.spectral_density(H, 4, 6, data_groups=K)
    t = np.linspace(-0.1, 0.5, 7)
    asked = [("density", (t,)), ("mass", (0.01, 1)), ("count", (0.01, 1)), ("quantile", (0.9,))]
    asked += [("moment", (2,)), ("energy", (0, 1)), ("trace", ()), ("frobenius_norm", ())]
    asked += [("effective_dimension", (0.1,)), ("negative_fraction", ())]
    plain = hs.spectral_density(H, 4, 6)
    np.testing.assert_array_equal(plain.weights, measure.weights)
    for name, args in asked:
        error = measure.data_error(name, *args)
        assert np.shape(error) == np.shape(ask(measure, name, args))
        assert np.all(np.isfinite(error)) and np.all(np.asarray(error) >= 0)
        assert np.isnan(plain.data_error(name, *args)).all()
    assert measure.data_error("trace") > 0
    count, mass = (measure.data_error(name, 0.01, 1) for name in ("count", "mass"))
    assert count == pytest.approx(H.n * mass)


def test_its_cost_is_as_many_products_again():
    ev = evaluator(samples(80), batch_size=16)
    H = hs.Hessian(ev)
    groups = []
    hs.spectral_density(H, 4, 6, data_groups=K, on_group=lambda: groups.append(1))
    products = ev.counts.products
    hs.spectral_density(H, 4, 6)
    plain = ev.counts.products - products
    assert len(groups) == K
    # Each group's product is over its own samples only: K of them are one over all.
    assert products == plain + K * plain


def test_it_is_kept_in_the_file(tmp_path):
    measure = hs.spectral_density(hs.Hessian(evaluator(samples(80))), 4, 6, data_groups=K)
    hs.save(tmp_path / "run.h5", measure)
    with hs.open(tmp_path / "run.h5") as run:
        again = run["density"]
    assert again.data_error("trace") == pytest.approx(measure.data_error("trace"), rel=1e-12)


def test_a_mapping_of_ranks_is_not_needed_for_one_state_twice():
    """From a state that has its steps already, as a resumed run has it."""
    H, states = hs.Hessian(evaluator(samples(80))), []
    once = hs.spectral_density(H, 4, 6, data_groups=K, on_step=states.append)
    again = hs.spectral_density(H, 4, 6, data_groups=K, state=states[-1])
    np.testing.assert_array_equal(once.replicates.nodes, again.replicates.nodes)
    assert states[-1].is_finished is False
