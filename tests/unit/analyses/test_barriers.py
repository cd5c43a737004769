"""The loss between iterates: closed forms, a known barrier, rounding, windows of a run."""

import numpy as np
import pytest
import torch
from hand import bowl, objective, tensor
from small_networks import data, mlp
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.analyses.barriers import barriers_task
from hessian_spectrum.landscape.rounding import rounding

ONE_BY_ONE = hs.PointPlan()


def descent(curvature, start, lr, count):
    """Iterates of gradient descent on theta^T A theta / 2, A diagonal, in closed form."""
    factor = (1 - lr * np.asarray(curvature)) ** np.arange(count)[:, None]
    return tensor(factor * np.asarray(start))


def test_an_update_that_bounces_between_the_walls_of_a_valley_has_a_floor_and_no_barrier():
    curvature, lr = np.array([10.0, 0.01]), 0.15  # 1 - 0.15 * 10 = -0.5: from wall to wall
    ev = bowl(torch.diag(tensor(curvature)), (1.0, 1.0))
    iterates = descent(curvature, (1.0, 2.0), lr, 8)
    found = hs.barriers(ev, iterates)
    w = iterates.numpy()
    t = np.linspace(0, 1, 12)[:, None]
    for i in range(7):
        loss = ((1 - t) * w[i] + t * w[i + 1]) ** 2 @ curvature / 2
        assert found.loss[i] == pytest.approx(loss, rel=1e-13)
        assert found.floor[i] == pytest.approx(loss.min(), rel=1e-13)
        assert found.floor_at[i] == t[loss.argmin()]
        # A parabola along the update, up to the grid's spacing: 10 (1.5 x)^2 / 2 = 11.25 x^2.
        height = (loss[0] + loss[-1]) / 2 - loss.min()
        assert found.height_above_floor[i] == pytest.approx(height, rel=1e-12)
        assert height == pytest.approx(0.278 * 11.25 * w[i, 0] ** 2, rel=0.02)
    assert (found.rise < 0).all()
    assert found.count() == (0, 7, 0)
    updates = np.diff(w, axis=0)
    lengths = np.linalg.norm(updates, axis=1)
    cosines = (updates[1:] * updates[:-1]).sum(1) / lengths[1:] / lengths[:-1]
    assert np.isnan(found.cosine[0])
    assert found.cosine[1:] == pytest.approx(cosines, rel=1e-12)
    assert found.cosine[1] < -0.999
    assert found.step_length == pytest.approx(lengths, rel=1e-14)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("points", [1, 3, 10])
def test_the_barrier_of_a_double_well(scale, points):
    ev = objective(lambda w: scale * ((w**2 - 1) ** 2).sum(), (0.5,))
    found = hs.barriers(ev, tensor([[-1.0], [1.0], [0.8], [1.1]]), points)
    inner = np.linspace(0, 1, points + 2)[1:-1]
    top = ((2 * inner - 1) ** 2 - 1) ** 2
    assert found.rise[0] == pytest.approx(scale * top.max(), rel=1e-12)
    assert found.is_barrier.tolist() == [True, False, False]
    assert found.count().barriers == 1
    # The ends of the first are the minima: the iterates are not above their floor.
    assert found.height_above_floor[0] == 0.0


def test_one_segment_is_the_line_that_interpolate_evaluates():
    ev = hs.Evaluator(mlp(), F.cross_entropy, data(), batch_size=4)
    torch.manual_seed(1)
    rows = ev.theta + 0.3 * torch.randn(4, ev.n, dtype=ev.dtype)
    found = hs.barriers(ev, rows, plan=ONE_BY_ONE)
    for i in range(3):
        line = hs.interpolate(ev, rows[i], rows[i + 1], 12, plan=ONE_BY_ONE)
        assert np.array_equal(found.t, line.t)
        for name, values in line.values.items():
            assert np.array_equal(found.values[name][i], values), name


def test_iterates_of_several_windows_are_not_joined():
    ev = bowl(torch.diag(tensor([2.0, 1.0])), (1.0, 1.0))
    rows = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps, epochs = [0, 10, 20, 500, 510, 530], [0, 0, 1, 25, 25, 26]
    found = hs.barriers(ev, rows, 4, steps=steps, epochs=epochs)
    assert found.start.tolist() == [0, 10, 500]
    assert found.stop.tolist() == [10, 20, 510]
    assert found.epoch.tolist() == [1, 1, 26]
    assert np.isnan(found.cosine).tolist() == [True, False, True]
    for row, i in zip(found.loss, (0, 1, 3)):
        assert row[0] == ev.loss(rows[i]).item()
        assert row[-1] == ev.loss(rows[i + 1]).item()
    assert found.count(26).segments == 1
    assert found.epochs.tolist() == [1, 26]
    with pytest.raises(hs.InputError, match="no segment is of epoch 3; the epochs are: 1, 26"):
        found.count(3)
    points = barriers_task(ev, rows, 4, steps).points
    assert len(points) == 3 * 4 + 5  # an iterate that two segments share, once


def test_a_segment_that_is_not_finite_is_unknown():
    ev = objective(lambda w: (w.sum() - 0.5).log() ** 2, (2.0,))
    found = hs.barriers(ev, tensor([[2.0], [3.0], [0.2], [1.5]]))
    assert found.is_known.tolist() == [True, False, False]
    assert np.isnan(found.rise).tolist() == [False, True, True]
    assert np.isnan(found.floor[1]) and np.isnan(found.height_above_floor[1])
    assert np.isnan(found.rounding).tolist() == [False, True, True]
    assert found.count() == (0, 1, 2)


def test_what_is_no_sequence_of_iterates_is_refused():
    ev = bowl(torch.diag(tensor([2.0, 1.0])), (1.0, 1.0))
    rows = torch.ones(3, 2, dtype=torch.float64)
    for wrong, options, said in (
        (rows[:1], {}, "1 iterates; expected two or more"),
        (rows, {"steps": [0, 2, 2]}, "steps do not ascend"),
        (rows, {"epochs": [0, 1]}, "epochs of shape"),
        (rows, {"num_points": 0}, "num_points=0: expected a whole number"),
        (rows[:, :1], {}, r"shape \(1,\)"),
    ):
        with pytest.raises(hs.InputError, match=said):
            hs.barriers(ev, wrong, **options)


# -- rounding ------------------------------------------------------------------------------------


def test_the_bound_is_six_standard_deviations_of_the_errors():
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 12)
    a = rng.normal(size=(400, 3))
    smooth = 3 + a[:, :1] * t + a[:, 1:2] * t**2 + np.sin(a[:, 2:] + 0.3 * t)
    for s in (1e-9, 1e-5):
        found = rounding(smooth + s * rng.normal(size=smooth.shape), 1e-16)
        low, middle, high = np.quantile(found / s, (0.01, 0.5, 0.99))
        assert low > 2.5 and 5 < middle < 7 and high < 15  # 3.0, 5.3 to 5.7, 12.5


def test_errors_alone_are_rarely_a_barrier():
    losses = 1 + 1e-6 * np.random.default_rng(1).normal(size=(2000, 12))
    ones = np.ones(len(losses))
    bound = rounding(losses, 1e-16)
    found = hs.Barriers(
        np.linspace(0, 1, 12), ones, ones, ones, ones, ones, bound, {"loss": losses}
    )
    assert (found.rise > 0).mean() > 0.5  # each would count without a bound
    assert found.count().barriers <= 10  # 0.2 %


def test_barriers_that_float32_shows_are_those_of_float64():
    """Updates so short that the differences of the loss are its rounding errors."""
    torch.manual_seed(0)
    model = mlp().float()
    ev = hs.Evaluator(model, F.cross_entropy, _single(data()), batch_size=4)
    torch.manual_seed(1)
    rows = ev.theta + 1e-7 * torch.randn(60, ev.n).cumsum(0)
    found = hs.barriers(ev, rows)
    assert (found.rise > 0).sum() >= 5
    exact = hs.Evaluator(model.double(), F.cross_entropy, data(), batch_size=4)
    truly = hs.barriers(exact, rows.double()).is_barrier
    assert not (found.is_barrier & ~truly).any()


def _single(samples):
    inputs, labels = samples
    return inputs.float(), labels
