"""Ranks, collectives, sharded vectors, and tasks distributed over ranks."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = ("World", "finish", "resolve_device", "start")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.world"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
