"""Recurrences of either kind, under way."""

from __future__ import annotations

from hessian_spectrum.krylov.block_lanczos import BlockSpace
from hessian_spectrum.krylov.lanczos import Recurrences

State = Recurrences | BlockSpace


def is_finished(state: State) -> bool:
    """No step can add anything."""
    if isinstance(state, BlockSpace):
        return state.is_invariant
    return not bool(state.active.any())
