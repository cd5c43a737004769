"""Block Krylov spaces that are restarted from their best Ritz vectors, within a bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessian_spectrum.distributed.world import Flags, World
from hessian_spectrum.krylov.block_gram_schmidt import extension, orthonormal
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.product_noise import asymmetry, not_finite
from hessian_spectrum.krylov.storage import Place, allocate_together
from hessian_spectrum.operators.base import SymmetricOperator

Array = NDArray[np.float64]

SLICE = 1 << 16  # entries of the basis that are turned at once


@dataclass(frozen=True)
class RitzSpace:
    """An orthonormal basis with what A does to it: Q A = H Q + C Q_next + what was dropped.

    Vectors are rows. ``basis`` is changed in place: of two states of one run, only the later may
    go on.
    """

    basis: Tensor  # (capacity, n_local): Q, then Q_next, then unused
    h: Array  # (r, r), row i: A q_i in coordinates of Q, as it was computed
    coupling: Array  # (r, b), C
    leak: Array  # (r,), |what was dropped of A q_i| by restarts
    starts: int  # random vectors that the space was started from
    steps: int = 0
    products: int = 0
    restarts: int = 0
    fresh_at: int = 0  # step of the latest random vector
    patience: int = 0  # steps to go with it
    scale: float = 0.0  # the largest |A q| so far: what breakdown is judged against
    noise: float = 0.0  # relative error of a product, measured as asymmetry in the first step

    @property
    def order(self) -> int:
        """r, the number of basis vectors that were multiplied."""
        return len(self.h)

    @property
    def width(self) -> int:
        """b, the number of vectors that are multiplied next; 0: the space is invariant."""
        return self.coupling.shape[1]

    @property
    def capacity(self) -> int:
        return len(self.basis)

    @property
    def is_full(self) -> bool:
        """There is no room for another step."""
        return self.order + 2 * self.width > self.capacity


def start(
    operator: SymmetricOperator, vectors: Tensor, capacity: int, place: Place = "device"
) -> RitzSpace:
    """The space of ``vectors``, (b, n_local), linearly independent, with room for ``capacity``."""
    world = operator.layout.world
    rows, _ = orthonormal(vectors, world, operator.n)
    basis = allocate_together((capacity, vectors.shape[1]), vectors, world, place)
    basis[: len(rows)] = rows
    empty = np.zeros((0, len(rows)))
    return RitzSpace(basis, np.zeros((0, 0)), empty, np.zeros(0), starts=len(rows))


def of_block_space(
    space: BlockSpace, capacity: int, world: World, place: Place = "device"
) -> RitzSpace:
    """What a density run has found: its Krylov space, to go on from. No products."""
    order, width = space.order, space.sizes[-1]
    coupling = np.zeros((order, width))
    coupling[order - len(space.off[-1]) :] = space.off[-1]
    shape = max(capacity, order + width), space.basis.shape[1]
    basis = allocate_together(shape, space.basis, world, place)
    basis[: order + width] = space.basis[: order + width]
    return RitzSpace(
        basis,
        space.t,
        coupling,
        np.zeros(order),
        starts=space.sizes[0],
        steps=space.num_steps,
        products=order,
        scale=space.scale,
        noise=space.noise,
    )


def step(operator: SymmetricOperator, space: RitzSpace, flags: Flags | None = None) -> RitzSpace:
    """Multiply Q_next: one block product, and the block that leads out of the space.

    As ``block.step``, with all coordinates kept as they are computed: that H is not quite symmetric
    is part of the residuals.

    Raises:
        FloatingPointError: a product is not finite; on every rank.

    Cost: 8 b r n_local flops, all in matrix products; two small reductions, or three.
    """
    world, device = operator.layout.world, operator.device
    r, b = space.order, space.width
    basis = space.basis[: r + b]
    q = basis[r:].to(device)
    aq = operator.products(q)
    noise = space.noise if space.steps else asymmetry(operator, q, aq)
    most = operator.n - r - b
    extended = extension(aq.to(basis.device), basis, world, space.scale, noise, most, flags)
    if extended is None:
        raise not_finite(operator, f"block step {space.steps + 1}")
    found, rows, out, scale = extended
    space.basis[r + b : r + b + len(found)] = found
    return replace(
        space,
        h=np.block([[space.h, space.coupling], [rows]]) if r else rows,
        coupling=np.concatenate([np.zeros((r, len(found))), out]),
        leak=np.concatenate([space.leak, np.zeros(b)]),
        steps=space.steps + 1,
        products=space.products + b,
        scale=scale,
        noise=noise,
    )


def restarted(space: RitzSpace, s: Array) -> RitzSpace:
    """The space of the Ritz vectors with coordinates ``s``, (r, p) orthonormal columns, and Q_next.

    It is a Krylov space still (Stewart, SIAM J. Matrix Anal. Appl. 23 (2002) 601-614). No products.
    """
    r, b, p = space.order, space.width, s.shape[1]
    _turn(space.basis[:r], s)
    space.basis[p : p + b] = space.basis[r : r + b].clone()
    h = s.T @ space.h @ s
    dropped = ((space.h.T @ s - s @ h.T) ** 2).sum(0)  # an asymmetry, or small
    return replace(
        space,
        h=h,
        coupling=s.T @ space.coupling,
        leak=np.sqrt((s**2).T @ space.leak**2 + dropped),
        restarts=space.restarts + 1,
    )


def refreshed(operator: SymmetricOperator, space: RitzSpace, s: Array, vector: Tensor) -> RitzSpace:
    """The space of the Ritz vectors ``s``, (r, p), and a random vector, orthogonal to them.

    What led out of the old space is dropped, and remembered in ``leak``: small for pairs that have
    converged. The new direction is followed for at least half the steps that it took to come here:
    a copy shows long before it has converged.
    """
    old = restarted(space, s)
    p = s.shape[1]
    leak = np.sqrt(old.leak**2 + (old.coupling**2).sum(1))
    world, basis = operator.layout.world, old.basis
    rows = extension(vector.to(basis), basis[:p], world, 0.0, 0.0, 1).rows
    basis[p : p + len(rows)] = rows
    return replace(
        old,
        coupling=np.zeros((p, len(rows))),
        leak=leak,
        starts=old.starts + 1,
        fresh_at=old.steps,
        patience=max(old.patience, (old.steps - old.fresh_at + 1) // 2),
    )


def vectors(space: RitzSpace, s: Array) -> Tensor:
    """The Ritz vectors with coordinates ``s``, (r, p), as rows (p, n_local), where the basis is."""
    turned = torch.from_numpy(np.ascontiguousarray(s.T)).to(space.basis)
    return turned @ space.basis[: space.order]


def _turn(rows: Tensor, s: Array) -> None:
    """rows[:p] = s^T rows, in place."""
    turned = torch.from_numpy(np.ascontiguousarray(s.T)).to(rows)
    for first in range(0, rows.shape[1], SLICE):
        part = rows[:, first : first + SLICE]
        rows[: len(turned), first : first + SLICE] = turned @ part
