"""What is looked at before a sharded model is believed: the data, the loss, and its value.

All passes are made by all ranks together, since each gathers weights: a rank that stopped alone
would leave the others waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError, in_one_line, is_out_of_memory
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.loss import fallbacks, validation
from hessian_spectrum.loss.additivity import close
from hessian_spectrum.loss.batching import cast, leading_size, split
from hessian_spectrum.sharded.units import is_fsdp

if TYPE_CHECKING:
    from hessian_spectrum.sharded.evaluator import ShardedEvaluator


@dataclass
class Doubts:
    """What could not be verified, as ``loss.verification`` tells and stores it."""

    unverified: list[str]
    dtype: torch.dtype

    def doubts(self) -> list[str]:
        """In words."""
        return list(self.unverified)

    def stored(self) -> dict[str, Any]:
        """Entries to be stored with results."""
        name = str(self.dtype).removeprefix("torch.")
        return {"unverified": self.doubts(), "without_gradient": [], "differences_in": name}


@dataclass(frozen=True)
class Share:
    """What all ranks know of the data."""

    weight: float  # of all samples
    samples: float
    rounds: int  # minibatches of the rank that has most
    spare: Any  # a minibatch of one sample for ranks that have none left


def read(ev: ShardedEvaluator) -> Share:
    """Read this rank's data, and agree on their sizes.

    Raises:
        InputError: on every rank, if the data of one are of no use.
    """
    function, world = ev.function, ev.world

    def own() -> tuple[list[float], Any]:
        weight, samples, rounds, first = 0.0, 0, 0, None
        for index, batch in enumerate(ev.batches):
            validation.require_usable(function, batch, index)
            here = validation.weight_of(function, batch, index)
            weight, samples = weight + here, samples + leading_size(batch)
            if here:
                rounds += 1
                first = batch if first is None else first
        return [weight, samples, rounds], first

    (weight, samples, rounds), first = together(world, own)
    sizes = world.gather_objects((weight, samples, rounds))
    if not sum(size[0] for size in sizes) > 0:
        raise InputError("the data set is empty: the samples' weights add up to 0")
    spare = None
    if first is not None:
        halves = split(first, 1)
        spare = first if halves is None or not function.weight(halves[0]) else halves[0]
    if not all(size[2] for size in sizes):
        giver = next(rank for rank, size in enumerate(sizes) if size[2])
        given = world.gather_objects(spare if world.rank == giver else None)[giver]
        spare = given if spare is None else spare
    return Share(
        sum(size[0] for size in sizes),
        sum(size[1] for size in sizes),
        max(size[2] for size in sizes),
        spare,
    )


def require_function(ev: ShardedEvaluator, first: Any) -> None:
    """Is the loss a deterministic mean over samples? On the first minibatch of every rank.

    Raises:
        InputError: on every rank, if it is not on one.

    Cost: four forward passes over a minibatch.
    """
    function = ev.function
    halves = split(first, max(1, leading_size(first) // 3)) if leading_size(first) > 1 else None
    parts = halves if halves and all(map(function.weight, halves)) else (first, first)
    with torch.no_grad(), ev.at(ev.theta), fallbacks.Watch() as watch:
        constants = function.constants()
        with function.noting_casts():
            value = function.batch_value(first, constants)
        again = function.batch_value(first, constants)
        of_parts = [function.batch_value(part, constants) for part in parts]

    def judge() -> tuple[bool, tuple[str, ...]]:
        for each in (value, again, *of_parts):
            validation.require_value(function, each, 0)
        eps = function.rounding
        whole = _sum(ev, value, first)
        if not close(whole, _sum(ev, again, first), eps):
            raise InputError(
                "the loss is random: evaluating the first minibatch twice gives "
                f"{value.double().sum().item():.9g} and {again.double().sum().item():.9g}; make it "
                "a fixed function of parameters and data"
            )
        if parts is halves:
            sums = [_sum(ev, v, part) for v, part in zip(of_parts, parts)]
            together_ = sums[0] + sums[1]
            if not close(whole, together_, eps):
                raise InputError(
                    f"the loss of minibatch 0 ({leading_size(first)} samples) is "
                    f"{(whole / function.weight(first)).item():.9g}, but its two parts give "
                    f"{(together_ / function.weight(first)).item():.9g} under "
                    f"reduction={function.reduction!r}; state what loss_fn does "
                    "(reduction='mean', 'sum' or 'none'), or pass count= if it divides by "
                    "something else than samples"
                )
        return watch.large_softmax, fallbacks.found(
            function.model, watch.attention, watch.weight_norm
        )

    large, replaced = together(ev.world, judge)
    function.large_softmax = any(ev.world.gather_objects(large))
    ev.fallbacks = replaced
    if ev.world.rank == 0:
        fallbacks.say_once(replaced)


def _sum(ev: ShardedEvaluator, value: Tensor, batch: Any) -> Tensor:
    return value.double().sum() * ev.function.scale(batch)


def require_same_loss(ev: ShardedEvaluator, sample: Any) -> list[str]:
    """Compare the loss of a few samples with that of the model as it was given.

    A model that was cut for tensor parallelism by hand (a number of heads divided by the ranks) is
    another function with whole weights.

    Args:
        sample: the same on every rank.

    Returns:
        In words, why it could not be compared; empty if it was.

    Raises:
        InputError: the losses differ.
    """
    function, model = ev.function, ev.model
    if any(p.is_meta for p in model.parameters()):
        return []
    types = {p.dtype for p in model.parameters()} | {function.compute} | set(_policies(model))
    own = next(p.dtype for p in model.parameters())
    with torch.no_grad(), ev.at(ev.theta):
        found = function.batch_value(sample, function.constants()).double().sum()
    modes = [(module, module.training) for module in model.modules()]
    expected, failed = None, None
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            expected = function.loss_of(model, cast(sample, own))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        failed = in_one_line(error)
    finally:
        for module, training in modes:
            module.training = training
    if expected is None:
        return [f"the loss of the model as it was given: it cannot be evaluated ({failed})"]
    if hasattr(expected, "full_tensor"):
        expected = expected.full_tensor()
    expected = expected.double().to(found.device)
    if close(found, expected, max(torch.finfo(t).eps for t in types)):
        return []
    raise InputError(
        f"the loss of one sample is {expected.item():.9g} by the model as it was given, but "
        f"{found.item():.9g} by its modules with whole weights; was it changed for tensor "
        "parallelism, such as a number of heads divided by the ranks? Write sizes so that they "
        "follow from the tensors (view(..., -1, head_size)), or pass the model without parallelism "
        "and weights="
    )


def _policies(model: Any) -> list[torch.dtype]:
    """Types that FSDP2 casts weights to."""
    found = []
    for module in model.modules():
        if is_fsdp(module):
            policy = getattr(module._get_fsdp_state(), "_mp_policy", None)
            found += [t for t in (getattr(policy, "param_dtype", None),) if t is not None]
    return found
