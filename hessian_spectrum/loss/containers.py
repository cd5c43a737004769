"""Batches in containers that torch's trees do not know: dataclasses and mappings such as UserDict.

The batches of many language models are UserDicts. Their classes are registered with torch's trees
when such a batch is first seen, so that it is cut, cast and moved like a dict.
"""

from __future__ import annotations

import dataclasses
from collections import UserDict
from typing import Any

from torch.utils import _pytree as trees


def register(batch: Any) -> None:
    """Register the classes of dataclasses and UserDicts in the batch, at any depth."""
    while True:
        unknown = {type(leaf) for leaf in trees.tree_leaves(batch) if _is_container(leaf)}
        if not unknown:
            return
        for kind in unknown:
            register_kind = _register_mapping if issubclass(kind, UserDict) else _register_dataclass
            register_kind(kind)


def _is_container(leaf: Any) -> bool:
    return isinstance(leaf, UserDict) or (
        dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)
    )


class _Rest:
    """Attributes beside the entries: they travel with the container, and are not compared."""

    def __init__(self, attributes: dict[str, Any]):
        self.attributes = attributes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rest)

    def __hash__(self) -> int:
        return 0


def _made(kind: type, rest: _Rest) -> Any:
    new: Any = object.__new__(kind)
    for name, value in rest.attributes.items():
        object.__setattr__(new, name, value)
    return new


def _register_mapping(kind: type[UserDict]) -> None:
    def flatten(batch: UserDict) -> tuple[list[Any], Any]:
        rest = {name: value for name, value in vars(batch).items() if name != "data"}
        return list(batch.data.values()), (tuple(batch.data), _Rest(rest))

    def unflatten(values: Any, context: Any) -> UserDict:
        names, rest = context
        new = _made(kind, rest)
        new.data = dict(zip(names, values))
        return new

    trees.register_pytree_node(kind, flatten, unflatten)


def _register_dataclass(kind: type) -> None:
    names = tuple(field.name for field in dataclasses.fields(kind))

    def flatten(batch: Any) -> tuple[list[Any], Any]:
        rest = {k: v for k, v in getattr(batch, "__dict__", {}).items() if k not in names}
        return [getattr(batch, name) for name in names], _Rest(rest)

    def unflatten(values: Any, rest: _Rest) -> Any:
        new = _made(kind, rest)
        for name, value in zip(names, values):
            object.__setattr__(new, name, value)
        return new

    trees.register_pytree_node(kind, flatten, unflatten)
