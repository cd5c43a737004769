"""Algorithms plan the products of an operator whose user did not."""

import numpy as np
import pytest
import torch
from small_networks import data, mlp
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.planning import plan_choice, planned_operator, product_planner
from hessian_spectrum.planning.planned_operator import planned

DEFAULT = hs.ProductPlan("linearize", keep=True)  # of ten steps and more, not calibrated


@pytest.fixture(autouse=True)
def no_calibration(monkeypatch):
    """A slow machine must not decide: every run here counts as short."""
    monkeypatch.setattr(plan_choice, "RUN_OVER_CALIBRATION", float("inf"))


@pytest.fixture
def plans(monkeypatch):
    """The sizes of every plan that is made."""
    made, plan = [], product_planner.plan

    def noted(evaluator, theta, num_vectors, num_steps, **options):
        made.append((num_vectors, num_steps, options["kept"]))
        return plan(evaluator, theta, num_vectors, num_steps, **options)

    monkeypatch.setattr(product_planner, "plan", noted)
    return made


@pytest.fixture
def ev():
    return hs.Evaluator(mlp(), F.cross_entropy, data(40), batch_size=16)


def test_an_unplanned_matrix_is_planned_and_stays_as_it_is_itself(ev):
    hessian = hs.Hessian(ev)
    found = planned(hessian, 4, 10, kept=44)
    assert (found.is_planned, found.plan) == (True, DEFAULT)
    assert (hessian.is_planned, hessian.plan) == (False, hs.ProductPlan())
    v = torch.randn(ev.n, 3, dtype=ev.dtype)
    torch.testing.assert_close(found @ v, hessian @ v, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [hs.GaussNewton, hs.Fisher, hs.GradientCovariance])
def test_every_curvature_matrix_is_planned(ev, make):
    ev = hs.Evaluator(mlp(), torch.nn.CrossEntropyLoss(), data(40), batch_size=16)
    found, v = planned(make(ev), 2, 10, kept=22), torch.randn(ev.n, dtype=ev.dtype)
    assert found.is_planned and type(found) is make
    torch.testing.assert_close(found @ v, make(ev) @ v, rtol=1e-12, atol=1e-14)


def test_a_forced_plan_and_a_stored_matrix_are_left_alone(ev, plans):
    for operator in (hs.Hessian(ev, plan=hs.ProductPlan()), hs.Dense(torch.eye(3))):
        assert planned(operator, 4, 10, kept=44) is operator
        shifted = hs.Shifted(operator, 1.0)
        assert planned(shifted, 4, 10, kept=44) is shifted
    assert plans == []


def test_the_matrix_inside_of_transforms_is_planned(ev, plans):
    hessian = hs.Hessian(ev)
    name = ev.layout.names[0]
    block = hs.Restricted(hessian, name)
    u = torch.eye(block.n, dtype=ev.dtype)[:2]
    operator = hs.Shifted(
        hs.Preconditioned(hs.Deflated(block, u), torch.full((block.n,), 2.0, dtype=ev.dtype)), 0.1
    )
    found = planned(operator, 4, 10, kept=44)
    assert found.base.base.base.base.plan == DEFAULT and not hessian.is_planned
    ((_, _, kept),) = plans
    assert kept == -(-44 * block.n // ev.n)  # vectors of the block, in those of the whole matrix
    v = torch.randn(block.n, 3, dtype=ev.dtype)
    torch.testing.assert_close(found @ v, operator @ v, rtol=1e-12, atol=1e-14)


def test_algorithms_plan_and_keep_their_products(ev, plans):
    hessian = hs.Hessian(ev)
    graphs = {}
    for name, run in (
        ("density", lambda h: hs.spectral_density(h, num_probes=3, num_steps=12)),
        ("blocks", lambda h: hs.spectral_densities(h, hs.layer_blocks(h), 3, 12)),
        ("pairs", lambda h: hs.eigenpairs(h, 2)),
        ("near", lambda h: hs.eigenpairs_near(h, 0.05)),
        ("solution", lambda h: hs.solve(h, torch.ones(h.n), 10.0)),
    ):
        plans.clear()
        passes, before = ev.counts.passes, ev.counts.graphs
        run(hessian)
        graphs[name] = ev.counts.graphs - before
        assert len(plans) == 1, name
        # Once a minibatch, and for what is checked in other arithmetic; not once a pass.
        assert graphs[name] <= 3 * 3 < 3 * (ev.counts.passes - passes), name
    assert not hessian.is_planned


def test_planned_and_forced_products_give_the_same_results(ev):
    forced, free = hs.Hessian(ev, plan=hs.ProductPlan()), hs.Hessian(ev)
    a, b = (hs.eigenpairs(h, 3).values for h in (forced, free))
    np.testing.assert_allclose(a, b, rtol=1e-9)
    a, b = (hs.spectral_density(h, num_probes=3, num_steps=12).trace for h in (forced, free))
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_alignment_and_a_map_are_planned_once(ev, plans):
    hs.alignment(ev, (10, "full"), num_batches=7, at_once=4)
    assert plans == [(4, 3, 8)]  # two blocks of gradients, and one
    plans.clear()
    hs.curvature_map(ev, hs.directions.random(ev), ([-0.1, 0.1], [0.0, 0.1]))
    assert len(plans) == 1


def test_points_share_the_plan_of_the_first_one(ev, plans):
    make = planned_operator.planned_once(hs.Hessian, 1, 25, kept=81)
    first, second = make(ev, ev.theta), make(ev, 1.1 * ev.theta)
    assert first.plan == second.plan == DEFAULT and len(plans) == 1
    torch.testing.assert_close(second.theta, 1.1 * ev.theta)
    forced = planned_operator.planned_once(
        lambda ev, theta: hs.Hessian(ev, theta, hs.ProductPlan()), 1, 25, kept=81
    )
    assert forced(ev, ev.theta).plan == hs.ProductPlan() and len(plans) == 1


def test_vectors_that_do_not_fit_are_refused_before_a_product(ev, monkeypatch):
    monkeypatch.setattr(product_planner, "available", lambda world, host=False: 10 * ev.n * 8)
    before = ev.counts.passes
    with pytest.raises(hs.InputError, match="the Krylov vectors take"):
        hs.spectral_density(hs.Hessian(ev), num_probes=3, num_steps=12)
    assert ev.counts.passes == before


def test_a_space_of_eigenpairs_is_as_large_as_the_memory(ev, monkeypatch):
    held = []
    monkeypatch.setattr(
        product_planner, "available", lambda world, host=False: 100 * ev.n * ev.dtype.itemsize
    )
    hessian = hs.Hessian(ev, plan=hs.ProductPlan())
    hs.eigenpairs(hessian, 1, on_step=lambda state: held.append(state.capacity))
    assert set(held) == {int(0.8 * 0.5 * 100)}
