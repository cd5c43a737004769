"""Modules that wrap a model for training: the evaluator is that of what they wrap."""

import pytest
import torch
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum.loss import wrappers


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


class Own(nn.Module):
    """torch compiles a module of its own, such as Sequential, in place to no graph."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).tanh()


def compiled(model):
    return torch.compile(model, backend="aot_eager")


def evaluator(model, loss_fn=None):
    torch.manual_seed(1)
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    return hs.Evaluator(model, loss_fn or nn.CrossEntropyLoss(), (x, y))


def dense(ev):
    return hs.Hessian(ev) @ torch.eye(ev.n, dtype=torch.float64)


def inside(wrap):
    """Only the first layers are wrapped."""
    model = network()
    return nn.Sequential(wrap(model[:2]), model[2])


def in_place(model):
    model.compile(backend="aot_eager")
    return model


WRAPPED = {
    "parallel": lambda: nn.DataParallel(network()),
    "compiled": lambda: compiled(network()),
    "both": lambda: nn.DataParallel(compiled(network())),
    "both, the other way": lambda: compiled(nn.DataParallel(network())),
    "compiled in place": lambda: in_place(network()),
    "compiled child": lambda: inside(compiled),
    "child compiled in place": lambda: inside(in_place),
    "parallel child": lambda: inside(nn.DataParallel),
    "compiled parallel child": lambda: inside(lambda child: compiled(nn.DataParallel(child))),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_the_hessian_is_that_of_the_module_inside(case):
    model, expected = WRAPPED[case](), evaluator(network())
    ev = evaluator(model)
    assert torch.equal(dense(ev), dense(expected))
    assert torch.equal(hs.GaussNewton(ev) @ ev.theta, hs.GaussNewton(expected) @ ev.theta)


@pytest.mark.parametrize("case", ["parallel", "compiled", "both", "both, the other way"])
def test_names_are_those_of_the_module_inside(case):
    assert evaluator(WRAPPED[case]()).layout.names == evaluator(network()).layout.names


def test_a_compiled_loss_is_evaluated_as_written():
    loss = torch.compile(lambda outputs, y: (outputs**2).mean(), backend="aot_eager")
    written = evaluator(network(), lambda outputs, y: (outputs**2).mean())
    assert torch.equal(dense(evaluator(network(), loss)), dense(written))


def test_a_parallel_child_is_not_called():
    """DistributedDataParallel's forward communicates."""

    class Loud(nn.DataParallel):
        def forward(self, *inputs):
            raise AssertionError("called")

    model = inside(Loud)
    dense(evaluator(model))
    with pytest.raises(AssertionError, match="called"):  # afterwards it is as it was
        model(torch.zeros(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("where", ["model", "child", "child in place", "loss"])
def test_nothing_is_compiled_in_an_evaluation_and_all_is_after_it(where):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def in_place(module):
        module = Own(module)
        module.compile(backend=backend)
        return module

    def squares(outputs, y):
        return (outputs**2).mean()

    torch._dynamo.reset()
    model = {
        "model": lambda: torch.compile(network(), backend=backend),
        "child": lambda: inside(lambda child: torch.compile(child, backend=backend)),
        "child in place": lambda: inside(in_place),
        "loss": network,
    }[where]()
    loss_fn = torch.compile(squares, backend=backend) if where == "loss" else squares
    dense(evaluator(model, loss_fn))
    assert not graphs
    loss_fn(model(torch.zeros(2, 4, dtype=torch.float64)), None)
    assert graphs


class FSDPModule(nn.Module):  # of the name of torch's, which needs a process group
    pass


def test_sharded_modules_are_refused_with_the_cause():
    class Sharded(FSDPModule, nn.Linear):
        pass

    model = nn.Sequential(Sharded(4, 5), nn.Linear(5, 3))
    with pytest.raises(hs.InputError, match=r"module 0 is sharded over ranks \(FSDP\)"):
        evaluator(model)
    with pytest.raises(hs.InputError, match="given as model is sharded"):
        wrappers.unwrapped(Sharded(4, 5))
