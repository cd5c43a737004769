"""Plain attributes of a model's modules, put back after each evaluation.

A module may keep tables, activations or counters of its own. What one evaluation leaves there would
be part of the next: outputs of other parameters, or tensors of a transform that has ended.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import nn

# Parameters, buffers, submodules, hooks and the mode: what functional_call and evaluation_mode set.
_INTERNAL = frozenset(vars(nn.Module())) | {"_flat_weights"}
_MISSING = object()
_OURS = "forward"  # replaced by contexts that may begin after the snapshot


class Attributes:
    """A snapshot of what modules hold beside their parameters and buffers.

    Attributes are compared by identity; lists, dicts, sets and deques among them also by their
    entries, at any depth. The insides of other objects, and what functions keep, are not seen.

    Args:
        module: with all its submodules.
    """

    def __init__(self, module: nn.Module):
        self._seen: set[int] = set()
        self._namespaces: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        for part in module.modules():
            self._add_namespace(vars(part))

    def restore(self) -> None:
        """Put back what was replaced, added or removed since the snapshot."""
        for namespace, before in self._namespaces:
            if len(namespace) - (_OURS in namespace) != len(before) or any(
                namespace.get(name, _MISSING) is not value for name, value in before.items()
            ):
                _restore_namespace(namespace, before)
        for container, before in self._containers:
            if not _is_same(container, before):
                _refill(container, before)

    def _add_namespace(self, namespace: dict[str, Any]) -> None:
        if id(namespace) in self._seen:
            return
        self._seen.add(id(namespace))
        before = {name: value for name, value in namespace.items() if name != _OURS}
        self._namespaces.append((namespace, before))
        for name, value in namespace.items():
            if name not in _INTERNAL:
                self._add_container(value)

    def _add_container(self, value: Any) -> None:
        if not isinstance(value, (list, dict, set, deque)) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._containers.append((value, _entries(value)))
        for entry in value.values() if isinstance(value, dict) else value:
            self._add_container(entry)


def _entries(container: Any) -> dict | list:
    return dict(container) if isinstance(container, dict) else list(container)


def _is_same(container: Any, before: dict | list) -> bool:
    if len(container) != len(before):
        return False
    if isinstance(before, dict):
        return all(container.get(key, _MISSING) is value for key, value in before.items())
    if isinstance(container, set):
        return all(value in container for value in before)
    return all(a is b for a, b in zip(container, before))


def _refill(container: Any, before: dict | list) -> None:
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(before)


def _restore_namespace(namespace: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name in namespace if name not in before and name != _OURS]:
        del namespace[name]
    namespace.update(before)
