"""Curvature operators on every kind of model, against dense float64 matrices and closed forms."""

import math

import pytest
import torch
from model_kinds import kind_and_oracle
from prescribed_spectra import with_spectrum
from small_networks import NETWORKS, Rows, data, mlp, relative
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import hessian_spectrum as hs
from benchmarks.suite.kinds import BATCH, collated


def test_the_minibatches_of_the_kinds_are_uneven():
    kind, _ = kind_and_oracle("perceptron")
    assert [len(x) for x, _ in collated(kind)] == [BATCH, BATCH, 1]


# -- closed forms -------------------------------------------------------------------------------


def regression(n=20, inputs=4, outputs=3):
    x, y = torch.randn(n, inputs).double(), torch.randn(n, outputs).double()
    return nn.Linear(inputs, outputs, bias=False).double(), x, y


def test_linear_regression_has_its_gauss_newton_and_hessian_in_closed_form():
    model, x, y = regression()
    ev = hs.Evaluator(model, nn.MSELoss(), (x, y), batch_size=7, weight_decay=0.1)
    # The mean over samples and outputs of (w x - y)^2.
    gram = torch.kron(torch.eye(3).double(), x.T @ x / len(x)) * 2 / 3
    eye = torch.eye(ev.n, dtype=torch.float64)
    for operator in (hs.Hessian(ev), hs.GaussNewton(ev), hs.Fisher(ev)):
        assert relative(operator @ eye, gram + 0.1 * eye) < 1e-13


def test_linear_regression_has_its_gradient_covariance_in_closed_form():
    model, x, y = regression()
    ev = hs.Evaluator(model, nn.MSELoss(), (x, y), batch_size=7, weight_decay=0.1)
    residuals = x @ model.weight.detach().T - y
    gradients = 2 / 3 * (residuals[:, :, None] * x[:, None]).flatten(1)
    eye = torch.eye(ev.n, dtype=torch.float64)
    centered = gradients.T.cov(correction=0)
    assert relative(hs.GradientCovariance(ev) @ eye, centered) < 1e-13
    moment = gradients.T @ gradients / len(x)
    assert relative(hs.GradientCovariance(ev, centered=False) @ eye, moment) < 1e-13


def logistic(n):
    """Labels drawn from the model itself: well specified, and the model is at the truth."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    p = torch.sigmoid(model(x).detach())
    y = (torch.rand(n, 1, generator=generator, dtype=torch.float64) < p).double()
    return model, x, y, p


def test_logistic_regression_has_its_fisher_matrix_in_closed_form():
    model, x, y, p = logistic(50)
    ev = hs.Evaluator(model, nn.BCEWithLogitsLoss(), (x, y), batch_size=16)
    design = torch.cat([x, torch.ones(len(x), 1).double()], dim=1)
    fisher = design.T @ (design * p * (1 - p)) / len(x)
    eye = torch.eye(ev.n, dtype=torch.float64)
    for operator in (hs.Fisher(ev), hs.GaussNewton(ev), hs.Hessian(ev)):
        assert relative(operator @ eye, fisher) < 1e-13


def test_at_a_well_specified_optimum_the_gradients_second_moment_is_the_hessian():
    model, x, y, p = logistic(40_000)
    ev = hs.Evaluator(model, nn.BCEWithLogitsLoss(), (x, y), batch_size=10_000)
    eye = torch.eye(ev.n, dtype=torch.float64)
    sigma = hs.GradientCovariance(ev, centered=False) @ eye
    hessian = hs.Hessian(ev) @ eye
    design = torch.cat([x, torch.ones(len(x), 1).double()], dim=1)
    # Given x an entry of sigma is a mean of (y - p)^2 x_i x_j, whose expectation is the Hessian's.
    products = design[:, :, None] * design[:, None, :]
    variance = (p * (1 - p) * (1 - 2 * p) ** 2)[:, :, None] * products.square()
    error = variance.sum(0).sqrt() / len(x)
    assert ((sigma - hessian).abs() < 5 * error).all()
    assert not torch.allclose(sigma, hessian, rtol=1e-4)


def test_the_fisher_matrix_is_the_expectation_over_the_models_own_labels():
    model, (x, y) = mlp(), data()
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(), (x, y), batch_size=4)
    fisher = torch.zeros(ev.n, ev.n, dtype=torch.float64)
    for sample in x:
        log_p = F.log_softmax(model(sample[None]), dim=1)[0]
        for value in log_p:
            parts = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
            g = torch.cat([part.reshape(-1) for part in parts])
            fisher += value.exp().detach() * torch.outer(g, g) / len(x)
    assert relative(hs.Fisher(ev) @ torch.eye(ev.n, dtype=torch.float64), fisher) < 1e-13


def test_the_hessian_is_gauss_newton_plus_the_networks_own_second_derivatives():
    kind, expected = kind_and_oracle("perceptron")
    model, (x, y) = kind.model, kind.data
    ev = hs.Evaluator(**kind.arguments())
    slopes = (F.softmax(model(x), 1) - F.one_hot(y, 3)).detach() / len(x)
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def weighted_outputs(theta):  # linear in the outputs: only the network's curvature is left
        shapes = [p.shape for p in model.parameters()]
        parts = theta.split([math.prod(shape) for shape in shapes])
        names = [name for name, _ in model.named_parameters()]
        state = {name: part.view(s) for name, part, s in zip(names, parts, shapes)}
        return (torch.func.functional_call(model, state, (x,)) * slopes).sum()

    remainder = torch.autograd.functional.hessian(weighted_outputs, theta)
    eye = torch.eye(ev.n, dtype=torch.float64)
    assert relative(hs.Hessian(ev) @ eye, hs.GaussNewton(ev) @ eye + remainder) < 1e-13
    assert relative(remainder, expected.hessian) > 0.1


def test_ignored_targets_and_class_weights_count_in_the_samples_gradients():
    x, y = data()
    y = y.clone()
    y[:2] = -100
    weights = torch.tensor([0.2, 1.0, 3.0]).double()
    model = mlp()
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(weight=weights), (x, y), batch_size=4)
    rows = []
    for sample, label in zip(x[2:], y[2:]):
        loss = F.cross_entropy(model(sample[None]), label[None], weights, reduction="sum")
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    rows = torch.stack([*rows, *2 * [torch.zeros_like(rows[0])]])
    rows *= len(x) / weights[y[2:]].sum()  # so that their mean is the gradient
    assert relative(rows.mean(0), ev.gradient()) < 1e-13
    eye = torch.eye(ev.n, dtype=torch.float64)
    assert relative(hs.GradientCovariance(ev) @ eye, rows.T.cov(correction=0)) < 1e-13


# -- operators made of others -------------------------------------------------------------------


def test_a_shift_a_preconditioner_and_deflation_are_those_of_dense_matrices():
    matrix = with_spectrum(torch.tensor([-1.0, 0.5, 2.0, 3.0, 7.0]))
    base, eye = hs.Dense(matrix), torch.eye(5, dtype=torch.float64)
    assert relative(hs.Shifted(base, -0.3) @ eye, matrix - 0.3 * eye) < 1e-14
    p = torch.tensor([0.1, 1.0, 2.0, 5.0, 9.0]).double()
    expected = matrix / torch.outer(p, p).sqrt()
    assert relative(hs.Preconditioned(base, p) @ eye, expected) < 1e-14
    u = torch.linalg.eigh(matrix).eigenvectors[:, [0, 4]].T
    left = torch.linalg.eigvalsh(hs.Deflated(base, u) @ eye)
    assert relative(left, torch.tensor([0.0, 0.0, 0.5, 2.0, 3.0]).double()) < 1e-14


def test_a_deflation_by_vectors_that_are_no_eigenvectors_is_symmetric_and_projects():
    matrix = with_spectrum(torch.linspace(-1, 3, 6))
    u = torch.linalg.qr(torch.randn(6, 2).double())[0].T
    dense = hs.Deflated(hs.Dense(matrix), u) @ torch.eye(6, dtype=torch.float64)
    projector = torch.eye(6, dtype=torch.float64) - u.T @ u
    assert relative(dense, projector @ matrix @ projector) < 1e-14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: hs.Shifted(a, math.nan), "shift=nan"),
        (lambda a: hs.Shifted("a", 1.0), "Shifted of a str"),
        (lambda a: hs.Preconditioned(a, torch.tensor([1.0, 0.0])), "must be positive"),
        (lambda a: hs.Preconditioned(a, torch.ones(3)), "expected (2,)"),
        (lambda a: hs.Deflated(a, torch.ones(1, 2)), "not orthonormal"),
        (lambda a: hs.Deflated(a, torch.ones(2)), "0 < k <= n"),
        (lambda a: hs.Restricted(a, "layer*"), "no parameter matches 'layer*'"),
    ],
)
def test_what_makes_no_operator_is_refused(make, message):
    with pytest.raises(hs.InputError) as error:
        make(hs.Dense(torch.eye(2).double()))
    assert message in str(error.value)


def test_a_block_smaller_than_the_number_of_steps_ends_at_its_size():
    hessian = hs.Hessian(hs.Evaluator(mlp(), F.cross_entropy, data(), batch_size=4))
    measures = hs.spectral_densities(hessian, hs.layer_blocks(hessian), 1, 20, seed=0)
    bias = hs.spectral_densities(hessian, {"bias": "2.bias"}, 3, 20)["bias"]
    assert len(bias.nodes) <= 3 * 3
    dense = hs.Restricted(hessian, "2.bias") @ torch.eye(3, dtype=torch.float64)
    assert bias.trace == pytest.approx(torch.trace(dense).item(), rel=1)
    assert set(measures) == {"0", "2"}
    with pytest.raises(hs.InputError, match="name patterns by label"):
        hs.spectral_densities(hessian, [])


# -- linear systems -----------------------------------------------------------------------------


def test_a_damped_system_is_solved_to_the_residual_that_is_stated():
    matrix = with_spectrum(torch.tensor([-2.0, -0.1, 0.3, 1.0, 50.0]))
    b = torch.randn(5).double()
    found = hs.solve(hs.Dense(matrix), b, damping=0.2, tol=1e-10)
    damped = matrix + 0.2 * torch.eye(5).double()
    assert found.converged and found.residual < 2e-10
    assert relative(found.x, torch.linalg.solve(damped, b)) < 1e-8
    assert found.residual == pytest.approx(
        ((b - damped @ found.x).norm() / b.norm()).item(), rel=0.1
    )


def test_too_few_steps_are_no_convergence_and_the_residual_is_true():
    matrix = with_spectrum(torch.linspace(0.01, 10, 30))
    b = torch.randn(30).double()
    found = hs.solve(hs.Dense(matrix), b, tol=1e-10, max_steps=4)
    assert not found.converged
    assert found.residual == pytest.approx(((b - matrix @ found.x).norm() / b.norm()).item())
    assert found.num_products <= 4 + 3


def test_what_cannot_be_solved_is_refused():
    a = hs.Dense(torch.eye(2).double())
    for b, options, message in (
        (torch.zeros(2), {}, "not zero"),
        (torch.ones(3), {}, "expected (2,)"),
        (torch.ones(2), {"tol": 2.0}, "in (0, 1)"),
    ):
        with pytest.raises(hs.InputError) as error:
            hs.solve(a, b, **options)
        assert message in str(error.value)
    a._columns[0, 0] = math.nan
    with pytest.raises(FloatingPointError):
        hs.solve(a, torch.ones(2))


@pytest.mark.parametrize(
    "matrix, message",
    [
        (torch.ones(2, 3), "expected a square one"),
        (torch.tensor([[1.0, 2.0], [2.1, 1.0]]), "not symmetric: .* differ by 0.1"),
        (torch.full((2, 2), math.nan), "a NaN or an infinity"),
        (torch.full((2, 2), math.inf), "a NaN or an infinity"),
        (torch.eye(2).long(), "expected real numbers"),
        (torch.eye(0), "at least one row"),
    ],
)
def test_a_matrix_that_is_no_symmetric_one_is_refused(matrix, message):
    with pytest.raises(hs.InputError, match=message):
        hs.Dense(matrix)


def test_a_matrix_that_is_symmetric_to_rounding_is_taken():
    a = torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    hs.Dense(a @ torch.diag(torch.linspace(-1, 1, 60)) @ a.T)  # differs by some 50 roundings


# -- refusals -----------------------------------------------------------------------------------


def evaluator(loss_fn=F.cross_entropy, samples=None, model=None, **options):
    return hs.Evaluator(model or mlp(), loss_fn, samples or data(), batch_size=4, **options)


def closure(outputs, targets):
    return F.cross_entropy(outputs, targets)


def test_matrices_that_do_not_exist_are_refused_with_a_way_out():
    with pytest.raises(hs.InputError, match="reduction='none'"):
        hs.GradientCovariance(evaluator(closure))
    with pytest.raises(hs.InputError, match="use GaussNewton, or GradientCovariance"):
        hs.Fisher(evaluator(closure))
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    with pytest.raises(hs.InputError, match="without weights"):
        hs.Fisher(evaluator(nn.CrossEntropyLoss(weight=weights)))
    own_loss = {"forward": lambda m, b: F.cross_entropy(m(b[0]), b[1])}
    with pytest.raises(hs.InputError, match=r"let the model .* return its outputs"):
        hs.GaussNewton(evaluator(lambda loss, batch: loss, **own_loss))
    with pytest.raises(hs.InputError, match="GaussNewton of a Linear; expected an Evaluator"):
        hs.GaussNewton(nn.Linear(2, 2))


# -- BatchNorm ----------------------------------------------------------------------------------


def batch_norm(**options):
    return evaluator(model=NETWORKS["batch norm, dropout"](), **options)


def test_a_shuffled_loader_is_refused_where_minibatches_are_part_of_the_loss():
    loader = DataLoader(Rows(*data()), 4, shuffle=True)
    with pytest.raises(hs.InputError) as error:
        batch_norm(samples=loader, batch_norm="train")
    for words in ("body.2 (BatchNorm2d)", "shuffle=False", "'recalibrate'"):
        assert words in str(error.value)
    batch_norm(samples=loader)  # in eval mode the order does not matter


def test_minibatches_that_are_part_of_the_loss_are_not_cut():
    ev = batch_norm(batch_norm="train")
    with pytest.raises(hs.InputError) as error:
        hs.Hessian(ev, plan=hs.ProductPlan(batch_size=2)) @ torch.ones(ev.n).double()
    for words in ("4 samples cannot be cut to 2", "body.2 (BatchNorm2d)", "batch_size=2"):
        assert words in str(error.value)


def test_train_mode_depends_on_the_minibatches_and_its_digest_tells():
    x, y = data()
    order = torch.tensor([9, 1, 2, 3, 4, 5, 6, 7, 8, 0])
    torch.manual_seed(3)
    first = batch_norm(samples=(x, y), batch_norm="train")
    torch.manual_seed(3)
    second = batch_norm(samples=(x[order], y[order]), batch_norm="train")
    assert abs(first.loss() / second.loss() - 1) > 1e-3
    assert first.digests()["parameters"] == second.digests()["parameters"]
    assert first.digests()["data"] != second.digests()["data"]
    torch.manual_seed(3)
    plain = [batch_norm(samples=s) for s in ((x, y), (x[order], y[order]))]
    assert plain[0].digests()["data"] == plain[1].digests()["data"]


def test_recalibration_does_not_depend_on_the_minibatches_and_leaves_the_model_alone():
    model = NETWORKS["batch norm, dropout"]()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    losses, theta = [], None
    for size in (10, 4, 1):
        ev = hs.Evaluator(model, F.cross_entropy, data(), batch_size=size, batch_norm="recalibrate")
        theta = ev.theta if theta is None else theta
        points = torch.stack([theta, 1.1 * theta])
        losses.append(ev.loss(points))
        assert relative(losses[-1][1], ev.loss(points[1])) < 1e-13
    assert relative(losses[1], losses[0]) < 1e-12 and relative(losses[2], losses[0]) < 1e-12
    whole = hs.Evaluator(model, F.cross_entropy, data(), batch_size=10, batch_norm="train")
    assert relative(whole.loss(points), losses[0]) < 1e-12
    for name, t in model.state_dict().items():
        assert torch.equal(t, state[name])


def test_a_layer_without_running_statistics_has_nothing_to_recalibrate():
    model = NETWORKS["batch norm, dropout"]()
    model.body[2] = nn.BatchNorm2d(4, track_running_stats=False).double()
    with pytest.raises(hs.InputError, match=r"body\.2 \(BatchNorm2d\) has no running statistics"):
        evaluator(model=model, batch_norm="recalibrate")
    with pytest.raises(hs.InputError, match=r"body\.2 \(BatchNorm2d\).* batch_norm='train'"):
        evaluator(model=model)
    assert evaluator(model=model, batch_norm="train").loss().isfinite()


# -- dropout ------------------------------------------------------------------------------------


def test_frozen_dropout_is_one_network_and_each_seed_another():
    model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double()
    losses = {}
    for options in ({}, *({"dropout": "frozen", "dropout_seed": s} for s in (0, 1))):
        values = {evaluator(model=model, **options).loss().item() for _ in range(2)}
        assert len(values) == 1
        losses[repr(options)] = values.pop()
    assert len(set(losses.values())) == 3
    sizes = [
        hs.Evaluator(model, F.cross_entropy, data(), batch_size=b, dropout="frozen")
        for b in (3, 10)
    ]
    assert sizes[0].loss().item() == pytest.approx(sizes[1].loss().item(), rel=1e-14)
    assert "forward" not in vars(model[1])


def test_a_dropout_that_does_more_than_to_drop_cannot_be_frozen():
    model = nn.Sequential(nn.Linear(6, 4), nn.AlphaDropout(0.5), nn.Linear(4, 3)).double()
    with pytest.raises(hs.InputError, match=r"1 \(AlphaDropout\) cannot be frozen"):
        evaluator(model=model, dropout="frozen")
    with pytest.raises(hs.InputError, match="expected 'off' or 'frozen'"):
        evaluator(model=model, dropout="on")


# -- recurrent layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [hs.Hessian, hs.GaussNewton, hs.GradientCovariance])
def test_products_in_float64_are_those_of_an_evaluator_in_float64(make):
    torch.manual_seed(0)
    both = {"model": mlp().float(), "samples": (data()[0].float(), data()[1])}
    single, double = (evaluator(**both, dtype=d) for d in (torch.float32, torch.float64))
    eye = torch.eye(double.n, dtype=torch.float64)
    expected = make(double) @ eye
    operator = make(single, plan=hs.ProductPlan("linearize", keep=True))
    assert relative(operator @ eye.float(), expected.float()) > 1e-9
    # Its mean gradient, of which a covariance has the square, is as float32 finds it.
    tolerance = 1e-6 if make is hs.GradientCovariance else 1e-13
    assert relative(operator.in_float64() @ eye, expected) < tolerance
    assert operator.dtype == torch.float32 and make(double).in_float64().dtype == torch.float64


def test_operators_made_of_others_are_formed_in_float64_with_them():
    torch.manual_seed(0)
    both = {"model": mlp().float(), "samples": (data()[0].float(), data()[1])}
    single, double = (
        hs.Hessian(evaluator(**both, dtype=d)) for d in (torch.float32, torch.float64)
    )
    eye, one = torch.eye(double.n, dtype=torch.float64), torch.eye(1, double.n)
    for make in (
        lambda base: hs.Shifted(base, 0.5),
        lambda base: hs.Deflated(base, one),
        lambda base: hs.Preconditioned(base, torch.full((base.n,), 4.0)),
        lambda base: hs.Shifted(hs.Shifted(base, 0.25), 0.25),
    ):
        assert relative(make(single).in_float64() @ eye, make(double) @ eye) < 1e-13
    assert hs.Shifted(double, 0.5).in_float64().dtype == torch.float64
