"""Groups of channels of a network that may be permuted, and the tensors that they lie in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.symmetries.channel_trace import Traced, trace
from hessian_spectrum.symmetries.union import FIXED

Permutations = Mapping[str, np.ndarray]  # by group: new channel i is the old channel p[i]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Place:
    """Where the channels of a group lie in one tensor of the state."""

    tensor: str
    axis: int
    indices: np.ndarray  # (size, parts): entries along the axis of each channel


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that occur in the same axes of the same tensors, so that any two may be exchanged.

    Those that a residual stream carries are one group in all blocks of a stage. Where a shortcut
    pads a stream with channels that are 0, the padded stream has two groups: the channels that came
    in, and those that the stage adds.
    """

    name: str  # of the first layer that makes its channels
    size: int
    places: tuple[Place, ...]
    # Values of the graph that have all these channels, by node, and where: (size,). What activation
    # functions return; where there are none, all.
    values: tuple[tuple[str, np.ndarray], ...]


@dataclass(frozen=True)
class ChannelGroups:
    """All permutations of hidden channels that leave a network's function as it is.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        >>> groups = ChannelGroups.of(net)
        >>> [(p.tensor, p.axis) for p in groups["0"].places]
        [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]
    """

    groups: tuple[ChannelGroup, ...]
    graph: fx.GraphModule

    @classmethod
    def of(cls, model: nn.Module) -> ChannelGroups:
        """The groups of a network, traced.

        Raises:
            InputError: the network cannot be traced, or has an operation whose symmetries are not
                known.
        """
        traced = trace(model)
        members = _members(traced)
        names: set[str] = set()
        groups = []
        for channels in members:
            name = _unused(_name(traced, channels), names)
            groups.append(_group(name, channels, traced, model))
        return cls(tuple(groups), traced.graph)

    def __getitem__(self, name: str) -> ChannelGroup:
        for group in self.groups:
            if group.name == name:
                return group
        held = ", ".join(group.name for group in self.groups) or "none"
        raise InputError(f"no group of channels {name!r}; there is: {held}")

    def __iter__(self):
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def identity(self) -> dict[str, np.ndarray]:
        """The permutations that change nothing."""
        return {group.name: np.arange(group.size) for group in self.groups}

    def random(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Uniformly random permutations."""
        random = np.random.default_rng(seed)
        return {group.name: random.permutation(group.size) for group in self.groups}

    def apply(self, permutations: Permutations, state: State) -> dict[str, Tensor]:
        """The state (parameters and buffers by name) with permuted channels; tensors are new.

        Cost: a copy of each tensor for each axis that is permuted.
        """
        found = {name: tensor.detach().clone() for name, tensor in state.items()}
        for name, permutation in permutations.items():
            for place in self[name].places:
                if place.tensor in found:
                    found[place.tensor] = permuted(found[place.tensor], place, permutation)
        return found


def permuted(tensor: Tensor, place: Place, permutation: np.ndarray) -> Tensor:
    """``tensor`` with channel p[i] of the group at the place of channel i."""
    index = np.arange(tensor.shape[place.axis])
    index[place.indices] = place.indices[permutation]
    return tensor.index_select(place.axis, torch.from_numpy(index).to(tensor.device))


# -- inside ---------------------------------------------------------------------------------------


def _members(traced: Traced) -> list[list[int]]:
    """The channels of each group, in the order in which tensors list them."""
    where: dict[int, list[tuple[str, int]]] = {}
    for axis, channels in traced.axes.items():
        for channel in channels.tolist():
            where.setdefault(channel, []).append(axis)
    where.pop(FIXED, None)
    members: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for channel, places in where.items():
        members.setdefault(tuple(places), []).append(channel)
    return [found for found in members.values() if len(found) > 1]


def _group(name: str, channels: list[int], traced: Traced, model: nn.Module) -> ChannelGroup:
    aliases = _aliases(model)
    places = tuple(
        Place(alias, axis, found)
        for (tensor, axis), along in traced.axes.items()
        if (found := _indices(along, channels)) is not None
        for alias in aliases[tensor]
    )
    values = {
        node: found[:, 0]
        for node, along in traced.values.items()
        if (found := _indices(along, channels)) is not None and found.shape[1] == 1
    }
    preferred = {node: at for node, at in values.items() if node in traced.activations} or values
    return ChannelGroup(name, len(channels), places, tuple(preferred.items()))


def _indices(along: np.ndarray, channels: list[int]) -> np.ndarray | None:
    """(size, parts), where each channel is along an axis; None where not all are."""
    found = [np.flatnonzero(along == channel) for channel in channels]
    parts = {len(indices) for indices in found}
    return np.stack(found) if len(parts) == 1 and parts != {0} else None


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """All names in the state of each tensor, which layers may share."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        by_tensor.setdefault(id(tensor), []).append(name)
    return {name: names for names in by_tensor.values() for name in names}


def _name(traced: Traced, channels: list[int]) -> str:
    made = [
        tensor.rpartition(".")[0]
        for (tensor, axis), along in traced.axes.items()
        if axis == 0 and np.isin(channels, along).all()
    ]
    return made[0] if made else "padding"


def _unused(name: str, names: set[str]) -> str:
    count, found = 1, name
    while found in names:
        count += 1
        found = f"{name}#{count}"
    names.add(found)
    return found
