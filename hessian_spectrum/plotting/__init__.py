"""Figures, interactive pages and VTK files of results. NumPy and Matplotlib: no torch."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = ("density_figure", "eigenpairs_figure", "save_figure")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.density"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
