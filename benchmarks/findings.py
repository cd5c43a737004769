"""What a study expected, what it measured, and whether that holds."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

Verdict = Literal["holds", "does not hold", "cannot be judged at this size"]


@dataclass(frozen=True)
class Finding:
    """One claim of a source, and what was measured of it here."""

    claim: str
    source: str
    expected: str  # the range in which the claim holds
    measured: float
    spread: float | None
    verdict: Verdict

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" (spread {self.spread:.2g})"
        return (
            f"{self.claim}: {self.measured:.4g}{spread}, expected {self.expected}: "
            f"{self.verdict}. [{self.source}]"
        )


def within(
    claim: str,
    source: str,
    measured: float,
    low: float,
    high: float,
    spread: float | None = None,
    judged: bool = True,
) -> Finding:
    """A finding that holds from ``low`` to ``high``."""
    verdict: Verdict = "holds" if low <= measured <= high else "does not hold"
    if not judged:
        verdict = "cannot be judged at this size"
    return Finding(claim, source, f"{low:g} to {high:g}", measured, spread, verdict)


def report(findings: Sequence[Finding], path: Path, options: object) -> None:
    """Print the findings, and write them with the versions and options that they belong to."""
    for finding in findings:
        print(finding)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    about = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip(),
    }
    path.write_text(json.dumps({**about, "findings": [asdict(f) for f in findings]}, indent=1))
