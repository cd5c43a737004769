"""Block Krylov spaces in bounded memory, restarted from their best Ritz vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import Flags, World
from hessian_spectrum.krylov.block_gram_schmidt import extension, orthonormal
from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.copy_search import CopySearch
from hessian_spectrum.krylov.product_noise import asymmetry, asymmetry_of_rows, not_finite
from hessian_spectrum.krylov.state import Array, StateArrays
from hessian_spectrum.krylov.storage import Place, allocate_together
from hessian_spectrum.operators.base import SymmetricOperator

NOISE_AT = 8  # steps of a space of one vector, after which the error of products is measured
SLICE = 1 << 16  # entries of the basis that are rotated at once


@dataclass(frozen=True)
class RitzSpace:
    """An orthonormal basis with what A does to it: Q A = H Q + C Q_next + what was dropped.

    A ``KrylovState``: see krylov/state.py. Vectors are rows. ``basis`` is changed in place, so that
    of two states of one run only the later one may be continued.
    """

    basis: Tensor  # (capacity, n_local): Q, then Q_next, then unused
    h: Array  # (r, r), row i: A q_i in coordinates of Q, as it was computed
    coupling: Array  # (r, b), C
    leak: Array  # (r,), |what was dropped of A q_i| by restarts
    starts: int  # random vectors that the space was started from
    num_steps: int = 0
    products: int = 0
    restarts: int = 0
    fresh_at: int = 0  # step of the latest random vector
    patience: int = 0  # steps that are made with it at least
    scale: float = 0.0  # the largest |A q| so far: what breakdown is judged against
    noise: float = 0.0  # relative error of a product, measured as asymmetry in the first step(s)
    search: CopySearch | None = None  # for eigenvalues that the locked first vectors miss

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

    @property
    def is_finished(self) -> bool:
        """The space is invariant: no direction leads out of it."""
        return self.width == 0

    @property
    def next_vectors(self) -> Tensor:
        """Q_next, (width, n_local)."""
        return self.basis[self.order : self.order + self.width]

    def step(self, operator: SymmetricOperator, flags: Flags | None = None) -> RitzSpace:
        """Multiply Q_next: one block product, and the block that leads out of the space.

        As ``BlockSpace.step``, with all coordinates kept as they are computed: the asymmetry of H
        is part of the residuals.

        Raises:
            FloatingPointError: a product is not finite; on every rank.

        Cost: 8 b r n_local flops, all in matrix products; two small reductions, or three.
        """
        world, device = operator.layout.world, operator.device
        r, b = self.order, self.width
        basis = self.basis[: r + b]
        q = self.next_vectors.to(device)
        aq = operator.products(q)
        noise = self.noise if self.num_steps else asymmetry(operator, q, aq)
        most = operator.n - r - b
        # The error of products is read off the first coordinates: they are not to have one.
        precise = b == 1 and self.num_steps < NOISE_AT
        extended = extension(
            aq.to(basis.device), basis, world, self.scale, noise, most, flags, precise
        )
        if extended is None:
            raise not_finite(operator, f"block step {self.num_steps + 1}")
        found, rows, out, scale = extended
        self.basis[r + b : r + b + len(found)] = found
        h = np.block([[self.h, self.coupling], [rows]]) if r else rows
        if len(h) == self.num_steps + 1 == NOISE_AT:
            noise = asymmetry_of_rows(h, operator.n, scale)
        return replace(
            self,
            h=h,
            coupling=np.concatenate([np.zeros((r, len(found))), out]),
            leak=np.concatenate([self.leak, np.zeros(b)]),
            num_steps=self.num_steps + 1,
            products=self.products + b,
            scale=scale,
            noise=noise,
            search=self.search.extended(b) if self.search else None,
        )

    @property
    def window(self) -> tuple[int, int]:
        return 0, self.order + self.width

    def basis_shape(self, room: int, layout: Layout) -> tuple[int, int, int]:
        return 1, max(room, self.order + self.width), layout.n_local

    def to_arrays(self) -> StateArrays:
        return StateArrays(
            self.basis[None, : self.order + self.width],
            {
                "h": self.h,
                "coupling": self.coupling,
                "leak": self.leak,
                "search_start": self.search.start if self.search else np.zeros(0),
                "search_roots": self.search.roots if self.search else np.zeros(0),
            },
            {
                "width": self.width,
                "starts": self.starts,
                "steps": self.num_steps,
                "products": self.products,
                "restarts": self.restarts,
                "fresh_at": self.fresh_at,
                "patience": self.patience,
                "scale": self.scale,
                "noise": self.noise,
                "search": (self.search.locked, self.search.log_length) if self.search else None,
            },
        )

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> RitzSpace:
        vectors, coefficients, metadata = arrays
        order, width = len(coefficients["h"]), metadata["width"]
        search = None
        if metadata.get("search") is not None:  # states of earlier versions have none
            locked, log_length = metadata["search"]
            start, roots = (np.asarray(coefficients[f"search_{p}"]) for p in ("start", "roots"))
            search = CopySearch(locked, start, roots, log_length)
        return cls(
            basis=vectors[0],
            # Nested lists do not keep the shape of an empty array.
            h=np.asarray(coefficients["h"]).reshape(order, order),
            coupling=np.asarray(coefficients["coupling"]).reshape(order, width),
            leak=np.asarray(coefficients["leak"]),
            starts=metadata["starts"],
            num_steps=metadata["steps"],
            products=metadata["products"],
            restarts=metadata["restarts"],
            fresh_at=metadata["fresh_at"],
            patience=metadata["patience"],
            scale=metadata["scale"],
            noise=metadata["noise"],
            search=search,
        )


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
    """The Krylov space of a density run, from which eigenpairs are continued. No products.

    Raises:
        InputError: the space has no steps, or is lean: its basis is not held.
    """
    if space.lean or not space.num_steps:
        raise InputError("start: expected the space of a block density with a step or more")
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
        num_steps=space.num_steps,
        products=order,
        scale=space.scale,
        noise=space.noise,
    )


def restarted(space: RitzSpace, s: Array) -> RitzSpace:
    """The space of the Ritz vectors with coordinates ``s``, (r, p) orthonormal columns, and Q_next.

    It is still a Krylov space (Stewart, SIAM J. Matrix Anal. Appl. 23 (2002) 601-614). No products.
    """
    r, b, p = space.order, space.width, s.shape[1]
    _rotate(space.basis[:r], s)
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


def refreshed(
    operator: SymmetricOperator, space: RitzSpace, s: Array, vector: Tensor, search: bool = False
) -> RitzSpace:
    """The space of the Ritz vectors ``s``, (r, p), and of a new vector, orthogonal to them.

    The block that led out of the old space is dropped, and its size added to ``leak``: it is small
    for pairs that have converged.

    Args:
        search: the new vector shows whether an eigenvalue is missing beside the p Ritz vectors.
    """
    old = restarted(space, s)
    p = s.shape[1]
    leak = np.sqrt(old.leak**2 + (old.coupling**2).sum(1))
    world, basis = operator.layout.world, old.basis
    extended = extension(vector.to(basis), basis[:p], world, 0.0, 0.0, 1)
    assert extended is not None  # a random vector is finite
    rows = extended.rows
    basis[p : p + len(rows)] = rows
    return replace(
        old,
        coupling=np.zeros((p, len(rows))),
        leak=leak,
        starts=old.starts + 1,
        fresh_at=old.num_steps,
        search=CopySearch(p, np.zeros(0), np.zeros(0), 0.0) if search else None,
    )


def vectors(space: RitzSpace, s: Array) -> Tensor:
    """The Ritz vectors with coordinates ``s``, (r, p), as rows (p, n_local), where the basis is."""
    rotated = torch.from_numpy(np.ascontiguousarray(s.T)).to(space.basis)
    return rotated @ space.basis[: space.order]


def _rotate(rows: Tensor, s: Array) -> None:
    """rows[:p] = s^T rows, in place."""
    rotated = torch.from_numpy(np.ascontiguousarray(s.T)).to(rows)
    for first in range(0, rows.shape[1], SLICE):
        part = rows[:, first : first + SLICE]
        rows[: len(rotated), first : first + SLICE] = rotated @ part
