"""What would be a wrong number without a word: each is right, or refused with its cause."""

import pytest
import torch
from dense_oracles import dense_hessian
from mlp_products import evaluator, eye_of
from small_networks import CLASSES, INPUTS, data, mlp, relative
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

import hessian_spectrum as hs

# -- data ---------------------------------------------------------------------------------------


class Standardized(TensorDataset):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return (x - 1) / 3, y


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: DataLoader(d, 4)])
def test_a_tensor_data_set_that_transforms_its_samples_is_read_through_its_transform(wrap):
    x, y = data()
    model = mlp()
    found = evaluator(model, samples=wrap(Standardized(x, y))).loss()
    assert relative(found, F.cross_entropy(model((x - 1) / 3), y).detach()) < 1e-14


@pytest.mark.parametrize(
    "loader",
    [
        lambda d: DataLoader(d, 4, sampler=SequentialSampler(range(7))),
        lambda d: DataLoader(d, batch_sampler=BatchSampler(SequentialSampler(d), 4, True)),
    ],
)
def test_a_loader_that_leaves_samples_out_is_refused(loader):
    with pytest.raises(hs.InputError, match="the mean over the data set"):
        evaluator(samples=loader(TensorDataset(*data())))


def test_a_mapping_of_tensors_is_no_data_set():
    with pytest.raises(hs.InputError, match="data is a dict; expected"):
        evaluator(samples=dict(zip("xy", data())))


def test_batches_that_cannot_be_divided_need_their_weights():
    x, y = data()
    edges = torch.zeros(2, 9).long(), torch.zeros(2, 30).long()
    batches = [{"e": e, "x": x[s], "y": y[s]} for e, s in zip(edges, (slice(3), slice(3, None)))]
    options = {
        "loss_fn": lambda out, batch: F.cross_entropy(out, batch["y"]),
        "samples": DataLoader(batches, batch_size=None),
        "forward": lambda model, batch: model(batch["x"]),
    }
    with pytest.raises(hs.InputError, match="pass count="):
        evaluator(**options)
    model = mlp()
    ev = evaluator(model, **options, count=lambda batch: len(batch["y"]))
    assert relative(ev.loss(), F.cross_entropy(model(x), y).detach()) < 1e-14


def test_a_mean_over_targets_that_are_not_ignored_needs_their_number():
    torch.manual_seed(2)
    x, y = torch.randn(8, 6, 3).double(), torch.randint(4, (8, 6))
    y[4:, 2:] = -100  # each minibatch's samples have as many targets as each other
    model = nn.Linear(3, 4).double()
    options = {"loss_fn": lambda out, t: F.cross_entropy(out.transpose(1, 2), t)}
    with pytest.raises(hs.InputError, match="not ignored; pass count="):
        evaluator(model, samples=(x, y), **options)
    ev = evaluator(model, samples=(x, y), **options, count=lambda b: (b[1] >= 0).sum().item())
    whole = F.cross_entropy(model(x).transpose(1, 2), y).detach()
    assert relative(ev.loss(), whole) < 1e-14


def test_inputs_that_are_changed_in_place_are_refused_and_the_users_stay():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            x -= 0.5
            return self.body(x)

    x, y = data()
    before = x.clone()
    with pytest.raises(hs.InputError, match="in place"):
        evaluator(InPlace(), samples=(x, y))
    assert torch.equal(x, before)


# -- parameters ---------------------------------------------------------------------------------


class Penalized(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, outputs, y):
        squares = sum(p.square().sum() for p in self.model.parameters())
        return F.cross_entropy(outputs, y) + 0.1 * squares


def test_a_loss_module_that_shares_the_models_parameters_is_differentiated_by_them():
    model = mlp()
    x, y = data()
    ev = evaluator(model, Penalized(model))
    expected = dense_hessian(model, lambda m: Penalized(m)(m(x), y))
    assert relative(hs.Hessian(ev) @ eye_of(ev), expected) < 1e-12
    with pytest.raises(hs.InputError, match=r"by another way .* use weight_decay="):
        hs.GaussNewton(ev)


def test_a_loss_module_is_evaluated_in_eval_mode_and_found_as_it_was():
    class WithDropout(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, outputs, y):
            return F.cross_entropy(self.dropout(outputs), y)

    loss_fn, model = WithDropout(), mlp()
    assert relative(evaluator(model, loss_fn).loss(), evaluator(model).loss()) == 0
    assert loss_fn.training and loss_fn.dropout.training


def test_a_tied_parameter_is_chosen_by_any_of_its_names_and_a_misspelt_pattern_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS)
            self.second.weight = self.first.weight
            self.head = nn.Linear(INPUTS, CLASSES)

        def forward(self, x):
            return self.head(self.second(torch.tanh(self.first(x))))

    ev = evaluator(Tied().double(), parameters=["second.*"])
    assert ev.layout.names == ("first.weight", "second.bias")
    with pytest.raises(hs.InputError, match="no parameter matches 'secnod"):
        evaluator(Tied().double(), parameters=["head.*", "secnod.*"])
    with pytest.raises(hs.InputError, match="no parameter matches 'secnod"):
        hs.Restricted(hs.Hessian(ev), ["second.*", "secnod.*"])


def test_a_complex_parameter_is_refused_by_name():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(INPUTS, CLASSES, dtype=torch.complex64))

        def forward(self, x):
            return (x.to(self.w.dtype) @ self.w).abs()

    with pytest.raises(hs.InputError, match="parameter w is complex"):
        evaluator(Complex())


# -- derivatives --------------------------------------------------------------------------------


def test_inference_mode_has_no_derivatives_and_says_so():
    ev = evaluator()
    hessian = hs.Hessian(ev)
    with torch.inference_mode():
        for action in (ev.gradient, ev.loss, lambda: hessian @ torch.ones(ev.n), evaluator):
            with pytest.raises(hs.InputError, match=r"use torch\.no_grad"):
                action()
    with torch.no_grad():
        assert ev.gradient().norm() > 0


def test_an_outer_autocast_does_not_reach_the_products():
    ev = evaluator(mlp().float(), samples=(data()[0].float(), data()[1]))
    v = torch.randn(ev.n, 2)
    expected, gradient = hs.Hessian(ev) @ v, ev.gradient()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hs.Hessian(ev) @ v, expected)
        assert torch.equal(ev.gradient(), gradient)


class ThroughNumPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(g.detach().numpy() * (1 - x.detach().tanh().numpy() ** 2))


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(INPUTS, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(ThroughNumPy.apply(self.first(x)))


@pytest.mark.parametrize("operator", [hs.Hessian, hs.GaussNewton, hs.GradientCovariance])
def test_a_backward_that_leaves_autograds_sight_is_refused(operator):
    ev = evaluator(Opaque().double())
    assert ev.gradient().norm() > 0
    with pytest.raises(hs.InputError, match="would be wrong"):
        operator(ev)


def test_derivatives_by_the_inputs_through_autograd_are_those_through_torch_func():
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))

    class Autograd(Slope):
        def forward(self, x):
            x = x.detach().requires_grad_(True)
            u = self.net(x)
            return torch.autograd.grad(u.sum(), x, create_graph=True)[0] + u

    class Functional(Slope):
        def forward(self, x):
            slope = torch.func.vmap(torch.func.grad(lambda x: self.net(x[None])[0]))(x[:, 0])
            return slope[:, None] + self.net(x)

    x = torch.rand(9, 1).double()
    model, other = Autograd().double(), Functional().double()
    other.load_state_dict(model.state_dict())
    ev, expected = (evaluator(m, nn.MSELoss(), (x, torch.zeros_like(x))) for m in (model, other))
    assert relative(ev.loss(), expected.loss()) < 1e-13
    dense = hs.Hessian(expected) @ eye_of(expected)
    for mode in ("reverse", "reverse-batched"):
        found = hs.Hessian(ev, plan=hs.ProductPlan(mode)) @ eye_of(ev)
        assert relative(found, dense) < 1e-12, mode


# -- operators ----------------------------------------------------------------------------------


def test_the_fisher_matrix_of_a_subclass_is_not_taken_for_its_parents():
    class Focal(nn.CrossEntropyLoss):
        def forward(self, outputs, y):
            loss = F.cross_entropy(outputs, y, reduction="none")
            return ((1 - (-loss).exp()) ** 2 * loss).mean()

    with pytest.raises(hs.InputError, match="the Fisher matrix is known for"):
        hs.Fisher(evaluator(loss_fn=Focal()))


def test_outputs_without_tensors_have_no_gauss_newton_matrix():
    class Box:
        def __init__(self, value):
            self.value = value

    ev = evaluator(
        forward=lambda m, batch: Box(m(batch[0])),
        loss_fn=lambda out, batch: F.cross_entropy(out.value, batch[1]),
    )
    with pytest.raises(hs.InputError, match="returns a Box in which no tensor can be found"):
        hs.GaussNewton(ev)


def test_losses_that_do_not_have_the_samples_first_are_refused():
    x, y = torch.randn(6, 6, 3).double(), torch.randint(4, (6, 6))

    def loss_fn(out, t):
        return F.cross_entropy(out.transpose(1, 2), t, reduction="none").t()

    count = {"reduction": "none", "count": lambda batch: batch[1].numel(), "batch_size": 6}
    model = nn.Linear(3, 4).double()
    with pytest.raises(hs.InputError, match="the samples first"):
        hs.GradientCovariance(evaluator(model, loss_fn, (x, y), **count))


# -- BatchNorm and dropout ----------------------------------------------------------------------


def test_recalibration_counts_samples_that_weigh_nothing():
    x, y = data()
    y = y.clone()
    y[5:] = -100
    model = nn.Sequential(nn.Linear(INPUTS, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)).double()
    losses = [
        evaluator(model, nn.CrossEntropyLoss(), (x, y), batch_size=size, batch_norm="recalibrate")
        for size in (10, 5, 3)
    ]
    for ev in losses[1:]:
        assert relative(ev.loss(), losses[0].loss()) < 1e-13


def test_a_layer_that_is_used_twice_cannot_be_recalibrated():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(INPUTS), nn.Linear(INPUTS, CLASSES)

        def forward(self, x):
            return self.head(self.norm(torch.tanh(self.norm(x))))

    with pytest.raises(hs.InputError, match="the layer norm is used more than once"):
        evaluator(Twice().double(), batch_norm="recalibrate").loss()


@pytest.mark.parametrize("options", [{"batch_norm": "train"}, {"dropout": "frozen"}])
def test_an_option_that_would_do_nothing_is_refused(options):
    with pytest.raises(hs.InputError, match="the model has no"):
        evaluator(**options)


def test_an_instances_own_forward_is_found_again():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrence, self.dropout = nn.GRU(3, 4, batch_first=True), nn.Dropout(0.5)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.dropout(self.recurrence(x)[0][:, -1]))

    model = Last().double()
    own = {}
    for layer in (model.recurrence, model.dropout):
        whole = layer.forward
        layer.forward = own[layer] = lambda *args, whole=whole: whole(*args)
    samples = torch.randn(5, 4, 3).double(), torch.arange(5) % 3
    hs.Hessian(evaluator(model, samples=samples, dropout="frozen"))
    assert all(vars(layer)["forward"] is forward for layer, forward in own.items())


# -- linear systems -----------------------------------------------------------------------------


@pytest.mark.parametrize(("damping", "tol"), [(1e-3, 1e-6), (1e-5, 1e-4), (1e-6, 1e-9)])
def test_a_weakly_damped_system_is_solved_to_its_tolerance(damping, tol):
    ev = evaluator()
    found = hs.solve(hs.GaussNewton(ev), torch.ones(ev.n), damping=damping, tol=tol)
    assert found.converged and found.residual <= tol
