"""Two networks of one architecture, one of them with its hidden units in the order of the other."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.loaders import deal
from hessian_spectrum.symmetries.activation_matching import activation_matching
from hessian_spectrum.symmetries.channel_groups import ChannelGroups
from hessian_spectrum.symmetries.weight_matching import weight_matching

Method = Literal["weights", "activations"]
BATCH = 512  # samples in a pass of both networks


@dataclass(frozen=True, eq=False)
class Matching:
    """How the second network's hidden units are permuted, and what it is then.

    ``state`` computes the same function as the second network.
    """

    method: Method
    permutations: Mapping[str, np.ndarray]  # by group: new unit i is the second's unit p[i]
    iterations: int  # passes over the groups; of activations, one
    state: Mapping[str, Tensor]  # parameters and buffers, for load_state_dict
    groups: ChannelGroups
    distance_before: float  # |theta_a - theta_b| over all parameters
    distance: float  # the same with the matched network

    @property
    def num_moved(self) -> int:
        """Units that have another place than before."""
        moved = (p != np.arange(len(p)) for p in self.permutations.values())
        return int(sum(places.sum() for places in moved))


def match(
    model_a: nn.Module,
    model_b: nn.Module,
    method: Method = "weights",
    data: Any = None,
    seed: int = 0,
    *,
    world: World | None = None,
) -> Matching:
    """Permute the hidden units of ``model_b`` so that they correspond to those of ``model_a``.

    Ainsworth, Hayase & Srinivasa (2023, "Git Re-Basin", ICLR). Neither model is changed. Weights
    along an axis of hidden units or channels, biases, BatchNorm's weights and its running
    statistics move together; what the groups of units are is read from the traced network
    (``symmetries.channel_groups``).

    Args:
        model_a, model_b: two networks of one architecture: Linear, convolutions, BatchNorm,
            activations, pooling, Flatten, residual sums and concatenations.
        method: "weights" raises the inner product of all parameters group by group;
            "activations" matches channels by the correlations of their activations on ``data``.
        data: with "activations": (inputs, targets), a Dataset or a DataLoader, whose first entry
            the models take.
        seed: with "weights": of the order of the groups in each pass.
        world: with "activations": the ranks that share the data; default: all.

    Raises:
        InputError: the models differ in their tensors, cannot be traced, have an operation whose
            symmetries are not known, or ``data`` is missing or not needed.

    Cost: for "weights" a few passes of matrix products and assignment problems, O(size^3) for
    each group; for "activations" a pass of both networks over the data.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> a = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> b = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> order = torch.tensor([2, 0, 3, 1])  # the same network, with its units in another order
        >>> with torch.no_grad():
        ...     for mine, theirs in ((b[0].weight, a[0].weight), (b[0].bias, a[0].bias)):
        ...         _ = mine.copy_(theirs[order])
        ...     _ = b[2].weight.copy_(a[2].weight[:, order]), b[2].bias.copy_(a[2].bias)
        >>> found = hs.match(a, b)
        >>> found.permutations["0"].tolist(), found.distance
        ([1, 3, 0, 2], 0.0)
    """
    if method not in get_args(Method):
        raise InputError(f"method={method!r}: expected one of {', '.join(get_args(Method))}")
    if (data is None) == (method == "activations"):
        wanted = "needs data= to compare them on" if data is None else "takes no data; leave it out"
        raise InputError(f"method={method!r} {wanted}")
    batches: Iterable[Any] = ()
    ranks = world or World.current()
    if data is not None:
        parameter = next(model_a.parameters(), torch.empty(0))
        ranks = world or World.current()
        batches = deal(data, BATCH, ranks, parameter.dtype)
    return matched(model_a, model_b, method, batches, ranks, seed)


def matched(
    model_a: nn.Module,
    model_b: nn.Module,
    method: Method,
    batches: Iterable[Any],
    world: World,
    seed: int,
) -> Matching:
    """``match`` on this rank's minibatches, as an evaluator has them."""
    _require_same_tensors(model_a, model_b)
    # Copies: tracing and the statistics of BatchNorm are those of evaluation mode.
    a, b = (ChannelGroups.of(copy.deepcopy(model).eval()) for model in (model_a, model_b))
    _require_same_groups(a, b)
    left, right = dict(model_a.named_parameters()), dict(model_b.named_parameters())
    if method == "weights":
        permutations, iterations = weight_matching(a, left, right, seed)
    else:
        permutations, iterations = activation_matching(a, b, batches, world), 1
    state = a.apply(permutations, model_b.state_dict())
    return Matching(
        method,
        permutations,
        iterations,
        state,
        a,
        _distance(left, right),
        _distance(left, {name: state[name] for name in right}),
    )


def _require_same_tensors(model_a: nn.Module, model_b: nn.Module) -> None:
    first, second = (
        {name: tuple(t.shape) for name, t in model.state_dict().items()}
        for model in (model_a, model_b)
    )
    for name in first | second:
        if first.get(name) != second.get(name):
            raise InputError(
                f"{name} has the shape {first.get(name)} in the first network and "
                f"{second.get(name)} in the second; expected two networks of one architecture"
            )


def _require_same_groups(a: ChannelGroups, b: ChannelGroups) -> None:
    first, second = ([(g.name, g.size) for g in groups] for groups in (a, b))
    if first != second:
        raise InputError(
            f"the networks have different groups of channels, {first} and {second}; expected two "
            "networks of one architecture"
        )


def _distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    pairs = ((left[name].detach().double(), right[name].detach().double()) for name in left)
    return sum(torch.sum((x - y.to(x.device)) ** 2).item() for x, y in pairs) ** 0.5
