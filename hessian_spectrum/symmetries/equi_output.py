"""Permutations and sign flips of hidden units that leave a network of odd activations as it is.

Chen, Lu & Hecht-Nielsen (1993, "On the geometry of feedforward neural network error surfaces",
Neural Computation 5, 910-927): a product of Weyl groups, whose orbits lie on spheres.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.symmetries.dense_layers import DenseLayer, DenseNetwork

ODD = (nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink)


@dataclass(frozen=True, eq=False)
class Element:
    """One transformation: in hidden layer l, new unit i is signs[l][i] times old unit orders[l][i].

    A sign multiplies all that belongs to a unit: incoming weights, bias and outgoing weights.
    """

    orders: tuple[np.ndarray, ...]  # (units,) each, permutations
    signs: tuple[np.ndarray, ...]  # (units,) each, 1 or -1

    def after(self, other: Element) -> Element:
        """The transformation that applies ``other`` first and then this one."""
        pairs = list(zip(self.orders, other.orders))
        return Element(
            tuple(second[first] for first, second in pairs),
            tuple(s * t[order] for s, t, order in zip(self.signs, other.signs, self.orders)),
        )

    def inverse(self) -> Element:
        """The transformation that takes this one back."""
        orders = tuple(np.argsort(order) for order in self.orders)
        return Element(orders, tuple(s[order] for s, order in zip(self.signs, orders)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Element) and all(
            np.array_equal(a, b)
            for a, b in zip((*self.orders, *self.signs), (*other.orders, *other.signs), strict=True)
        )


class Tie(NamedTuple):
    """Units of one hidden layer between which the canonical representative does not decide."""

    layer: int
    units: tuple[int, ...]  # of the representative


class Representative(NamedTuple):
    """The canonical member of an orbit."""

    theta: Tensor  # (n,)
    element: Element  # that leads to it
    ties: tuple[Tie, ...]  # none of generic parameters


class Neighbour(NamedTuple):
    """A member of the orbit, and how far it is."""

    distance: float  # |theta - element theta|
    element: Element


@dataclass(frozen=True)
class EquiOutputGroup:
    """The group of a dense network whose hidden activations are odd, such as tanh.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> group = EquiOutputGroup.of(net)
        >>> group.order  # 4! 2^4
        384
        >>> theta = torch.nn.utils.parameters_to_vector(net.parameters())
        >>> other = group.apply(group.random(seed=1), theta)
        >>> bool(torch.equal(group.canonical(other).theta, group.canonical(theta).theta))
        True
    """

    network: DenseNetwork

    @classmethod
    def of(cls, model: nn.Module) -> EquiOutputGroup:
        """The group of an ``nn.Sequential`` of Linear layers and odd activations.

        Raises:
            InputError: another network.
        """
        return cls(DenseNetwork.of(model, ODD))

    @property
    def widths(self) -> list[int]:
        """Units of each hidden layer."""
        return [layer.fan_out for layer, _ in self.network.hidden]

    @property
    def order(self) -> int:
        """The number of elements, the product of M! 2^M over hidden layers of M units; exact."""
        return math.prod(math.factorial(m) * 2**m for m in self.widths)

    def identity(self) -> Element:
        """The element that changes nothing."""
        return Element(
            tuple(np.arange(m) for m in self.widths), tuple(np.ones(m, int) for m in self.widths)
        )

    def random(self, seed: int = 0) -> Element:
        """A uniformly random element."""
        random = np.random.default_rng(seed)
        orders = tuple(random.permutation(m) for m in self.widths)
        return Element(orders, tuple(1 - 2 * random.integers(0, 2, m) for m in self.widths))

    def elements(self) -> Iterator[Element]:
        """All ``order`` elements, one after the other."""
        layers = [
            [(np.array(p), np.array(s)) for p, s in _signed_permutations(m)] for m in self.widths
        ]
        for chosen in product(*layers):
            yield Element(tuple(p for p, _ in chosen), tuple(s for _, s in chosen))

    def apply(self, element: Element, theta: Tensor) -> Tensor:
        """The transformed parameters, (n,); exact, since weights are moved and change signs alone.

        Raises:
            InputError: theta does not have the network's n entries.

        Cost: a copy of theta for each hidden layer.
        """
        found = self.network.check(theta)
        for (layer, behind), order, sign in zip(
            self.network.hidden, element.orders, element.signs, strict=True
        ):
            at = torch.from_numpy(order).to(found.device)
            flip = torch.from_numpy(sign).to(found)
            weights, outgoing = layer.weights(found), behind.weights(found)
            weights.copy_(flip[:, None] * weights[at])
            outgoing.copy_(flip * outgoing[:, at])
            if layer.bias is not None:
                layer.biases(found).copy_(flip * layer.biases(found)[at])
        return found

    def keys(self, theta: Tensor) -> list[Tensor]:
        """Of each hidden layer, (units,): what the wedge orders units by.

        A unit's bias, or without biases its first incoming weight.
        """
        theta = self.network.check(theta)
        return [layer.incoming(theta)[:, 0] for layer, _ in self.network.hidden]

    def is_in_wedge(self, theta: Tensor) -> bool:
        """Do the keys of each hidden layer satisfy k_1 > k_2 > ... > k_M > 0?

        These M inequalities a layer are a Weyl chamber of the layer's group. Of the orbit of any
        theta whose keys in each layer have different magnitudes, not 0, exactly one member
        satisfies them all: a minimal sufficient search set, of 1 / ``order`` of the sphere. (Keys
        of a layer without biases are weights from the first unit in front of it, which the layer in
        front puts there.)
        """
        return all(bool((k[:-1] > k[1:]).all()) and bool(k[-1] > 0) for k in self.keys(theta))

    def canonical(self, theta: Tensor) -> Representative:
        """The member of the orbit in the closed wedge: keys positive and descending in each layer.

        From the first hidden layer to the last, the sign of a unit makes its key positive, and
        units are sorted by their keys. Where keys are 0 or equal, the following entries of the
        incoming weights decide in the same way, then the outgoing weights: of the last hidden layer
        themselves, of others their magnitudes in descending order, which later layers do not
        change. What even these leave open is listed as ties, in the order in which it was found. Of
        the last hidden layer ties are units that are equal in all weights: any element that
        exchanges them, or that flips one whose weights are all 0, leaves the representative as it
        is (its stabilizer). In earlier layers the representative may depend on which member of the
        orbit was given.

        Cost: a sort of each layer.
        """
        theta, hidden = self.network.check(theta), self.network.hidden
        total, ties = self.identity(), []
        for index, (layer, behind) in enumerate(hidden):
            is_last = index == len(hidden) - 1
            order, sign, open_ = _sorted_units(layer, behind, theta, is_last)
            step = self._of_layer(index, order, sign)
            theta, total = self.apply(step, theta), step.after(total)
            ties += [Tie(index, units) for units in open_]
        return Representative(theta, total, tuple(ties))

    def in_cone(self, theta: Tensor, reference: Tensor) -> Representative:
        """The member of the orbit that is nearest to ``reference``, for one hidden layer.

        The cone is {theta: theta . r >= theta . g r for all elements g} with the reference r, all
        points that are at least as near to r as to any other member of r's orbit. Where r differs
        from all other members of its orbit, it is a minimal sufficient search set, bounded by
        hyperplanes through 0. With an r that is 0 but for the keys, which are positive and
        descending, it is the wedge.

        Raises:
            InputError: several hidden layers, for which this is no assignment problem.

        Cost: an assignment problem of all units, O(units^3).
        """
        theta, reference = self.network.check(theta), self.network.check(reference)
        if len(self.widths) > 1:
            raise InputError(
                f"{len(self.widths)} hidden layers; the cone's member is known of one alone: use "
                "canonical, the member in the wedge"
            )
        here, there = (self._units(0, t).double().cpu().numpy() for t in (theta, reference))
        products = there @ here.T
        order = linear_sum_assignment(np.abs(products), maximize=True)[1]
        sign = np.where(products[np.arange(len(order)), order] < 0, -1, 1)
        element = self._of_layer(0, order, sign)
        return Representative(self.apply(element, theta), element, ())

    def neighbours(self, theta: Tensor, count: int = 1) -> list[Neighbour]:
        """The nearest members of the orbit that an exchange of two units or one flip leads to.

        All members of the orbit lie on the sphere of radius |theta| around 0 (the "spherical
        throng"). With u_i all weights of unit i, incoming, bias and outgoing, a flip of unit i
        moves theta by 2 |u_i|, and an exchange of units i and j, with both flipped where that is
        nearer, by sqrt(2) d_ij, d_ij = min(|u_i - u_j|, |u_i + u_j|). With one hidden layer the
        first of them is the nearest of all members: a cycle of k units moves theta by at least
        sqrt(k) times the smallest d_ij. With several layers elements that act on two layers
        together may be nearer.

        Args:
            count: how many, nearest first.

        Cost: a matrix of inner products of units for each layer.
        """
        theta = self.network.check(theta)
        found: list[tuple[float, int, np.ndarray, np.ndarray]] = []
        for index, width in enumerate(self.widths):
            units = self._units(index, theta).double()
            gram = (units @ units.T).cpu().numpy()
            squares = np.diag(gram)
            for i in range(width):
                sign = np.ones(width, int)
                sign[i] = -1
                found.append((4 * squares[i], index, np.arange(width), sign))
            for i, j in combinations(range(width), 2):
                order, sign = np.arange(width), np.ones(width, int)
                order[[i, j]] = j, i
                if gram[i, j] < 0:
                    sign[[i, j]] = -1
                square = 2 * (squares[i] + squares[j] - 2 * abs(gram[i, j]))
                found.append((square, index, order, sign))
        found.sort(key=lambda row: row[0])
        return [
            Neighbour(math.sqrt(max(square, 0.0)), self._of_layer(index, order, sign))
            for square, index, order, sign in found[:count]
        ]

    def _units(self, index: int, theta: Tensor) -> Tensor:
        """(units, weights), all that belongs to each unit of a hidden layer."""
        layer, behind = self.network.hidden[index]
        return torch.cat([layer.incoming(theta), behind.weights(theta).T], 1)

    def _of_layer(self, index: int, order: np.ndarray, sign: np.ndarray) -> Element:
        """The element that acts on one hidden layer."""
        same = self.identity()
        orders, signs = list(same.orders), list(same.signs)
        orders[index], signs[index] = order, sign
        return Element(tuple(orders), tuple(signs))


def _signed_permutations(width: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    return product(permutations(range(width)), product((1, -1), repeat=width))


def _sorted_units(
    layer: DenseLayer, behind: DenseLayer, theta: Tensor, is_last: bool
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """The order and signs of a layer's units, and those units whose place stays open."""
    incoming = layer.incoming(theta).cpu().numpy()
    outgoing = behind.weights(theta).T.cpu().numpy()
    # Later layers change the order and signs of the outgoing weights, but of the last layer not.
    known = np.concatenate([incoming, outgoing], 1) if is_last else incoming
    sign = np.array([next((1 if x > 0 else -1 for x in row if x), 1) for row in known])
    if not is_last:
        outgoing = -np.sort(-np.abs(outgoing), axis=1)
        rows = np.concatenate([sign[:, None] * incoming, outgoing], 1)
    else:
        rows = sign[:, None] * known
    order = np.lexsort(-rows.T[::-1])
    in_order = rows[order]
    same = [False, *(in_order[1:] == in_order[:-1]).all(1)]
    starts = [i for i, repeats in enumerate(same) if not repeats]
    runs = [tuple(range(a, b)) for a, b in zip(starts, [*starts[1:], len(order)])]
    is_zero = ~(known[order] != 0).any(1)
    open_ = [run for run in runs if len(run) > 1 or is_zero[run[0]]]
    return order, sign[order], open_
