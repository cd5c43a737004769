"""Sharded models on one rank: the same code as on many, beside the whole model."""

import copy

import pytest
import torch
from sharded_models import fully_sharded, sequences, transformer
from torch import nn

import hessian_spectrum as hs


def evaluator(model=None, **options):
    model = transformer() if model is None else model
    return hs.ShardedEvaluator(model, nn.CrossEntropyLoss(), sequences(), **options)


def whole(model=None, **options):
    model = transformer() if model is None else model
    return hs.Evaluator(model, nn.CrossEntropyLoss(), sequences(), **options)


def some(n, k=2, dtype=torch.float64):
    return torch.randn(n, k, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("recompute", [True, False])
def test_products_are_those_of_the_whole_model(is_tied, batch_size, recompute):
    model = transformer(is_tied=is_tied)
    ev = evaluator(model, batch_size=batch_size, recompute=recompute)
    v = some(ev.n)
    expected = hs.Hessian(whole(model)) @ v
    assert (hs.ShardedHessian(ev) @ v - expected).norm() < 1e-12 * expected.norm()


def test_the_model_is_left_as_it_was():
    model = transformer()
    before = {name: p.clone() for name, p in model.named_parameters()}
    types = [type(module) for module in model.modules()]
    hs.ShardedHessian(evaluator(model)) @ some(sum(p.numel() for p in model.parameters()))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert [type(module) for module in model.modules()] == types
    assert model.training


def test_constants_are_gathered_and_not_differentiated():
    model = transformer()
    patterns = ["blocks.0.*", "norm.*"]
    ev, v = evaluator(model, parameters=patterns), None
    v = some(ev.n)
    expected = hs.Hessian(whole(model, parameters=patterns)) @ v
    assert (hs.ShardedHessian(ev) @ v - expected).norm() < 1e-12 * expected.norm()


def test_whole_weights_live_for_two_units_at_most():
    model = transformer(layers=6)
    ev = evaluator(model)
    hs.ShardedHessian(ev) @ some(ev.n)
    largest = max(unit.size for unit in ev.units)
    assert ev.weights.peak <= 2 * largest < ev.n / 2


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("vectors", [1, 2])
def test_gathers_of_a_product_are_counted(layers, vectors):
    ev = evaluator(transformer(layers=layers))
    operator = hs.ShardedHessian(ev)
    before = ev.weights.gathers
    operator @ some(ev.n, vectors)
    # Forward: the rest first and last, each block; backward: the last of the rest, each block.
    # For each vector both ways through the blocks, of which the nearest is still there, and between
    # them the rest.
    graph = (layers + 2) + (layers + 1)
    assert ev.weights.gathers - before == graph + vectors * 2 * layers


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-7), (torch.float32, 3e-2)])
def test_differences_state_their_error(dtype, most):
    model = transformer()
    true = hs.Hessian(whole(model))
    top = torch.from_numpy(hs.eigenpairs(true, 2).vectors.T.copy())
    v = torch.cat([some(true.n, 6) / true.n**0.5, top], dim=1)
    expected = true @ v
    operator = hs.ShardedHessian(evaluator(model, dtype=dtype), products="differences")
    errors = ((operator @ v.to(dtype)).double() - expected).norm(dim=0)
    assert errors.max() <= operator.product_error < most * expected.norm(dim=0).max()


def test_differences_are_refused_where_they_say_nothing():
    with pytest.raises(hs.InputError, match="evaluate in higher arithmetic"):
        hs.ShardedHessian(evaluator(compute_dtype=torch.bfloat16), products="differences")


def test_residuals_hold_what_half_precision_adds():
    model = transformer()
    true = hs.eigenpairs(hs.Hessian(whole(model)), 2).values
    for dtype, compute in (
        (torch.float64, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float32, None),
    ):
        ev = evaluator(model, dtype=dtype, compute_dtype=compute)
        found = hs.eigenpairs(hs.ShardedHessian(ev), 2, tol=1e-4)
        assert (abs(found.values - true) <= found.residuals).all()


class Once(torch.autograd.Function):
    """sin with a backward that autograd cannot differentiate."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Detached(Once):
    """The same, wrong in silence."""

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos().detach()


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.function.apply(self.first(x)))


def custom(function, **options):
    torch.manual_seed(0)
    data = torch.randn(6, 4).double(), torch.arange(6) % 3
    model = Custom(function).double()
    return hs.ShardedEvaluator(model, nn.CrossEntropyLoss(), data, **options), model, data


@pytest.mark.parametrize(
    ("function", "why"),
    [(Once, "would be wrong|not symmetric|cannot be formed"), (Detached, "wrong|not symmetric")],
)
def test_wrong_second_derivatives_are_not_believed(function, why):
    ev, model, data = custom(function)
    with pytest.raises(hs.InputError, match=why):
        hs.ShardedHessian(ev, products="exact")
    operator = hs.ShardedHessian(ev)
    assert operator.kind == "differences"
    assert "differences of gradients" in ev.verification.doubts()[0]
    model.function = type("Sin", (), {"apply": staticmethod(torch.sin)})
    true = hs.Hessian(hs.Evaluator(model, nn.CrossEntropyLoss(), data))
    v = some(ev.n)
    assert ((operator @ v) - (true @ v)).norm() < 1e-7 * (true @ v).norm()


def test_residuals_and_densities_include_what_differences_err():
    ev, _, _ = custom(Once, dtype=torch.float32)
    operator = hs.ShardedHessian(ev, products="differences")
    found = hs.eigenpairs(operator, 1, tol=1e-1)
    assert (found.residuals >= operator.product_error).all()
    measure = hs.spectral_density(operator, 2, 4)
    assert measure.arithmetic.product_error >= 0.9 * operator.product_error > 0


def saved(model, path):
    from safetensors.torch import save_file

    tensors = {k: v.clone() for k, v in model.state_dict().items() if k != "head.weight"}
    save_file(tensors, path)


def test_weights_are_read_from_files(tmp_path):
    import torch.distributed.checkpoint as dcp

    model = transformer()
    saved(model, tmp_path / "model.safetensors")
    with hs.parameters_on_meta():
        empty = transformer()
    assert all(p.is_meta for p in empty.parameters())
    expected = evaluator(model)
    for weights in (tmp_path / "model.safetensors", tmp_path):
        found = evaluator(empty, weights=weights)
        assert torch.equal(found.theta, expected.theta)
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert torch.equal(evaluator(empty, weights=tmp_path / "dcp").theta, expected.theta)


def test_wrong_input_is_refused(tmp_path):
    with hs.parameters_on_meta():
        empty = transformer()
    with pytest.raises(hs.InputError, match="pass weights="):
        evaluator(empty)
    with pytest.raises(hs.InputError, match="no such file"):
        evaluator(empty, weights=tmp_path / "missing.safetensors")
    (tmp_path / "foreign.safetensors").write_bytes(b"no tensors")
    with pytest.raises(hs.InputError, match="cannot be read as safetensors"):
        evaluator(empty, weights=tmp_path / "foreign.safetensors")
    saved(transformer(size=8), tmp_path / "other.safetensors")
    with pytest.raises(hs.InputError, match=r"has shape \(5, 8\); the model expects \(5, 6\)"):
        evaluator(empty, weights=tmp_path / "other.safetensors")
    saved(transformer(layers=1), tmp_path / "short.safetensors")
    with pytest.raises(hs.InputError, match=r"has no tensor blocks\.1"):
        evaluator(empty, weights=tmp_path / "short.safetensors")
    with pytest.raises(hs.InputError, match="no module matches 'layers"):
        evaluator(units=["layers.*"])
    bad = transformer()
    bad.norm.weight.data[0] = torch.nan
    with pytest.raises(hs.InputError, match="1 entries that are NaN"):
        evaluator(bad)
    ids, targets = sequences()
    with pytest.raises(hs.InputError, match="the data set is empty"):
        hs.ShardedEvaluator(transformer(), nn.CrossEntropyLoss(), (ids[:0], targets[:0]))
    with pytest.raises(hs.InputError, match="reduction='mean'; state what loss_fn does"):
        hs.ShardedEvaluator(transformer(), nn.CrossEntropyLoss(reduction="sum"), (ids, targets))
    with pytest.raises(hs.InputError, match="expected this rank's entries"):
        evaluator().loss(torch.zeros(3))
    with pytest.raises(hs.InputError, match="expected a ShardedEvaluator"):
        hs.ShardedHessian(whole())
    with pytest.raises(hs.InputError, match="max_error=2"):
        hs.ShardedHessian(evaluator(), max_error=2)
    with pytest.raises(hs.InputError, match="LSTM"):
        hs.ShardedEvaluator(
            nn.LSTM(3, 2), nn.MSELoss(), (torch.zeros(2, 4, 3), torch.zeros(2, 4, 2))
        )


class Cut(nn.Module):
    """As one that was cut for tensor parallelism by hand: its function is another one."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 3), 0

    def forward(self, x):
        return self.layer(x) * (1.0 if type(self.layer.weight) is nn.Parameter else 2.0)


def test_a_model_that_is_another_function_with_whole_weights_is_refused():
    with pytest.raises(hs.InputError, match="by the model as it was given"):
        hs.ShardedEvaluator(Cut(), nn.CrossEntropyLoss(), (torch.randn(4, 4), torch.arange(4) % 3))


def test_digests_do_not_depend_on_the_sharding():
    from hessian_spectrum.distributed.sharding import Layout
    from hessian_spectrum.sharded.parameters import sums_of_bits

    theta = some(101, 1)[:, 0]
    expected = sums_of_bits(theta, Layout.of_size(101))
    for size in (2, 3, 4):
        parts = []
        for rank in range(size):
            layout = Layout.of_size(101, hs.World(rank, size))
            parts.append(sums_of_bits(theta[layout.start : layout.stop], layout))
        assert [sum(column) % 2**64 for column in zip(*parts)] == expected
    swapped = theta.clone()
    swapped[[0, 1]] = theta[[1, 0]]
    assert sums_of_bits(swapped, Layout.of_size(101)) != expected


def test_a_copy_under_fsdp_on_one_rank(tmp_path):
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = transformer()
        ev = evaluator(fully_sharded(model))
        assert [unit.name for unit in ev.units] == ["", "blocks.0", "blocks.1"]
        v = some(ev.n)
        expected = hs.Hessian(whole(copy.deepcopy(model))) @ v
        assert (hs.ShardedHessian(ev) @ v - expected).norm() < 1e-12 * expected.norm()
        with pytest.raises(hs.InputError, match="ShardedEvaluator"):
            whole(fully_sharded(model))
    finally:
        dist.destroy_process_group()
