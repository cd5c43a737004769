"""The compared methods of forming products, by name: ours, variants of ours, and peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

import hessian_spectrum as hs
from benchmarks.suite import peers
from benchmarks.suite.networks import Problem
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.operators.product_modes import MODES, Products, linearized
from hessian_spectrum.planning import product_planner


class Prepared(NamedTuple):
    """A method for one problem; what it keeps between products is made in the first call."""

    products: Callable[[Tensor], Tensor]  # (k, n) -> (k, n)
    note: str = ""
    gradient: Callable[[], object] | None = None  # the method's own, if it is not the unit


Method = Callable[[Problem, int, int], Prepared]  # problem, vectors, steps of the planned run


def plain_gradient(problem: Problem, model: torch.nn.Module | None = None) -> Tensor:
    """The unit of time: one gradient of the mean loss over all minibatches, by torch alone."""
    model = model or problem.model
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for x, y in problem.batches:
        loss = problem.loss_fn(model(x), y) * (len(x) / len(problem.inputs))
        for sum_, part in zip(total, torch.autograd.grad(loss, parameters)):
            sum_ += part
    return torch.cat([t.reshape(-1) for t in total])


def reference(problem: Problem, vectors: Tensor) -> Tensor:
    """V H in float64 by reverse over reverse with torch alone, the reference for every method."""
    problem = problem.to(problem.inputs.device, torch.float64)
    rows = torch.zeros_like(vectors, dtype=torch.float64)
    for x, y in problem.batches:
        loss = problem.loss_fn(problem.model(x), y) * (len(x) / len(problem.inputs))
        gradients = torch.autograd.grad(loss, problem.parameters, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        for row, v in zip(rows, vectors.double()):
            parts = torch.autograd.grad(flat, problem.parameters, v, retain_graph=True)
            row += torch.cat([part.reshape(-1) for part in parts])
    return rows


# -- ours ------------------------------------------------------------------------------------


def _evaluator(problem: Problem) -> hs.Evaluator:
    return hs.Evaluator(
        problem.model,
        problem.loss_fn,
        (problem.inputs, problem.targets),
        batch_size=problem.batch_size,
        device=problem.inputs.device,
    )


def _ours(mode: str, keep: bool) -> Method:
    def prepare(problem: Problem, k: int, steps: int) -> Prepared:
        plan = ProductPlan(mode, chunk=None, batch_size=None, keep=keep)
        return Prepared(hs.Hessian(_evaluator(problem), plan=plan).products)

    return prepare


def _planned(problem: Problem, k: int, steps: int) -> Prepared:
    evaluator = _evaluator(problem)
    estimate = product_planner.plan(evaluator, evaluator.theta, k, steps)
    plan = estimate.plan
    words = [plan.mode, "kept" if plan.keep else "not kept", f"chunk {plan.chunk or k}"]
    words += [f"minibatches of {plan.batch_size or problem.batch_size}"]
    words += ["calibrated" if estimate.calibrated else "not calibrated"]
    words += [f"{name} refused: {why}" for name, why in estimate.refused.items()]
    return Prepared(hs.Hessian(evaluator, plan=plan).products, ", ".join(words))


# -- gradients, for comparison with the unit ---------------------------------------------------


def _unit(problem: Problem, k: int, steps: int) -> Prepared:
    return Prepared(lambda vectors: plain_gradient(problem))


def _evaluator_gradient(problem: Problem, k: int, steps: int) -> Prepared:
    evaluator = _evaluator(problem)
    return Prepared(lambda vectors: evaluator.gradient())


def _fused(problem: Problem, k: int, steps: int) -> Prepared:
    if problem.fused is None:
        raise RuntimeError("this network has no fused form")
    return Prepared(lambda vectors: plain_gradient(problem, problem.fused))


# -- variants: other arithmetic ------------------------------------------------------------------


def _channels_last(mode: str) -> Method:
    """Images with channels innermost, a memory layout that convolutions preserve."""

    def prepare(problem: Problem, k: int, steps: int) -> Prepared:
        if problem.inputs.ndim != 4 or problem.inputs.shape[1] == 1:
            raise RuntimeError("the inputs are not images with several channels")
        inputs = problem.inputs.contiguous(memory_format=torch.channels_last)
        return _with_own_gradient(replace(problem, inputs=inputs), mode)

    return prepare


def _bfloat16(mode: str) -> Method:
    """Products by autocast to bfloat16; vectors, parameters and data in the case's dtype."""

    def prepare(problem: Problem, k: int, steps: int) -> Prepared:
        plan = ProductPlan(mode, keep=True, precision="bfloat16")
        return Prepared(hs.Hessian(_evaluator(problem), plan=plan).products)

    return prepare


def _with_own_gradient(problem: Problem, mode: str) -> Prepared:
    hessian = hs.Hessian(_evaluator(problem), plan=ProductPlan(mode, keep=True))
    return Prepared(hessian.products, gradient=lambda: plain_gradient(problem))


def _compiled(problem: Problem, k: int, steps: int) -> Prepared:
    """torch.compile of each minibatch's recorded linearization, kept; one vector at a time."""
    evaluator = _evaluator(problem)
    maps: list[Products] = []

    def products(vectors: Tensor) -> Tensor:
        with evaluator.evaluation_mode(), torch.no_grad():
            if not maps:
                for part in evaluator.parts({}):
                    maps.append(torch.compile(linearized(part, evaluator.theta)))
            return sum(torch.stack([linear(v) for v in vectors]) for linear in maps)

    return Prepared(products)


GRADIENTS: dict[str, Method] = {  # measured once, with a vector that they ignore
    "gradient": _unit,
    "gradient-evaluator": _evaluator_gradient,
    "gradient-fused": _fused,
}
# Forward over reverse keeps nothing, so it has no kept variant.
OURS: dict[str, Method] = {
    **{mode: _ours(mode, False) for mode in MODES},
    **{f"{mode}-kept": _ours(mode, True) for mode in MODES if mode != "forward"},
    "planned": _planned,
}
PEERS: dict[str, Method] = {
    "pyhessian": lambda problem, k, steps: Prepared(*peers.pyhessian(problem)),
    "pyhessian-one-batch": lambda problem, k, steps: Prepared(*peers.pyhessian(problem, True)),
    "curvlinops": lambda problem, k, steps: Prepared(*peers.curvlinops(problem)),
    "hessian-eigenthings": lambda problem, k, steps: Prepared(*peers.hessian_eigenthings(problem)),
}
VARIANTS: dict[str, Method] = {
    "channels-last-reverse-kept": _channels_last("reverse"),
    "channels-last-linearize-kept": _channels_last("linearize"),
    "bfloat16-reverse-kept": _bfloat16("reverse"),
    "bfloat16-linearize-kept": _bfloat16("linearize"),
    "compiled-linearize-kept": _compiled,
}
METHODS: dict[str, Method] = {**GRADIENTS, **OURS, **PEERS, **VARIANTS}
