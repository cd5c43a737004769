"""Training one step at a time: restored bit for bit, schedules, averages, augmentation, starts."""

import copy
import math
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.schedule import Phase, Schedule, drop_of, switch_of
from hessian_spectrum.config.training import Optimizer
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.squared_error import SquaredError
from hessian_spectrum.zoo import augmentation, build_model, load_dataset
from hessian_spectrum.zoo.averages import Averages
from hessian_spectrum.zoo.initialization import initialize
from hessian_spectrum.zoo.optimizers import OPTIMIZERS
from hessian_spectrum.zoo.trainer import Recipe, Training

DIGITS = load_dataset("digits", limit=50).tensors


def network(*, batchnorm=True, dropout=0.2):
    """A small convolutional network, the same each time."""
    torch.manual_seed(0)
    normalized = [nn.BatchNorm2d(4)] if batchnorm else []
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), *normalized, nn.Tanh(), nn.Flatten(), nn.Dropout(dropout),
        nn.Linear(36, 10),
    )  # fmt: skip


def training(schedule=None, *, model=None, data=DIGITS, loss=F.cross_entropy, **more):
    averages = more.pop("averages", None)
    options = {"batch_size": 16, "seed": 3, **more}
    recipe = Recipe(schedule=schedule or Schedule("sgd", 0.05), **options)
    model = model or network()
    return Training(
        model, loss, data, recipe,
        averages=Averages(model, *averages) if averages else None,
    )  # fmt: skip


def steps(run, count):
    return [run.step() for _ in range(count)]


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -- restored --------------------------------------------------------------------------------------

SCHEDULE = Schedule("nesterov", 0.05, drops=((1, 0.5),), switches=((2, "rk2-adam-heun", 1e-3),))


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 8, 9, 11])  # of 4 steps an epoch
def test_a_restored_training_goes_on_bit_for_bit(stop, tmp_path):
    options = {"weight_decay": 1e-3, "augment": "flip-crop", "averages": (0.9, 1)}
    straight = training(SCHEDULE, **options)
    results = steps(straight, 12)
    stopped = training(SCHEDULE, **options)
    steps(stopped, stop)
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    restored = training(SCHEDULE, **options)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    later = steps(restored, 12 - stop)
    assert later == results[stop:]
    assert same(restored.model, straight.model)
    for name in ("ema", "swa"):
        pair = (restored.averages.models()[name], straight.averages.models()[name])
        assert same(*pair)


def test_a_state_of_another_schedule_is_refused():
    run = training(Schedule("sgd", 0.1, switches=((1, "adam", 0.01),)))
    steps(run, 5)
    with pytest.raises(InputError, match="another schedule"):
        training().load_state_dict(run.state_dict())


def test_dropout_is_its_own_and_the_same_at_all_stages_of_a_step():
    model, seen = network(batchnorm=False, dropout=0.5), []
    run = training(Schedule("rk2-heun", 0.01), model=model)
    model[3].register_forward_hook(lambda module, inputs, outputs: seen.append(outputs != 0))
    before = torch.get_rng_state()
    steps(run, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


# -- schedules -------------------------------------------------------------------------------------


def test_drops_multiply_and_a_switch_has_a_learning_rate_of_its_own():
    schedule = Schedule("sgd", 1.0, ((2, 0.5), (4, 0.1), (1, 0.5)), ((3, "adam", 0.01),))
    found = [schedule.phase(epoch) for epoch in range(1, 6)]
    expected = [(1, "sgd", 1.0), (1, "sgd", 0.5), (1, "sgd", 0.25), (4, "adam", 0.01)]
    assert found == [Phase(*each) for each in expected] + [Phase(4, "adam", pytest.approx(0.001))]
    assert Schedule("sgd", 1.0, ((3, 0.5),), ((3, "adam", 0.01),)).phase(4).lr == 0.005


@pytest.mark.parametrize("text", ["50", "50:", "0:0.1", "a:0.1", "50:-1", "50:nan", "5:1:1"])
def test_a_drop_of_another_form_is_refused(text):
    assert drop_of("50:0.1") == (50, 0.1)
    with pytest.raises(InputError, match=r"expected EPOCH:FACTOR"):
        drop_of(text)


@pytest.mark.parametrize("text", ["50", "50:adam", "0:adam:1", "50:lbfgs:1", "50:adam:0"])
def test_a_switch_of_another_form_is_refused(text):
    assert switch_of("50:adam:1e-4", ("adam",)) == (50, "adam", 1e-4)
    with pytest.raises(InputError, match=r"expected EPOCH:OPTIMIZER:LR"):
        switch_of(text, ("adam",))


def test_the_configuration_knows_all_optimizers():
    assert sorted(get_args(Optimizer)) == sorted(OPTIMIZERS)


def test_a_dropped_and_a_switched_training_are_those_by_hand():
    schedule = Schedule("sgd", 0.1, ((1, 0.1),), ((2, "adam", 0.01),))
    model = network(batchnorm=False, dropout=0.0)
    run = training(schedule, model=model, batch_size=100)  # one step an epoch
    steps(run, 4)
    other = network(batchnorm=False, dropout=0.0)
    first = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.Adam(other.parameters(), lr=0.01)
    for lr, optimizer in ((0.1, first), (0.01, first), (0.01, second), (0.01, second)):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        F.cross_entropy(other(DIGITS[0]), DIGITS[1]).backward()
        optimizer.step()
    assert same(model, other)  # bit for bit: a minibatch of all samples is not shuffled


# -- averages --------------------------------------------------------------------------------------


def test_averages_are_those_by_hand_with_statistics_of_all_the_data():
    run, ema, ends = training(averages=(0.9, 1), batch_size=25), None, []
    for step in range(6):
        run.step()
        now = [p.detach().clone() for p in run.model.parameters()]
        ema = now if ema is None else [0.9 * a + 0.1 * b for a, b in zip(ema, now)]
        if step % 2 == 1 and step > 1:
            ends.append(now)
        assert ("swa" in run.averages.models()) == (step >= 3)
    swa = [(a + b) / 2 for a, b in zip(*ends)]
    models = run.averaged_models()
    for name, expected in (("ema", ema), ("swa", swa)):
        for p, q in zip(models[name].parameters(), expected):
            assert torch.allclose(p, q, rtol=0, atol=1e-6)  # float32; measured 6e-8
        with torch.no_grad():
            x = models[name][0](DIGITS[0])
        statistics = models[name][1].running_mean
        # The mean of the two halves' means, and so of all.
        assert torch.allclose(statistics, x.mean((0, 2, 3)), rtol=0, atol=1e-6)


# -- augmentation ----------------------------------------------------------------------------------


def test_a_picture_is_mirrored_and_cut_out_of_a_frame():
    images = torch.arange(2 * 3 * 5 * 6, dtype=torch.float32).reshape(2, 3, 5, 6) + 1
    for drawn in ([[0, 4, 4], [1, 4, 4]], [[1, 0, 8], [0, 7, 2]], [[1, 5, 3], [1, 2, 6]]):
        found = augmentation.flip_crop(images, torch.tensor(drawn))
        for image, result, (mirrored, down, across) in zip(images, found, drawn):
            framed = F.pad(image, (4, 4, 4, 4))[:, down : down + 5, across : across + 6]
            assert torch.equal(result, framed.flip(2) if mirrored else framed)


def test_draws_are_uniform():
    drawn = augmentation.draw(9000, torch.Generator().manual_seed(0))
    for column, count in enumerate((2, 9, 9)):
        frequencies = torch.bincount(drawn[:, column], minlength=count) * count / 9000
        assert len(frequencies) == count
        assert frequencies.sub(1).abs().max() < 0.15  # five standard deviations


def test_augmentation_is_drawn_anew_in_each_step_from_the_seed():
    def seen(seed):
        inputs = []
        model = network()
        model.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        steps(training(model=model, augment="flip-crop", batch_size=100, seed=seed), 2)
        return inputs

    (first, second), again, other = seen(0), seen(0), seen(1)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    assert not torch.equal(first, second) and not torch.equal(first, other[0])
    with pytest.raises(InputError, match=r"expected pictures, \(N, C, H, W\)"):
        training(data=(DIGITS[0].flatten(1), DIGITS[1]), augment="flip-crop")


# -- starting points -------------------------------------------------------------------------------


def test_starting_points():
    torch_own, mine = network(), {}
    for form in ("torch", "normal:-10:0.01", "uniform:-1:1", "scaled:3"):
        mine[form] = network()
        initialize(mine[form], form, seed=1)
    weight = {form: model[5].weight for form, model in mine.items()}
    assert same(mine["torch"], torch_own)
    assert torch.equal(weight["scaled:3"], 3 * torch_own[5].weight)
    normal = weight["normal:-10:0.01"].double()
    assert normal.mean().item() == pytest.approx(-10, abs=0.003)  # 360 numbers, five deviations
    assert normal.std().item() == pytest.approx(0.01, rel=0.2)
    uniform = weight["uniform:-1:1"]
    assert uniform.abs().max() <= 1
    assert uniform.std().item() == pytest.approx(math.sqrt(1 / 3), rel=0.15)
    for model in mine.values():
        assert torch.equal(model[5].bias, torch_own[5].bias)
        assert torch.equal(model[1].weight, torch_own[1].weight)  # of BatchNorm


def test_a_start_is_drawn_from_its_seed_alone():
    before = torch.get_rng_state()
    models = [build_model("mlp-64-10", input_shape=(1, 8, 8)) for _ in range(3)]
    torch.set_rng_state(before)
    for model, seed in zip(models, (1, 1, 2)):
        initialize(model, "normal:0:1", seed)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(models[0][1].weight, models[1][1].weight)
    assert not torch.equal(models[0][1].weight, models[2][1].weight)


@pytest.mark.parametrize("form", ["he", "normal:1", "normal:0:-1", "uniform:1:0", "scaled:inf"])
def test_a_start_of_another_form_is_refused(form):
    with pytest.raises(InputError, match="expected torch, or one of normal:MEAN:STD"):
        initialize(network(), form, 0)


# -- other tasks -----------------------------------------------------------------------------------


def test_an_autoencoder_is_trained_by_the_same_trainer():
    torch.manual_seed(0)
    x = torch.randn(40, 3, dtype=torch.float64) @ torch.randn(3, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 6, bias=False)).double()
    recipe = Recipe(schedule=Schedule("adam", 0.02), batch_size=40)
    run = Training(model, SquaredError(), (x, x), recipe, hits=None)
    results = steps(run, 1500)
    assert results[0].accuracy is None
    # Three components hold all of the data (Baldi and Hornik 1989). Measured 2e-32.
    assert results[-1].loss < 1e-6 * results[0].loss


def test_each_label_of_a_sequence_counts():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return F.one_hot(x, 5).movedim(2, 1).float() * self.scale

    words = torch.tensor([[0, 1, 2, 3], [3, 3, 3, 3]])
    targets = torch.tensor([[0, 1, 2, 0], [3, 3, 0, 0]])
    run = Training(
        Fixed(), F.cross_entropy, (words, targets), Recipe(schedule=Schedule("sgd", 1e-9))
    )
    assert run.step().accuracy == 5 / 8
    assert run.evaluated((words[:1], targets[:1]))[1] == 3 / 4


def test_dropout_on_several_ranks_is_refused():
    recipe, world = Recipe(schedule=Schedule("sgd", 0.1)), World(rank=0, size=2)
    with pytest.raises(InputError, match=r"4 \(Dropout\) drops units at random"):
        Training(network(), F.cross_entropy, DIGITS, recipe, world=world)
    Training(network(dropout=0.0), F.cross_entropy, DIGITS, recipe, world=world)
    lstm = nn.LSTM(3, 3, num_layers=2, dropout=0.5)
    with pytest.raises(InputError, match="the model \\(LSTM\\)"):
        Training(lstm, F.cross_entropy, DIGITS, recipe, world=world)


def test_what_comes_before_a_step_sees_its_gradient_and_its_start():
    model, seen = network(batchnorm=False, dropout=0.0), []
    start = copy.deepcopy(model)

    def look(step, optimizer, loss):
        gradients = [p.grad.clone() for p in model.parameters()]
        seen.append((step, loss.item(), gradients, same(model, start)))

    recipe = Recipe(schedule=Schedule("rk2-heun", 0.1), batch_size=100)
    Training(model, F.cross_entropy, DIGITS, recipe, before_step=look).step()
    expected = F.cross_entropy(start(DIGITS[0]), DIGITS[1])
    expected.backward()
    ((step, loss, gradients, is_start),) = seen
    assert (step, loss, is_start) == (1, expected.item(), True)
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, start.parameters()))
