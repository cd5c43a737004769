"""Many points at once: the losses of one by one, whatever the chunk, the mode and the range."""

import numpy as np
import pytest
import torch
from image_networks import PLANS, conv, evaluator, images, mlp, plane
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.landscape import (
    batchnorm_folding,
    point_evaluation,
    point_passes,
    point_planner,
)
from hessian_spectrum.landscape.parameter_points import Points
from hessian_spectrum.landscape.point_evaluation import evaluate, ranges
from hessian_spectrum.landscape.point_passes import PointPlan
from hessian_spectrum.landscape.tasks import PointTask, compute


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_gives_the_loss_and_accuracy_of_each_point(name):
    ev, test = evaluator(weight_decay=0.1), evaluator(samples=6, weight_decay=0.3)
    some = plane(ev)
    found = evaluate(ev, some, plan=PLANS[name], test=test)
    x, y = images(11)
    for i, theta in enumerate(some.rows(0, 7)):
        torch.nn.utils.vector_to_parameters(theta, ev.model.parameters())
        with torch.no_grad():
            outputs = ev.model(x)
        expected = F.cross_entropy(outputs, y).item() + 0.05 * theta.square().sum().item()
        assert found["loss"][i] == pytest.approx(expected, rel=1e-13)
        assert found["accuracy"][i] == (outputs.argmax(1) == y).double().mean().item()
    # The test evaluator's own weight decay, not that of the training evaluator.
    expected = test.loss(some.rows(0, 7)).numpy()
    np.testing.assert_allclose(found["test_loss"], expected, rtol=1e-13)
    test.weight_decay = 0.0
    without = evaluate(ev, some, plan=PLANS[name], test=test)
    decay = 0.15 * some.rows(0, 7).square().sum(1).numpy()
    np.testing.assert_allclose(without["test_loss"], expected - decay, rtol=1e-12)
    np.testing.assert_array_equal(without["loss"], found["loss"])


@pytest.mark.parametrize("name", PLANS)
def test_a_points_bits_do_not_depend_on_the_range_it_is_computed_in(name):
    ev, plan = evaluator(), PLANS[name]
    some = plane(ev, 17)
    whole = evaluate(ev, some, plan=plan)
    for parts in ([range(0, 6), range(6, 17)], ranges(17, plan), ranges(17, plan, at_least=7)):
        if plan.together > 1 and any(part.start % plan.chunk for part in parts):
            continue  # only whole chunks are the same call
        joined = [evaluate(ev, some, r.start, r.stop, plan=plan)["loss"] for r in parts]
        assert np.array_equal(np.concatenate(joined), whole["loss"])
    assert [i for part in ranges(17, plan, 7) for i in part] == list(range(17))


@pytest.mark.parametrize("batch_norm", ["eval", "train", "recalibrate"])
def test_batch_norm_is_normalized_as_the_evaluator_says(batch_norm):
    model = conv()
    with torch.no_grad():
        model[1].running_mean.normal_()
    options = {"batch_size": 4, "batch_norm": batch_norm}
    ev = hs.Evaluator(model, F.cross_entropy, images(9, 2, 5), **options)
    some = plane(ev, 3)
    for plan in (PointPlan(channels_last=True, batch_size=2), PointPlan(chunk=2, together=2)):
        if batch_norm == "recalibrate":
            plan = PointPlan()
        found = evaluate(ev, some, plan=plan)
        np.testing.assert_allclose(found["loss"], ev.loss(some.rows(0, 3)), rtol=1e-12)


def test_test_data_is_normalized_by_the_statistics_of_the_training_data():
    model = conv()
    options = {"batch_size": 4, "batch_norm": "recalibrate"}
    ev = hs.Evaluator(model, F.cross_entropy, images(9, 2, 5), **options)
    test = hs.Evaluator(model, F.cross_entropy, images(6, 2, 5, seed=1), **options)
    some = plane(ev, 2)
    found = evaluate(ev, some, test=test)["test_loss"]
    for i, theta in enumerate(some.rows(0, 2)):
        torch.nn.utils.vector_to_parameters(theta, model.parameters())
        model[1].running_mean, model[1].running_var = ev.statistics(theta).values()
        same = hs.Evaluator(model, F.cross_entropy, images(6, 2, 5, seed=1))
        assert found[i] == pytest.approx(same.loss().item(), rel=1e-12)


def test_what_overflows_is_recorded_and_the_others_are_not_touched():
    ev = evaluator(mlp(nn.ReLU))
    some = Points(torch.stack([ev.theta, 1e200 * ev.theta]), np.array([[1, 0], [0, 1], [1.5, 0]]))
    for plan in PLANS.values():
        found = evaluate(ev, some, plan=plan)
        assert not np.isfinite(found["loss"][1])
        assert np.isnan(found["accuracy"][1])
        np.testing.assert_allclose(
            found["loss"][[0, 2]], ev.loss(torch.stack([ev.theta, 1.5 * ev.theta])), rtol=1e-13
        )


def test_ends_of_a_line_are_the_vectors_bit_for_bit():
    theta0, theta1 = torch.randn(2, 1000)
    rows = Points(torch.stack([theta0, theta1]), hs.paths.linear([0.0, 0.3, 1.0])).rows(0, 3)
    assert torch.equal(rows[0], theta0)
    assert torch.equal(rows[2], theta1)
    exact = 0.7 * theta0.double() + 0.3 * theta1.double()
    # Rounded once: half a unit in the last place.
    assert ((rows[1] - exact).abs() <= 2**-24 * exact.abs() * (1 + 1e-6)).all()


def test_first_layers_are_computed_once_for_each_vector_and_minibatch():
    ev = evaluator()
    some = plane(ev, 8)
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.linear:
                seen.append(args[0].shape[-1])
            return func(*args, **(kwargs or {}))

    with Watch():
        evaluate(ev, some, plan=PointPlan(chunk=8, together=2, superposed=True))
    # Three minibatches: the first layer at three vectors each, and no other.
    assert seen == 3 * 3 * [12]


def test_cancellation_is_that_of_the_largest_terms():
    e = torch.eye(2, dtype=torch.float64)
    assert Points(e, np.array([[1.0, 0.0]])).cancellation() == 1.0
    near = torch.stack([e[0], e[0] + 1e-3 * e[1]])
    assert Points(near, np.array([[1000.0, -999.0]])).cancellation() == pytest.approx(
        1999 / np.sqrt(1 + 0.999**2), rel=1e-3
    )


def test_the_plan_is_measured_and_gives_the_same_losses():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 10), nn.Tanh(), nn.Linear(10, 3))
    data = torch.randn(2000, 200), torch.randint(3, (2000,))
    ev = hs.Evaluator(model, F.cross_entropy, data)
    places = np.random.default_rng(0).random((2000, 2))
    many = Points.around(ev.theta, 0.1 * torch.randn(2, ev.n), places)
    plan, trials = point_planner.plan(ev, many)
    assert len(trials) > 1
    fastest = min(trials, key=lambda trial: trial.seconds).plan  # which one is the clock's affair
    assert (plan.together, plan.superposed) == (fastest.together, fastest.superposed)
    assert max(trial.plan.together for trial in trials) > 1
    assert max(trial.error for trial in trials) < 1e-5
    for one in {plan, *(trial.plan for trial in trials)}:
        found = evaluate(ev, many, 0, 40, plan=one)
        np.testing.assert_allclose(found["loss"], ev.loss(many.rows(0, 40)), rtol=1e-5)
    few = Points.of(ev.theta[None])
    assert point_planner.plan(ev, few)[0].together == 1


def test_what_vmap_does_not_know_is_done_one_by_one():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(12, 3)

        def forward(self, x):
            y = self.linear(x.flatten(1))
            return y if y.sum().item() > 0 else 2 * y

    ev = evaluator(Branching().double())
    many = plane(ev, 5000)
    plan, _ = point_planner.plan(ev, many)
    assert plan.together == 1
    np.testing.assert_allclose(
        evaluate(ev, many, 0, 5, plan=plan)["loss"], ev.loss(many.rows(0, 5)), rtol=1e-13
    )


def test_outputs_are_those_of_the_model():
    ev = evaluator()
    some = plane(ev, 5)
    x, _ = images(11)
    for plan in PLANS.values():
        found = torch.cat([out for out, _ in point_passes.outputs(ev, some, 1, 4, plan)], dim=1)
        for row, theta in zip(found, some.rows(1, 4)):
            torch.nn.utils.vector_to_parameters(theta, ev.model.parameters())
            assert (row - ev.model(x)).abs().max() < 1e-13


def test_sequences_count_targets_that_are_not_ignored():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x).transpose(1, 2)  # (B, C, T)

    model = Tagger().double()
    x, y = torch.randn(5, 6, 4, dtype=torch.float64), torch.randint(3, (5, 6))
    y[:, 4:] = -100
    ev = hs.Evaluator(model, F.cross_entropy, (x, y), batch_size=2)
    expected = (model(x).argmax(1) == y)[:, :4].double().mean().item()
    for plan in PLANS.values():
        assert evaluate(ev, Points.of(ev.theta[None]), plan=plan)["accuracy"] == [expected]


def test_an_ignored_label_that_is_a_class_does_not_count():
    model, (x, y) = mlp(), images(11)
    y = model(x).argmax(1)
    ignored = int(y[0])
    y[1::2] = (y[1::2] + 1) % 3
    loss_fn = nn.CrossEntropyLoss(ignore_index=ignored)
    ev = hs.Evaluator(model, loss_fn, (x, y), batch_size=4)
    right, kept = model(x).argmax(1) == y, y != ignored
    found = evaluate(ev, Points.of(ev.theta[None]))["accuracy"]
    assert found == [(right & kept).sum().item() / kept.sum().item()]


def residual():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(2, 2, 3, padding=1, bias=i > 0) for i in range(3))
            self.na, self.nb = nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False)
            self.nc = nn.BatchNorm2d(2)
            self.head = nn.Linear(2, 3)
            for norm in (self.na, self.nb, self.nc):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2.0)

        def forward(self, x):
            x = self.nb(self.b(self.na(self.a(x)).relu()))
            y = self.c(x)  # goes into its BatchNorm and around it
            return self.head((self.nc(y) + y).mean((2, 3)))

    return Residual().double()


@pytest.mark.parametrize("batch_norm", ["eval", "recalibrate", "train"])
def test_batch_norm_is_folded_only_where_nothing_else_sees_what_it_is_given(batch_norm):
    model = residual()
    options = {"batch_size": 4, "batch_norm": batch_norm}
    ev = hs.Evaluator(model, F.cross_entropy, images(9, 2, 5), **options)
    some = plane(ev, 3)
    found = evaluate(ev, some, plan=PointPlan(folded=True, channels_last=True))
    np.testing.assert_allclose(found["loss"], ev.loss(some.rows(0, 3)), rtol=1e-11)
    with ev.evaluation_mode():
        part = next(ev.parts(ev.statistics(ev.theta)))
        pairs = batchnorm_folding.pairs(ev, part, ev.theta)
    expected = {} if batch_norm == "train" else {model.a: model.na, model.b: model.nb}
    assert pairs == expected
    assert "forward" not in vars(model.a)


def test_chunks_are_cut_at_their_multiples_wherever_a_range_begins():
    cut = point_evaluation._chunks(6, 17, PointPlan(chunk=4))
    assert cut == [range(6, 8), range(8, 12), range(12, 16), range(16, 17)]
    assert point_evaluation._chunks(8, 8, PointPlan(chunk=4)) == []


def test_regressions_have_no_accuracy():
    model = nn.Linear(3, 1).double()
    ev = hs.Evaluator(model, nn.MSELoss(), (torch.ones(4, 3), torch.ones(4, 1)))
    assert list(evaluate(ev, Points.of(ev.theta[None]))) == ["loss"]
    with pytest.raises(hs.InputError, match="class indices"):
        evaluate(ev, Points.of(ev.theta[None]), quantities=("accuracy",))


def test_a_task_is_its_points_and_what_becomes_of_them():
    ev = evaluator()
    task = PointTask(plane(ev, 5), lambda values: values["loss"].sum())
    assert compute(ev, task) == pytest.approx(ev.loss(task.points.rows(0, 5)).sum().item())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ev: evaluate(ev, plane(ev), 3, 99), "points 3 to 99"),
        (lambda ev: evaluate(ev, Points.of(torch.ones(2, 5))), "the points have 5 entries"),
        (lambda ev: Points(torch.ones(2, 5), np.ones((3, 4))), r"weights of shape \(3, 4\)"),
        (lambda ev: Points(torch.full((1, 2), torch.nan), np.ones((1, 1))), "NaN or infinite"),
        (lambda ev: evaluate(ev, plane(ev), quantities=("los",)), "expected some of loss, acc"),
        (lambda ev: PointPlan(chunk=2, together=4), "together <= chunk"),
        (
            lambda ev: evaluate(ev, plane(ev), test=evaluator(parameters=["1.*"])),
            "the test evaluator has other parameters",
        ),
    ],
)
def test_unusable_input_is_refused(make, message):
    with pytest.raises(hs.InputError, match=message):
        make(evaluator())
