"""Texts for standard output, whose reader may go away, as in ``info run.h5 | head -1``."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def tell(text: str) -> None:
    """Print a text; quietly not, once nobody reads it any more."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        nobody_reads()


def nobody_reads() -> None:
    """Send to nowhere what is still to be printed, also by Python's flush at its end."""
    with suppress(OSError, ValueError, AttributeError):  # replaced by something without a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
