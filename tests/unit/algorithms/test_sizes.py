"""How many probes and steps: what is given stands, and the products are a limit."""

import itertools

import numpy as np
import pytest

from hessian_spectrum import InputError
from hessian_spectrum.algorithms.budget import (
    DEFAULT_PRODUCTS,
    ESTIMATORS,
    LEAST_PROBES,
    LEAST_STEPS,
    MAX_PROBES,
    MAX_PRODUCTS,
    choose,
)

N = 100_000
BUDGETS = [1, 2, 7, 45, 100, 180, 240, 300, 360, 1000, 1800, 20_000]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_is_given_stands(estimator):
    for b, m, target in itertools.product((2, 9, 500), (1, 13, 90), (None, 0.01)):
        assert choose(N, estimator, b, m, target_error=target) == (b, m)
        assert choose(N, estimator, b, m, num_products=b * m, target_error=target) == (b, m)
        assert choose(N, estimator, b, target_error=target)[0] == b
        assert choose(N, estimator, num_steps=m, target_error=target)[1] == m


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("target", [None, 1e-4, 0.002, 0.1])
def test_the_products_are_never_exceeded_and_a_budget_is_used_but_for_a_remainder(
    estimator, target
):
    for products in BUDGETS if target is None else BUDGETS[3:]:
        b, m = choose(N, estimator, num_products=products, target_error=target)
        assert b >= 1 and m >= 1 and b * m <= products
        assert b * (m + 1) > products  # one step more would be too much
        for given in (min(2, products), min(6, products)):
            b, m = choose(N, estimator, given, num_products=products, target_error=target)
            assert b == given and b * m <= products
            b, m = choose(N, estimator, num_steps=given, num_products=products, target_error=target)
            assert m == given and b * m <= products


def test_one_size_alone_leaves_enough_of_the_other():
    assert choose(N, num_probes=200) == (200, LEAST_STEPS)
    assert choose(N, num_steps=90) == (LEAST_PROBES, 90)
    assert choose(N, num_probes=6) == (6, 30) and choose(N, num_steps=5) == (36, 5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_a_word_they_are_180_products_and_with_a_target_at_most_1800(estimator):
    b, m = choose(N, estimator)
    assert DEFAULT_PRODUCTS == 180 and DEFAULT_PRODUCTS - max(b, m) < b * m <= DEFAULT_PRODUCTS
    b, m = choose(N, estimator, target_error=0.005)
    assert MAX_PRODUCTS == 1800 and MAX_PRODUCTS - max(b, m) < b * m <= MAX_PRODUCTS


def test_more_products_are_more_probes_and_the_block_is_not_too_wide():
    probes = [choose(N, num_products=products)[0] for products in BUDGETS]
    assert probes == sorted(probes) and probes[-1] == MAX_PROBES
    assert choose(N, num_products=180) == (12, 15)  # few products: enough steps come first
    assert choose(N, num_products=1000)[1] < 15  # many: a wider block resolves more in each


def test_a_smaller_target_takes_a_wider_block():
    probes = [choose(N, target_error=target)[0] for target in (1.0, 0.002, 0.001, 0.0005, 1e-9)]
    assert probes == sorted(probes) and len(set(probes)) > 2


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_steps_never_exceed_the_size_of_the_operator(estimator, n):
    for products, target in itertools.product((None, 7, 5000), (None, 0.01)):
        b, m = choose(n, estimator, num_products=products, target_error=target)
        assert 1 <= m <= n and b >= 1
        assert choose(n, estimator, 3, num_products=products, target_error=target)[1] <= n
    assert choose(n, estimator, 4, n) == (4, n)


def test_sizes_are_plain_integers_whatever_they_were_given_as():
    for size in choose(np.int64(N), "block", np.int32(3), np.int64(4)):
        assert type(size) is int
    assert choose(2, num_probes=np.int64(3)) == (3, 2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"estimator": "kpm"}, "estimator='kpm': expected one of block, slq, lean"),
        ({"num_probes": 1, "target_error": 0.1}, "one probe, which does not know its error"),
        ({"num_probes": 0}, "num_probes=0: expected a whole number, 1 or more"),
        ({"num_probes": True}, "num_probes=True: expected a whole number"),
        ({"num_steps": -2}, "num_steps=-2: expected a whole number"),
        ({"num_steps": 2.5}, "num_steps=2.5: expected a whole number"),
        ({"num_products": "many"}, "num_products='many': expected a whole number"),
        ({"target_error": 0.0}, "target_error=0.0: expected an L1 error, more than 0"),
        ({"target_error": float("nan")}, "target_error=nan: expected an L1 error"),
        ({"target_error": float("inf")}, "target_error=inf: expected an L1 error"),
        ({"num_steps": 21}, "operator's size 20, a whole number; use num_steps <= 20"),
        (
            {"num_probes": 5, "num_steps": 4, "num_products": 19},
            "num_probes=5, num_steps=4, num_products=19: that takes 20 products or more; leave",
        ),
        (
            {"num_probes": 5, "num_steps": 4, "num_products": 21},
            "num_probes=5, num_steps=4, num_products=21: these are 20 products; leave one",
        ),
        (
            {"num_probes": 20, "num_products": 19},
            "num_probes=20, num_products=19: that takes 20 products or more",
        ),
    ],
)
def test_sizes_of_no_use_are_refused_on_one_line(options, message):
    with pytest.raises(InputError) as caught:
        choose(20, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
