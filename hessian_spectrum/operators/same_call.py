"""A computation with an operator is the same on every rank, or refused on all before it starts."""

from __future__ import annotations

from typing import Any

from hessian_spectrum.distributed.agreement import Digest, digest_of, require_same_call
from hessian_spectrum.operators.base import SymmetricOperator


def require_same_computation(operator: SymmetricOperator, call: str, **options: Any) -> None:
    """InputError unless every rank makes this call, with these options and such an operator.

    Called by every rank, before anything that may fail on one of them. One exchange of small
    objects. Arrays and tensors are compared by their entries.

    Args:
        call: the name of the function.
    """
    names = operator.layout.names, tuple(map(tuple, operator.layout.shapes))
    require_same_call(
        operator.layout.world,
        call,
        operator=described(operator),
        **{"parameters of the operator": Digest(repr(names))},
        **options,
    )


def described(operator: SymmetricOperator) -> str:
    """Type and numbers of an operator and of those that it is made of: ``Shifted(shift=0.1, ...)``.

    Its tensors are not compared: on each rank they may be a share.
    """
    parts = []
    for name, value in sorted(vars(operator).items()):
        if name.startswith("_"):
            continue
        if isinstance(value, SymmetricOperator):
            parts.append(f"{name}={described(value)}")
        elif isinstance(value, (bool, int, float, str)):
            parts.append(f"{name}={value!r}")
    return f"{type(operator).__name__}({', '.join([*parts, str(operator.dtype)])})"


def place_of(basis: Any) -> str:
    """What ranks have in common of a place for Krylov vectors: folders may be each node's own."""
    return basis if basis in ("device", "host") else "a folder"


def vectors_of(start: Any) -> Any:
    """What ranks have in common of vectors to start from, or of a state to continue."""
    if start is None or hasattr(start, "__array__"):
        return None if start is None else digest_of(start)
    return f"{type(start).__name__} after {getattr(start, 'num_steps', '?')} steps"
