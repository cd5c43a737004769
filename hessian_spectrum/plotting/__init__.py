"""Figures, interactive pages and VTK files of results. NumPy and Matplotlib: no torch."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "alignment_figure": "alignment",
    "noise_figure": "noise",
    "certified_figure": "certified",
    "cumulative_figure": "density_views",
    "density_figure": "density",
    "eigenpairs_figure": "density",
    "log_figure": "density_views",
    "participation_figure": "participation",
    "save_figure": "density",
    # of several results
    "curves_figure": "several",
    "eigenvalues_figure": "several",
    "heat_figure": "several",
    "blocks_figure": "several",
    "ridge_figure": "several",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
