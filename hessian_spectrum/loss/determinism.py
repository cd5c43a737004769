"""Checks that the loss is a pure function: deterministic, and without side effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.additivity import close
from hessian_spectrum.loss.functional import LossFunction


def require_determinism(function: LossFunction, batch: Any) -> None:
    """InputError if two evaluations of the batch differ, draw numbers or change a buffer."""
    constants = function.constants()
    before = {name: t.clone() for name, t in constants.items()}
    values, states = [], []
    devices = [function.device] if function.device.type == "cuda" else []
    for seed in (0, 1):
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            start = torch.get_rng_state()
            values.append(function.loss(function.theta, batch, constants).double())
            states.append(torch.equal(start, torch.get_rng_state()))
    for name, t in constants.items():
        if not torch.equal(t.nan_to_num(), before[name].nan_to_num()):
            raise InputError(
                f"evaluating the model changes its buffer {name.removeprefix('model.')}; a loss "
                "must not depend on how often it was evaluated: remove that update in eval mode"
            )
    # To rounding, not to the bit: a GPU may sum in a different order.
    if not all(states) or not close(values[0], values[1], function.rounding):
        raise InputError(
            "the loss is random: evaluating the first minibatch twice gives "
            f"{values[0].item():.9g} and {values[1].item():.9g}; "
            f"{_random_module(function, batch)}; make it a fixed function of parameters and data "
            "(dropout through nn.Dropout is switched off by itself, F.dropout needs "
            "training=self.training)"
        )


def _random_module(function: LossFunction, batch: Any) -> str:
    """In words: the innermost module that draws random numbers or returns different outputs."""
    names = {module: name for name, module in function.model.named_modules()}
    seen: list[list[tuple[nn.Module, list[Tensor]]]] = [[], []]
    drew: list[str] = []
    states: list[Tensor] = []

    def enter(module: nn.Module, _: Any) -> None:
        states.append(torch.get_rng_state())

    def leave(run: int) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if not torch.equal(states.pop(), torch.get_rng_state()):
                drew.append(names[module])
            seen[run].append((module, [t for t in tree_leaves(output) if isinstance(t, Tensor)]))

        return hook

    for run in (0, 1):
        hooks = [
            handle
            for module in names
            for handle in (
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave(run)),
            )
        ]
        try:
            with torch.random.fork_rng([]):
                torch.manual_seed(run)
                function.loss(function.theta, batch, function.constants())
        finally:
            for handle in hooks:
                handle.remove()
    differing = (
        names[module] for (module, a), (_, b) in zip(*seen) if not all(map(torch.equal, a, b))
    )
    # Modules finish from the inside out: the first to finish is the innermost.
    name = drew[0] if drew else next(differing, None)
    if name is None:
        return "no module's output differs, so the randomness is in forward or loss_fn"
    kind = type(function.model.get_submodule(name)).__name__
    return f"the first random module is {name or 'the model itself'} ({kind})"


def with_unchanged_inputs(batch: Any, evaluate: Callable[[Any], Any]) -> Any:
    """``evaluate`` of a copy of the batch; InputError if it changes the copy in place."""

    def copied(leaf: Any) -> Any:
        return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf

    mine = tree_map(copied, batch)
    value = evaluate(mine)
    for before, after in zip(tree_leaves(batch), tree_leaves(mine)):
        if isinstance(before, Tensor) and not torch.equal(
            before.nan_to_num(), after.detach().nan_to_num()
        ):
            raise InputError(
                f"evaluating the loss changes a tensor of the data in place, of shape "
                f"{tuple(before.shape)}; let forward and loss_fn work on copies, as x = x - 1 "
                "instead of x -= 1"
            )
    return value
