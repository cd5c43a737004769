"""Numbers and commands as a page writes them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

MINUS = "\u2212"


def number(x: float, digits: int = 4) -> str:
    """Four digits, as 0.1234, 12,340 or 1.234e-05; "unknown" for NaN."""
    x = float(x)
    if math.isnan(x):
        return "unknown"
    if math.isinf(x):
        return "infinity" if x > 0 else f"{MINUS}infinity"
    text = f"{x:,.0f}" if x == round(x) and 1e3 <= abs(x) < 1e9 else f"{x:.{digits}g}"
    return text.replace("-", MINUS, 1) if x < 0 else text


def percent(share: float) -> str:
    """Three digits: 0.1234 is 12.3 %."""
    return "unknown" if math.isnan(share) else f"{number(100 * share, 3)} %"


def counted(count: int, one: str, many: str | None = None) -> str:
    """1 network, 2 networks."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def bytes_of(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def command_line(words: Sequence[Any]) -> str:
    """A command as a shell takes it, whatever its words are.

    The package's own program is called by its name, wherever it was installed.
    """
    first, *rest = (str(word) for word in words)
    path = PurePath(first)
    if path.name == "__main__.py" and path.parent.name == "hessian_spectrum":
        return shlex.join(["hessian-spectrum", *rest])
    if path.name == "hessian-spectrum":
        return shlex.join(["hessian-spectrum", *rest])
    return shlex.join(["python", first, *rest] if path.suffix == ".py" else [first, *rest])
