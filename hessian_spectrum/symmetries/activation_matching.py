"""Permutations that bring the activations of one network close to those of another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.world import World
from hessian_spectrum.symmetries.channel_groups import ChannelGroups
from hessian_spectrum.symmetries.weight_matching import assignment


def activation_matching(
    a: ChannelGroups, b: ChannelGroups, batches: Iterable[Any], world: World
) -> dict[str, np.ndarray]:
    """Permutations of b's channels with the largest sum of correlations with those of a.

    Li, Yosinski, Clune, Lipson & Hopcroft (2016, "Convergent learning"): channels are matched by
    the correlation of their activations over all samples and pixels. Of a group that occurs in
    several activations, such as a residual stream, the correlations are added. A channel that is
    constant on the data correlates with none. (Ainsworth et al. 2023, section 3.1, take inner
    products in place of correlations.)

    Args:
        a, b: the groups of two networks of one architecture, in evaluation mode: BatchNorm
            normalizes by running statistics.
        batches: this rank's minibatches, inputs or (inputs, ...).
        world: the ranks that share the data.

    Raises:
        InputError: there are no batches, or a value does not have its channels along axis 1.

    Cost: a pass of both networks over the data; for each activation of C channels a product of
    (C, samples and pixels) matrices, and a (C, C) matrix in float64.
    """
    nodes = {node for group in a for node, _ in group.values}
    sums: dict[str, _Sums] = {}
    with torch.no_grad():
        for batch in batches:
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            left, right = (_values(groups.graph, inputs, nodes) for groups in (a, b))
            for node in nodes:
                sums.setdefault(node, _Sums()).add(left[node], right[node])
    held = world.gather_objects(sorted(sums))
    if any(names != held[0] for names in held) or (nodes and not sums):
        raise InputError("a rank has no data to match activations on; give more data")
    correlations = {node: sums[node].correlations(world) for node in sorted(sums)}
    found = {}
    for group in a:
        parts = [correlations[node][np.ix_(at, at)] for node, at in group.values]
        found[group.name] = assignment(np.sum(parts, axis=0))
    return found


class _Sums:
    """Sums over samples and pixels, of which correlations are made."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, left: Tensor, right: Tensor) -> None:
        x, y = (t.double().movedim(1, 0).flatten(1) for t in (left, right))
        count = x.new_tensor(x.shape[1])
        parts = [count, x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1), x @ y.T]
        self._parts = [old + new for old, new in zip(self._parts, parts)] or parts

    def correlations(self, world: World) -> np.ndarray:
        """(C, C), of channels of the first network (rows) and of the second."""
        count, x, y, xx, yy, xy = world.sum_together(*self._parts)
        x, y = x / count, y / count
        deviations = [
            (square / count - mean * mean).clamp(min=0).sqrt()
            for square, mean in ((xx, x), (yy, y))
        ]
        # Below the rounding error of the variance a channel is constant.
        eps = torch.finfo(torch.float64).eps ** 0.5
        for deviation, square in zip(deviations, (xx, yy)):
            deviation[deviation <= eps * (square / count).sqrt()] = torch.inf
        covariance = xy / count - torch.outer(x, y)
        return (covariance / torch.outer(*deviations)).numpy()


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, graph: fx.GraphModule, nodes: set[str]):
        super().__init__(graph)
        self.nodes = nodes
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.nodes:
            self.found[n.name] = value.clone()  # which a later layer may change in place
        return value


def _values(graph: fx.GraphModule, inputs: Any, nodes: set[str]) -> dict[str, Tensor]:
    recorder = _Recorder(graph, nodes)
    recorder.run(inputs)
    return recorder.found
