"""How far the saved state of a run is, for the script that decides whether to start it again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def leave_progress(progress: tuple[int | None, int, str]) -> None:
    """Write what is done to the file that $HESSIAN_SPECTRUM_PROGRESS names, if any.

    The text is the same after two saves between which nothing was done, in one process or in two.
    """
    path = os.environ.get("HESSIAN_SPECTRUM_PROGRESS")
    if path:
        _, done, unit = progress
        with suppress(OSError):
            Path(path).write_text(f"{unit} {done}\n")
