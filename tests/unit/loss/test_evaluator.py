"""The evaluator: one deterministic function of theta, weighted per sample; what it refuses."""

import copy
import re

import numpy as np
import pytest
import torch
from dense_oracles import dense_hessian
from small_networks import (
    CLASSES,
    INPUTS,
    NETWORKS,
    Convolutional,
    N,
    Rows,
    data,
    mlp,
    relative,
    spoiled,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import hessian_spectrum as hs
from hessian_spectrum.loss.digests import of_data
from hessian_spectrum.loss.loaders import deal
from hessian_spectrum.operators.product_modes import MODES


def mean_loss(model):
    x, y = data()
    model.eval()
    return F.cross_entropy(model(x), y)


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_gradient_and_products_of_ragged_batches_are_those_of_the_mean_over_samples(name):
    model = NETWORKS[name]()
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(), data(), batch_size=8)
    hessian = dense_hessian(model, mean_loss)
    expected = mean_loss(model)
    grads = torch.autograd.grad(expected, list(model.parameters()), materialize_grads=True)

    assert ev.loss().item() == pytest.approx(expected.item(), rel=1e-14)
    assert relative(ev.gradient(), torch.cat([g.reshape(-1) for g in grads])) < 1e-13
    eye = torch.eye(ev.n, dtype=torch.float64)
    for mode in MODES:
        for plan in (hs.ProductPlan(mode), hs.ProductPlan(mode, chunk=7, batch_size=3, keep=True)):
            operator = hs.Hessian(ev, plan=plan)
            assert relative(operator @ eye, hessian) < 1e-10, plan  # measured: 5e-16
            assert relative(operator @ eye, hessian) < 1e-10, plan  # again, from what is kept


def test_products_agree_with_curvlinops_on_uneven_batches():
    curvlinops = pytest.importorskip("curvlinops")
    model, (x, y) = mlp(), data(7)
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    oracle = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), batches
    )
    vectors = torch.randn(sum(p.numel() for p in model.parameters()), 4, dtype=torch.float64)
    ours = hs.Hessian(hs.Evaluator(model, nn.CrossEntropyLoss(), (x, y), batch_size=4)) @ vectors
    assert relative(ours, oracle @ vectors) < 1e-10


def test_scipy_form_and_numpy_vectors_give_the_same_products():
    hessian = hs.Hessian(hs.Evaluator(mlp(), F.cross_entropy, data(), batch_size=4))
    v = np.random.default_rng(0).standard_normal((hessian.n, 3))
    expected = (hessian @ torch.from_numpy(v)).numpy()
    assert isinstance(hessian @ v, np.ndarray)
    np.testing.assert_array_equal(hessian @ v, expected)
    np.testing.assert_allclose(hessian.to_scipy() @ v[:, 0], expected[:, 0], rtol=1e-12)
    with pytest.raises(hs.InputError, match="cannot multiply"):
        hessian @ v[:-1]


def test_one_pass_and_one_first_order_graph_a_minibatch_serve_all_vectors():
    ev = hs.Evaluator(mlp(), F.cross_entropy, data(), batch_size=4)
    hs.spectral_density(hs.Hessian(ev, plan=hs.ProductPlan()), num_probes=5, num_steps=6)
    assert (ev.counts.passes, ev.counts.graphs, ev.counts.products) == (6, 18, 30)
    keep = hs.ProductPlan(keep=True)
    hs.spectral_density(hs.Hessian(ev, plan=keep), num_probes=5, num_steps=6)
    assert (ev.counts.passes, ev.counts.graphs, ev.counts.products) == (12, 21, 60)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_reduction_gives_the_mean_over_samples(reduction):
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    model = mlp()
    ev = hs.Evaluator(model, loss_fn, data(), batch_size=4, reduction=reduction)
    assert ev.loss().item() == pytest.approx(mean_loss(model).item(), rel=1e-14)


def test_ignored_targets_and_class_weights_count_as_torch_counts_them():
    x, y = data()
    y[[1, 8, 9]] = -100  # the second batch of 8 + 2 has no target left
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double())
    model = mlp()
    ev = hs.Evaluator(model, loss_fn, (x, y), batch_size=8)
    assert ev.loss().item() == pytest.approx(loss_fn(model(x), y).item(), rel=1e-14)
    hessian = dense_hessian(model, lambda m: loss_fn(m(x), y))
    assert relative(hs.Hessian(ev) @ torch.eye(ev.n, dtype=torch.float64), hessian) < 1e-10


def test_weight_decay_adds_its_own_loss_gradient_and_hessian():
    model = mlp()
    plain, decayed = (
        hs.Evaluator(model, F.cross_entropy, data(), weight_decay=wd) for wd in (0.0, 0.3)
    )
    theta, v = plain.theta, torch.randn(plain.n, dtype=torch.float64)
    assert (decayed.loss() - plain.loss()).item() == pytest.approx(
        0.15 * theta.square().sum().item(), rel=1e-12
    )
    assert relative(decayed.gradient() - plain.gradient(), 0.3 * theta) < 1e-12
    assert relative(hs.Hessian(decayed) @ v - hs.Hessian(plain) @ v, 0.3 * v) < 1e-12


def test_patterns_and_frozen_parameters_choose_the_block_of_the_hessian():
    model = mlp()
    full = dense_hessian(model, mean_loss)
    block = hs.Hessian(hs.Evaluator(model, F.cross_entropy, data(), parameters=["2.*"]))
    eye = torch.eye(block.n, dtype=torch.float64)
    assert relative(block @ eye, full[35:, 35:]) < 1e-12
    model[0].requires_grad_(False)
    frozen = hs.Hessian(hs.Evaluator(model, F.cross_entropy, data()))
    torch.testing.assert_close(frozen @ eye, block @ eye)
    with pytest.raises(hs.InputError, match=r"no parameter matches 'conv\*'"):
        hs.Evaluator(model, F.cross_entropy, data(), parameters=["conv*"])


def test_batches_of_any_structure_through_forward():
    x, y = data()

    class Dicts(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            return {"inputs": x[i], "labels": y[i]}

    model = mlp()
    ev = hs.Evaluator(
        model,
        lambda outputs, batch: F.cross_entropy(outputs, batch["labels"]),
        Dicts(),
        forward=lambda model, batch: model(batch["inputs"]),
        batch_size=4,
    )
    assert ev.loss().item() == pytest.approx(mean_loss(model).item(), rel=1e-14)
    with pytest.raises(hs.InputError, match="a batch is a dict"):
        hs.Evaluator(model, F.cross_entropy, Dicts())


def test_a_model_that_is_linear_in_its_parameters_has_hessian_zero_where_the_loss_is_linear():
    model = nn.Linear(INPUTS, 1).double()
    ev = hs.Evaluator(model, lambda out, _: out.mean(), data())
    assert not (hs.Hessian(ev) @ torch.ones(ev.n, dtype=torch.float64)).any()
    measure = hs.spectral_density(hs.Hessian(ev), 2, 3)
    assert measure.support == (0.0, 0.0)
    assert measure.mass(0, 0) == pytest.approx(1)


def test_many_points_take_one_pass_and_give_each_its_loss():
    model = mlp()
    ev = hs.Evaluator(model, F.cross_entropy, data(), batch_size=4)
    points = torch.stack([ev.theta, 0 * ev.theta])
    before = ev.counts.passes
    losses = ev.loss(points)
    assert ev.counts.passes == before + 1
    assert losses.tolist() == [ev.loss().item(), pytest.approx(np.log(CLASSES))]


def test_the_model_is_left_as_it_was_found():
    model = Convolutional().double()
    model.train()
    model.body[6].eval()  # a mixed mode
    model.body[1].bias.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    rng = torch.get_rng_state()

    ev = hs.Evaluator(model, F.cross_entropy, DataLoader(TensorDataset(*data()), 4, shuffle=True))
    ev.loss(), ev.gradient()
    hs.spectral_density(hs.Hessian(ev), 2, 3)
    with pytest.raises(hs.InputError):
        hs.Evaluator(model, F.cross_entropy, (data()[0], torch.full((N,), 9)))

    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values()))
    assert modes == [m.training for m in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(rng, torch.get_rng_state())


def test_float64_evaluation_of_a_float32_model_is_that_of_its_converted_copy():
    model = Convolutional().float()
    x, y = data()
    converted = hs.Evaluator(copy.deepcopy(model).double(), F.cross_entropy, (x, y))
    ev = hs.Evaluator(model, F.cross_entropy, (x, y), dtype=torch.float64)
    assert ev.gradient().dtype == torch.float64
    assert relative(ev.gradient(), converted.gradient()) < 1e-12
    assert next(model.parameters()).dtype == torch.float32


# -- data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x, y),
        lambda x, y: TensorDataset(x, y),
        Rows,
        lambda x, y: DataLoader(Rows(x, y), 3, shuffle=True, drop_last=True),
        lambda x, y: DataLoader(
            TensorDataset(x, y), batch_sampler=[[0, 1], [2], list(range(3, N))]
        ),
        lambda x, y: (x, y.to(torch.uint8)),
    ],
    ids=["tensors", "TensorDataset", "Dataset", "shuffled loader", "batch sampler", "uint8 labels"],
)
def test_every_form_of_the_data_gives_the_same_loss_and_digest(form):
    model, (x, y) = mlp(), data()
    ev = hs.Evaluator(model, F.cross_entropy, form(x, y), batch_size=4)
    assert ev.loss().item() == pytest.approx(mean_loss(model).item(), rel=1e-14)
    reference = hs.Evaluator(model, F.cross_entropy, (x, y))
    assert ev.digests() == reference.digests()


def test_data_that_fits_is_read_once_and_data_that_does_not_is_read_in_each_pass():
    rows, world = Rows(*data()), hs.World()
    kept = deal(rows, 4, world, torch.float64)
    reads = rows.reads
    first = [x for x, _ in kept]
    assert kept.kept
    assert rows.reads == reads
    streamed = deal(rows, 4, world, torch.float64, memory=100)
    reads = rows.reads
    assert all(map(torch.equal, first, [x for x, _ in streamed]))
    assert not streamed.kept
    assert rows.reads == reads + N
    assert of_data(streamed, world) is None


@pytest.mark.parametrize("size", [2, 3, 4, 12])
def test_shares_are_disjoint_and_complete(size):
    x, y = data()
    shares = [deal((x, y), 2, hs.World(rank, size), torch.float64) for rank in range(size)]
    assert torch.equal(torch.cat([b[0] for share in shares for b in share]), x)


class Augmented(Rows):
    def __getitem__(self, i):
        return self.x[i] + torch.rand(()), self.y[i]


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.noise = nn.Identity()
        self.noise.forward = lambda x: x + torch.randn_like(x)

    def forward(self, x):
        return self.noise(self.body(x))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.body(x)


def batch_statistics():
    return mlp(nn.BatchNorm1d(5, track_running_stats=False)).double()


def nan_model():
    model = mlp()
    with torch.no_grad():
        model[2].bias[1] = torch.nan
    return model


x, y = data()
REFUSED = {
    "random model": (Noisy, F.cross_entropy, data(), {}, "the first random module is noise"),
    "functional dropout": (
        mlp,
        lambda out, y: F.cross_entropy(F.dropout(out), y),
        data(),
        {},
        "randomness is in forward or loss_fn",
    ),
    "buffer": (Counting, F.cross_entropy, data(), {}, "changes its buffer calls"),
    "batch statistics": (
        batch_statistics,
        F.cross_entropy,
        data(),
        {},
        "the layer 2 (BatchNorm1d)",
    ),
    "sum as mean": (
        mlp,
        nn.CrossEntropyLoss(reduction="sum"),
        data(),
        {},
        "reduction='mean'; loss_fn returns the sum of its samples: pass reduction='sum'",
    ),
    "mean as sum": (
        mlp,
        F.cross_entropy,
        data(),
        {"reduction": "sum"},
        "reduction='sum'; loss_fn returns the mean of its samples: pass reduction='mean'",
    ),
    "none as mean": (mlp, nn.CrossEntropyLoss(reduction="none"), data(), {}, "returned shape (8,)"),
    "mean as none": (mlp, F.cross_entropy, data(), {"reduction": "none"}, "returned one number"),
    "reduction": (mlp, F.cross_entropy, data(), {"reduction": "avg"}, "reduction='avg'"),
    "NaN parameter": (nan_model, F.cross_entropy, data(), {}, "parameter 2.bias has 1 entries"),
    "NaN input": (mlp, F.cross_entropy, spoiled(0, torch.nan), {}, "minibatch 0 of the data"),
    "label too large": (mlp, F.cross_entropy, spoiled(1, 7), {}, "label 7, but the model has 3"),
    "label negative": (mlp, F.cross_entropy, spoiled(1, -1), {}, "label -1"),
    "empty": (mlp, F.cross_entropy, data(0), {}, "the data set is empty"),
    "lengths": (mlp, F.cross_entropy, (x, y[:4]), {}, "different lengths: (10, 6), (4,)"),
    "inputs": (mlp, F.cross_entropy, (x[:, :3], y), {}, "cannot evaluate inputs of shape (8, 3)"),
    "augmentation": (mlp, F.cross_entropy, Augmented(x, y), {}, "differs when it is read again"),
    "batch norm": (mlp, F.cross_entropy, data(), {"batch_norm": "batch"}, "batch_norm='batch'"),
    "infinite loss": (mlp, lambda out, y: out.sum() / 0, data(), {}, "minibatch 0 is not finite"),
    "distributed sampler": (
        mlp,
        F.cross_entropy,
        DataLoader(Rows(x, y), 4, sampler=DistributedSampler(Rows(x, y), 4, 0)),
        {},
        "pads with duplicate samples",
    ),
    "weighted sampler": (
        mlp,
        F.cross_entropy,
        DataLoader(Rows(x, y), 4, sampler=torch.utils.data.WeightedRandomSampler([1.0] * N, N)),
        {},
        "does not visit each sample once",
    ),
    "no data": (mlp, F.cross_entropy, 3, {}, "data is a int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_single_hessian_is_refused_and_the_cause_is_named(name):
    model, loss_fn, samples, options, message = REFUSED[name]
    with pytest.raises(hs.InputError, match=re.escape(message)) as error:
        hs.Evaluator(model(), loss_fn, samples, **{"batch_size": 8, **options})
    assert "\n" not in str(error.value)


def test_a_nearly_perfect_fit_in_float32_is_not_mistaken_for_a_wrong_reduction():
    x, y = data()
    model = nn.Linear(INPUTS, CLASSES)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([12.0, 0.0, 0.0]))  # losses of 1e-5: mostly rounding
    hs.Evaluator(model, F.cross_entropy, (x.float(), torch.zeros_like(y)))


def test_a_loss_that_overflows_elsewhere_is_data_at_many_points_and_an_error_at_one():
    ev = hs.Evaluator(mlp(), lambda out, y: out.exp().sum(1).mean(), data())
    theta = torch.full((ev.n,), 1e4, dtype=torch.float64)
    assert torch.isinf(ev.loss(torch.stack([ev.theta, theta]))).tolist() == [False, True]
    with pytest.raises(FloatingPointError, match="the loss is inf"):
        ev.loss(theta)
    with pytest.raises(hs.InputError, match="theta has shape"):
        ev.gradient(theta[:-1])


# -- what is computed, where rounding or unusual models could change it -----------------------


class Scaled(nn.Module):
    """Logits divided by a temperature, a parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.body = nn.Linear(INPUTS, CLASSES)

    def forward(self, x):
        return torch.tanh(self.body(x)) / self.temperature


@pytest.mark.parametrize("mode", MODES)
def test_a_parameter_without_dimensions_is_one_entry_of_theta(mode):
    model = Scaled().double()
    hessian = dense_hessian(model, mean_loss)
    ev = hs.Evaluator(model, F.cross_entropy, data(), batch_size=8)
    assert ev.n == 1 + CLASSES * (INPUTS + 1)
    v = torch.randn(ev.n, 2, dtype=torch.float64)
    plan = hs.ProductPlan(mode)
    assert relative(hs.Hessian(ev, plan=plan) @ v, hessian @ v) < 1e-10  # measured: 4e-16
    alone = hs.Evaluator(model, F.cross_entropy, data(), parameters="temperature")
    product = hs.Hessian(alone, plan=plan) @ torch.ones(1, dtype=torch.float64)
    assert product.item() == pytest.approx(hessian[0, 0].item(), rel=1e-12)


def test_the_loss_of_many_small_batches_is_summed_in_float64():
    # 63 terms of 2^-25 beside a 1: in float32 each of them would be rounded away.
    x = torch.full((64, 1), 2.0**-25)
    x[0] = 1
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    ev = hs.Evaluator(model, lambda out, y: out.mean(), (x, x), batch_size=1)
    assert ev.dtype == torch.float32
    assert ev.loss().item() == (1 + 63 * 2.0**-25) / 64  # every step is exact in binary


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_evaluated_in_float32(dtype):
    model, (x, y) = mlp().to(dtype), data()
    ev = hs.Evaluator(model, F.cross_entropy, (x.to(dtype), y))
    assert (ev.dtype, ev.gradient().dtype) == (torch.float32, torch.float32)
    reference = F.cross_entropy(copy.deepcopy(model).float()(x.to(dtype).float()), y)
    assert ev.loss().item() == pytest.approx(reference.item(), rel=1e-6)  # in bfloat16: 1e-3
    assert next(model.parameters()).dtype == dtype
    with pytest.raises(hs.InputError, match=r"or torch\.float64"):
        hs.Evaluator(model, F.cross_entropy, (x, y), dtype=dtype)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("keep", [False, True])
def test_a_hessian_stays_at_its_theta_when_the_callers_tensor_changes(mode, keep):
    ev = hs.Evaluator(mlp(), F.cross_entropy, data())
    theta, v = ev.theta, torch.randn(ev.n, dtype=torch.float64)
    hessian = hs.Hessian(ev, theta, hs.ProductPlan(mode, keep=keep))
    expected = hs.Hessian(ev) @ v
    theta += 1
    torch.testing.assert_close(hessian @ v, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_products_of_vectors_that_require_a_gradient_carry_no_graph(mode):
    ev = hs.Evaluator(mlp(), F.cross_entropy, data(), weight_decay=0.1)
    hessian = hs.Hessian(ev, plan=hs.ProductPlan(mode))
    v = torch.randn(ev.n, 2, dtype=torch.float64)
    product = hessian @ v.clone().requires_grad_()
    assert not product.requires_grad
    assert torch.equal(product, hessian @ v)


def test_a_part_of_a_batch_without_any_target_is_no_reason_to_refuse():
    x, y = data()
    y[:4] = -100  # the first third of the batch, which is evaluated alone at construction
    model = mlp()
    ev = hs.Evaluator(model, F.cross_entropy, (x, y), batch_size=N)
    assert ev.total_weight == N - 4
    assert ev.loss().item() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-14)


def test_the_users_loss_module_is_left_in_its_own_precision():
    weight = torch.tensor([1.0, 2.0, 0.5])
    loss_fn, model, (x, y) = nn.CrossEntropyLoss(weight=weight), mlp(), data()
    ev = hs.Evaluator(model, loss_fn, (x, y))
    expected = F.cross_entropy(model(x), y, weight=weight.double())
    assert ev.loss().item() == pytest.approx(expected.item(), rel=1e-14)
    assert loss_fn.weight.dtype == torch.float32


def test_a_refused_model_that_writes_to_its_buffers_is_left_as_it_was():
    model = Counting().double()
    with pytest.raises(hs.InputError, match="changes its buffer calls"):
        hs.Evaluator(model, F.cross_entropy, data())
    assert model.calls == 0


class Drawing(nn.Module):
    """Draws a number that it does not use: a dropout that is multiplied by zero."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        torch.rand(1)
        return self.body(x)


RANDOM = {
    "random model": (Noisy, F.cross_entropy, data()),
    "random loss": (mlp, lambda out, y: F.cross_entropy(F.dropout(out), y), data()),
    "random samples": (mlp, F.cross_entropy, Augmented(*data())),
    "unused number": (Drawing, F.cross_entropy, data()),
}


@pytest.mark.parametrize("name", RANDOM)
def test_torchs_random_state_is_unchanged_after_a_refusal(name):
    model, loss_fn, samples = RANDOM[name]
    model = model()
    before = torch.get_rng_state()
    with pytest.raises(hs.InputError):
        hs.Evaluator(model, loss_fn, samples)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_draws_a_number_in_vain_is_refused():
    with pytest.raises(hs.InputError, match=r"random: .* the model itself \(Drawing\)"):
        hs.Evaluator(Drawing(), F.cross_entropy, data())


def nan_buffer():
    model = Convolutional().double()
    model.body[2].running_var[1] = torch.nan
    return model


def test_a_buffer_that_is_not_finite_is_refused_by_name():
    with pytest.raises(hs.InputError, match=r"buffer body\.2\.running_var has 1 entries"):
        hs.Evaluator(nan_buffer(), F.cross_entropy, data())


def test_targets_that_are_all_ignored_are_refused():
    x, y = data()
    with pytest.raises(hs.InputError, match="the samples' weights add up to 0"):
        hs.Evaluator(mlp(), F.cross_entropy, (x, torch.full_like(y, -100)))


def test_construction_evaluates_each_minibatch_twice_and_few_samples_five_times():
    evaluated = []

    def loss_fn(outputs, y):
        evaluated.append(len(y))
        return F.cross_entropy(outputs, y)

    hs.Evaluator(mlp(), loss_fn, data(), batch_size=4)
    # Whole, in parts, and the first for its determinism; of an unknown loss also
    # thirds of the first and of each other one, apart and together.
    few = 4 * N + 4  # N <= 16: by theta, by the model, two gradients; some in float64 before
    assert sum(evaluated) == 2 * N + 2 * 4 + 2 * (2 + 2) + few
    evaluated.clear()

    class Known(nn.CrossEntropyLoss):
        def forward(self, outputs, y):
            return loss_fn(outputs, y)

    hs.Evaluator(mlp(), Known(), data(), batch_size=4)
    assert sum(evaluated) == 2 * N + 2 * 4 + few
