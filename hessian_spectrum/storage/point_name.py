"""The name of a point in a result file, ``critical.h5:3``, where a checkpoint's is expected."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"(?P<file>.+\.h5):(?P<point>\d+)")


class PointName(NamedTuple):
    """A point of the results of the command ``critical``."""

    file: Path
    number: int  # from 0

    @classmethod
    def of(cls, path: str | Path) -> PointName | None:
        """What ``path`` names; None where it names a file, whichever its name."""
        match = _NAME.fullmatch(str(path))
        if match is None or Path(path).exists():
            return None
        return cls(Path(match["file"]), int(match["point"]))
