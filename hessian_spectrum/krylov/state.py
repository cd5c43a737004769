"""The protocol of Krylov states: what algorithms and storage may ask of any of them.

A state is a frozen value: ``step`` returns a new one. The exception is the basis, whose unused rows
``step`` fills in place, so that of two states of one run only the later one may be continued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import Flags, World
from hessian_spectrum.operators.base import SymmetricOperator

if TYPE_CHECKING:
    from typing_extensions import Self

Array = NDArray[np.float64]
Coefficients = Array | Sequence[Array]  # one array, or one for each block


class StateArrays(NamedTuple):
    """A Krylov state taken apart: sharded vectors, small arrays, and plain values."""

    vectors: Tensor  # (recurrences, rows, n_local), this rank's entries of the basis vectors
    coefficients: Mapping[str, Coefficients]  # float64, the same on every rank
    metadata: Mapping[str, Any]  # numbers, flags and lists of them, the same on every rank


class ReducedMatrix(NamedTuple):
    """T = Q A Q^T of one Krylov space, and how probes and residuals are expressed in it."""

    t: Array  # (r, r), symmetric
    first: Array  # (b, b_1), the probes in coordinates of the first block
    out: Array  # (b_m, b_{m+1}), couples the last block to the one that leads out of the space
    num_steps: int  # m


class KrylovState(Protocol):
    """A Krylov space, or several in lockstep, after some steps."""

    @property
    def num_steps(self) -> int:
        """Block products so far."""

    @property
    def scale(self) -> float:
        """The largest |A q| so far, in units of the eigenvalues."""

    @property
    def noise(self) -> float:
        """Relative error of a product, measured as asymmetry in the first step."""

    @property
    def is_finished(self) -> bool:
        """Whether the space is invariant under A: no step can add a direction."""

    @property
    def next_vectors(self) -> Tensor:
        """The unit vectors that the next step multiplies, (b, n_local), where the basis is."""

    def step(self, operator: SymmetricOperator, flags: Flags | None = None) -> Self:
        """The state after one more block product.

        Args:
            flags: what ranks tell each other, sent with a reduction that the step makes anyway.

        Raises:
            FloatingPointError: a product is not finite; on every rank.
        """

    # -- storage --

    @property
    def window(self) -> tuple[int, int]:
        """(first, end): the basis vectors that are held, numbered from the start of the run."""

    @property
    def restarts(self) -> int:
        """How often all basis vectors were replaced by combinations of themselves."""

    def basis_shape(self, room: int, layout: Layout) -> tuple[int, int, int]:
        """Shape of the ``vectors`` of a state that is to be continued.

        Args:
            room: steps in all; for a space that restarts, vectors in all.
        """

    def to_arrays(self) -> StateArrays:
        """The state taken apart; vectors are those of ``window``, a view of the basis."""

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """The inverse of ``to_arrays``.

        Args:
            arrays: vectors may have unused rows after those of ``window``, which later steps fill
                in place; coefficients may be nested lists.
        """


class ProbeState(KrylovState, Protocol):
    """A Krylov state that was started from random probes, for quadrature of z^T f(A) z."""

    @property
    def num_vectors(self) -> int:
        """How many basis vectors are held, of all recurrences."""

    @property
    def can_hold_out_probes(self) -> bool:
        """Whether all probes share one orthonormal space, as held-out probes require."""

    def reduced(self) -> list[ReducedMatrix]:
        """T and its couplings, of each recurrence."""

    def compressed(self, operator: SymmetricOperator) -> list[Array]:
        """Q B Q^T of each recurrence, (r, r), for any operator B of the same layout.

        Raises:
            FloatingPointError: a product is not finite; on every rank.

        Cost: a product with each basis vector that was multiplied, in ``num_steps`` passes.
        """

    def coordinates(self, vector: Tensor, world: World) -> list[Array]:
        """Q v of each recurrence, (r,), for a vector v, (n_local,). One small reduction."""
