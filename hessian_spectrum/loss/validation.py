"""What an evaluator refuses at construction, and why."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hessian_spectrum._core.errors import InputError, is_out_of_memory
from hessian_spectrum.loss import batch_norm, criteria, fallbacks
from hessian_spectrum.loss.batching import cast, leading_size, split

if TYPE_CHECKING:
    from hessian_spectrum.loss.evaluator import Evaluator


def vector_of(theta: Any) -> Tensor:
    """A tensor; arrays and lists of numbers are made into one, a copy."""
    if isinstance(theta, Tensor):
        return theta
    try:
        array = np.array(theta)
        return torch.from_numpy(array if array.dtype.kind == "f" else array.astype(np.float64))
    except (TypeError, ValueError):
        raise InputError(
            f"theta is a {type(theta).__name__}; expected a parameter vector, such as "
            "Evaluator.theta after zoo.load_checkpoint"
        ) from None


def finite_parameters(model: nn.Module) -> None:
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, t in tensors:
            if t.is_complex() and kind == "parameter":
                raise InputError(
                    f"the parameter {name} is complex; give the model its real and imaginary parts "
                    "as real parameters"
                )
            if t.is_floating_point() and not t.isfinite().all():
                bad = (~t.isfinite()).sum().item()
                raise InputError(
                    f"the model's {kind} {name} has {bad} entries that are NaN or infinite (of "
                    f"{t.numel()}); did the training diverge? Use an earlier checkpoint"
                )


class Found(NamedTuple):
    """This rank's share of the data."""

    weight: float = 0.0
    samples: int = 0
    minibatches: int = 0
    undivided: int = 0  # minibatches that cannot be divided, and are weighed by their first leaf
    attention: bool = False  # by torch's own function
    large_softmax: bool = False  # cross entropy over so many classes that ours is leaner


def batches(ev: Evaluator, is_pair: bool) -> Found:
    """One pass over this rank's data.

    The data's own faults first, then the loss: is it a function, and a mean over samples?
    """
    found, shape, deterministic, first = Found(), None, False, None
    for index, batch in enumerate(ev.batches):
        _structure(batch, is_pair)
        _finite_leaves(batch, index)
        if is_pair and shape is None:
            outputs = _with_unchanged_inputs(batch, lambda batch: _outputs(ev, batch))
            shape = getattr(outputs, "shape", ())
        if shape:
            criteria.check_labels(ev._loss_fn, shape, batch, index)
        weight = _weight(ev, batch, index)
        found = found._replace(
            weight=found.weight + weight,
            samples=found.samples + leading_size(batch),
            minibatches=found.minibatches + 1,
            undivided=found.undivided + (ev.counts_samples and split(batch, 1) is None),
        )
        if not weight:  # every target ignored: it has no mean
            continue
        with fallbacks.Watch() as watch:
            value = _with_unchanged_inputs(batch, lambda batch, i=index: _value(ev, batch, i))
        found = found._replace(
            attention=found.attention or watch.attention,
            large_softmax=found.large_softmax or watch.large_softmax,
        )
        _shape_and_value(ev, value, index)
        if not deterministic:
            _determinism(ev, batch)
            deterministic = True
        if not ev.is_whole:  # else the minibatch's composition is part of the loss
            _additivity(ev, batch, value, index)
            if first is not None and ev.counts_samples:
                _additivity_of_two(ev, first, batch, index)
            first = batch if first is None else first
    return found


def _weight(ev: Evaluator, batch: Any, index: int) -> float:
    try:
        weight = ev.weight(batch)
    except Exception as error:
        raise InputError(
            f"the weight of minibatch {index} cannot be found: {_in_short(error)}"
        ) from error
    if not 0 <= weight < math.inf:
        raise InputError(f"count gave minibatch {index} the weight {weight}; expected 0 or more")
    return weight


def _structure(batch: Any, is_pair: bool) -> None:
    if is_pair and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list, dict)) else ""
        raise InputError(
            f"a batch is a {type(batch).__name__}{size}; without forward= it must be a pair "
            "(inputs, targets); pass forward(model, batch), and loss_fn(outputs, batch)"
        )


def _finite_leaves(batch: Any, index: int) -> None:
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
            raise InputError(
                f"minibatch {index} of the data has NaN or infinite values in a tensor of shape "
                f"{tuple(leaf.shape)}; remove or mend those samples"
            )


def _outputs(ev: Evaluator, batch: Any) -> Any:
    """The model's outputs; its failure on this data is the user's to mend."""
    try:
        return ev.batch_outputs(ev.theta, batch, ev.constants())
    except Exception as error:
        if is_out_of_memory(error):
            raise
        shape = tuple(getattr(batch[0], "shape", ()))
        raise InputError(
            f"the model cannot evaluate inputs of shape {shape}: {_in_short(error)}"
        ) from error


def _value(ev: Evaluator, batch: Any, index: int) -> Any:
    """loss_fn's value; its failure on this data is the user's to mend."""
    try:
        return ev.batch_value(ev.theta, batch, ev.constants())
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"the loss of minibatch {index} cannot be evaluated: {_in_short(error)}"
        ) from error


def _shape_and_value(ev: Evaluator, value: Any, index: int) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"loss_fn returned a {type(value).__name__}; expected a tensor")
    if ev.reduction == "none" and value.ndim == 0:
        raise InputError(
            "reduction='none', but loss_fn returned one number for the batch; pass "
            "reduction='mean' or 'sum', whichever it computes"
        )
    if ev.reduction != "none" and value.numel() != 1:
        raise InputError(
            f"reduction={ev.reduction!r}, but loss_fn returned shape {tuple(value.shape)}; pass "
            "reduction='none' for losses of single samples"
        )
    if not value.isfinite().all():
        raise InputError(
            f"the loss of minibatch {index} is not finite, though parameters and data are: does "
            f"the model overflow in {ev.dtype}? Try dtype=torch.float64"
        )


def _determinism(ev: Evaluator, batch: Any) -> None:
    constants = ev.constants()
    before = {name: t.clone() for name, t in constants.items()}
    values, states = [], []
    devices = [ev.device] if ev.device.type == "cuda" else []
    for seed in (0, 1):
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            start = torch.get_rng_state()
            values.append(ev.batch_loss(ev.theta, batch, constants).double())
            states.append(torch.equal(start, torch.get_rng_state()))
    for name, t in constants.items():
        if not torch.equal(t.nan_to_num(), before[name].nan_to_num()):
            raise InputError(
                f"evaluating the model changes its buffer {name.removeprefix('model.')}; a loss "
                "must not depend on how often it was evaluated: remove that update in eval mode"
            )
    # Equal to rounding, not to the bit: sums on a GPU may be taken in a different order.
    if not all(states) or not _close(*values, ev.dtype):
        raise InputError(
            "the loss is random: evaluating the first minibatch twice gives "
            f"{values[0].item():.9g} and {values[1].item():.9g}; {_random_module(ev, batch)}; "
            "make it a fixed function of parameters and data (dropout through nn.Dropout is "
            "switched off by itself, F.dropout needs training=self.training)"
        )


def _random_module(ev: Evaluator, batch: Any) -> str:
    """The innermost module whose outputs differ between two evaluations, or that drew numbers."""
    names = {module: name for name, module in ev.model.named_modules()}
    seen: list[list] = [[], []]
    drew: list[str] = []
    states: list[Tensor] = []

    def enter(module, _):
        states.append(torch.get_rng_state())

    def leave(run: int):
        def hook(module, _, output):
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
                ev.batch_loss(ev.theta, batch, ev.constants())
        finally:
            for handle in hooks:
                handle.remove()
    if drew:  # modules finish from the inside out: the first to finish is the innermost
        name = drew[0]
    else:
        differing = (
            names[module] for (module, a), (_, b) in zip(*seen) if not all(map(torch.equal, a, b))
        )
        name = next(differing, None)
        if name is None:
            return "no module's output differs, so the randomness is in forward or loss_fn"
    kind = type(ev.model.get_submodule(name)).__name__
    return f"the first random module is {name or 'the model itself'} ({kind})"


def _with_unchanged_inputs(batch: Any, evaluate: Callable[[Any], Any]) -> Any:
    """``evaluate(batch)`` of a copy, which must come back as it was."""

    def copied(leaf):
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


def _additivity_of_two(ev: Evaluator, first: Any, other: Any, index: int) -> None:
    """Of parts of two minibatches together: a mean over targets that are not ignored is one over
    samples where both have as many, which minibatches of like samples hide."""
    halves = [split(batch, max(1, leading_size(batch) // 3)) for batch in (first, other)]
    if None in halves:
        return
    parts = tuple(half[0] for half in halves)
    try:
        joined = tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) else a, *parts)
        weight = ev.weight(joined)
        whole = _mean(ev, (joined,), weight, ev.dtype)
        together = _mean(ev, parts, weight, ev.dtype)
    except Exception as error:  # of different lengths
        if is_out_of_memory(error):
            raise
        return
    if _close(whole, together, ev.dtype) or not (whole.isfinite() and together.isfinite()):
        return
    raise InputError(
        f"samples of minibatches 0 and {index} together have the loss {whole.item():.9g}, but "
        f"{together.item():.9g} weighted by their numbers: loss_fn divides by something else, such "
        "as the number of targets that are not ignored; pass count=, that number for a batch"
    )


def _additivity(ev: Evaluator, batch: Any, value: Tensor, index: int) -> None:
    """The loss of a batch, ``value``, must be the weighted loss of its two uneven parts.

    Of every minibatch: ignored targets may be in the last one only.
    """
    size = leading_size(batch)
    parts = split(batch, max(1, size // 3))
    if size < 2 or parts is None:
        return
    try:
        whole = value.double().sum() * ev.scale(batch) / ev.weight(batch)
        together = _mean(ev, parts, ev.weight(batch), ev.dtype)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"the loss of a part of minibatch {index} ({leading_size(parts[0])} of {size} samples) "
            f"cannot be evaluated: {_in_short(error)}; a sum over samples must accept any number"
        ) from error
    if not _close(whole, together, ev.dtype) and ev.dtype != torch.float64:
        # Losses near zero are mostly rounding: decide in float64 where the model can.
        try:
            whole = _mean(ev, (batch,), ev.weight(batch), torch.float64)
            together = _mean(ev, parts, ev.weight(batch), torch.float64)
        except RuntimeError:
            pass
    if _close(whole, together, ev.dtype):
        return
    by_batch = {n: m for n, m in batch_norm.layers(ev.model).items() if m.running_mean is None}
    norm = by_batch and (
        f"the layer {batch_norm.described(by_batch)} normalizes by the batch's own statistics: "
        "pass batch_norm='train' if these minibatches are meant, give it track_running_stats=True, "
        "or use GroupNorm"
    )
    raise InputError(
        f"the loss of minibatch {index} ({size} samples) is {whole.item():.9g}, but its two parts "
        f"give {together.item():.9g} under reduction={ev.reduction!r}; "
        + (norm or "state what loss_fn does (reduction='mean', 'sum' or 'none'), or pass count=")
    )


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _mean(ev: Evaluator, parts: tuple, weight: float, dtype: torch.dtype) -> Tensor:
    """Sum over the parts' samples, divided by the weight of all."""
    constants, theta = ev.constants(dtype), ev.theta.to(dtype)

    def total(part):
        scale = ev.scale(part)
        if not scale:
            return torch.zeros((), dtype=torch.float64, device=ev.device)
        return ev.batch_loss(theta, cast(part, dtype), constants).double() * scale

    return sum(map(total, parts)) / weight


def _close(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Equal to eps^0.6 of the larger: 7e-5 in float32, 4e-10 in float64."""
    tolerance = torch.finfo(dtype).eps ** 0.6
    return bool((a - b).abs() <= tolerance * torch.maximum(a.abs(), b.abs()))
