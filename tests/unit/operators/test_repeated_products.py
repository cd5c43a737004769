"""``H @ V`` again at the same theta: first-order graphs are formed once, where they fit."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.operators import linearization

MINIBATCHES = 3


class Model(nn.Sequential):
    """Runs out of memory in the forward passes that are named."""

    def __init__(self):
        super().__init__(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.double()
        self.log = SimpleNamespace(passes=0, failing=())

    def forward(self, x):
        self.log.passes += 1
        if self.log.passes in self.log.failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def evaluator():
    torch.manual_seed(0)
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.arange(10) % 3
    return hs.Evaluator(Model(), F.cross_entropy, (x, y), batch_size=4)


def vectors(ev, count=4):
    return torch.randn(count, ev.n, dtype=torch.float64).unbind()


def graphs_of_each(operator, ev, rows):
    """How many first-order graphs each product forms, and the products."""
    found, products = [], []
    for v in rows:
        before = ev.counts.graphs
        products.append(operator @ v)
        found.append(ev.counts.graphs - before)
    return found, torch.stack(products)


@pytest.mark.parametrize(
    "kind", [hs.Hessian, hs.GaussNewton, lambda ev: hs.Shifted(hs.Hessian(ev), 0.5)]
)
def test_graphs_are_formed_twice_and_the_products_are_the_same_bits(kind):
    ev = evaluator()
    rows = vectors(ev)
    operator, before = kind(ev), ev.counts.passes
    graphs, products = graphs_of_each(operator, ev, rows)
    assert graphs == [MINIBATCHES, MINIBATCHES, 0, 0]
    assert ev.counts.passes - before == len(rows)
    apart = torch.stack([kind(ev) @ v for v in rows])  # each the first product of its operator
    assert torch.equal(products, apart)
    block = torch.stack(rows).T
    torch.testing.assert_close(operator @ block, apart.T, rtol=1e-12, atol=1e-14)
    operator.forget()
    assert graphs_of_each(operator, ev, rows[:2])[0] == [MINIBATCHES, 0]


def test_scipys_solver_forms_them_twice():
    ev = evaluator()
    before = ev.counts.graphs
    values = scipy.sparse.linalg.eigsh(hs.Hessian(ev).to_scipy(), 2, which="LM")[0]
    assert ev.counts.products > 10
    assert ev.counts.graphs - before == 2 * MINIBATCHES
    dense = torch.linalg.eigvalsh(hs.Hessian(ev) @ torch.eye(ev.n, dtype=torch.float64)).numpy()
    largest = dense[np.argsort(abs(dense))[-2:]]
    np.testing.assert_allclose(np.sort(values), np.sort(largest), rtol=1e-10)


@pytest.mark.parametrize("keep", [False, True])
def test_a_plan_that_is_given_is_obeyed(keep):
    ev = evaluator()
    operator = hs.Hessian(ev, plan=hs.ProductPlan("reverse", keep=keep))
    graphs, _ = graphs_of_each(operator, ev, vectors(ev))
    assert graphs == ([MINIBATCHES, 0, 0, 0] if keep else [MINIBATCHES] * 4)


@pytest.mark.parametrize("fitting", [0, 1, MINIBATCHES])
def test_what_takes_more_than_half_of_the_free_memory_is_not_kept(monkeypatch, fitting):
    ev = evaluator()
    rows, operator = vectors(ev), hs.Hessian(ev)
    # At first 1000 bytes; more than 500 of them stay while this number of maps are kept.
    rest = iter([1000] + [501 - (i >= fitting) for i in range(100)])
    monkeypatch.setattr(linearization, "available", lambda world: next(rest))
    graphs, products = graphs_of_each(operator, ev, rows)
    kept = fitting == MINIBATCHES
    assert graphs == [MINIBATCHES, MINIBATCHES, *([0, 0] if kept else [MINIBATCHES] * 2)]
    assert torch.equal(products, torch.stack([hs.Hessian(ev) @ v for v in rows]))


def test_running_out_of_memory_while_graphs_are_kept_forms_them_in_each_product_again():
    ev = evaluator()
    rows, operator = vectors(ev), hs.Hessian(ev)
    apart = torch.stack([hs.Hessian(ev) @ v for v in rows])
    first = operator @ rows[0]
    ev.model.log.failing = (
        ev.model.log.passes + 2,
    )  # in the second of the graphs that are to be kept
    graphs, products = graphs_of_each(operator, ev, rows[1:])
    assert torch.equal(torch.cat([first[None], products]), apart)
    assert graphs == [2 + MINIBATCHES, MINIBATCHES, MINIBATCHES]


def test_running_out_of_memory_in_the_first_product_is_an_error():
    ev = evaluator()
    operator = hs.Hessian(ev)
    ev.model.log.failing = (ev.model.log.passes + 2,)
    with pytest.raises(torch.OutOfMemoryError):
        operator @ vectors(ev)[0]
