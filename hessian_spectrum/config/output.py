"""Options about the result file, checkpointing and resuming."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.problem import ProblemConfig


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the result goes, and what to do with one that is there."""

    resume: bool = False
    """Go on from what an interrupted run left in OUT, if anything."""
    overwrite: bool = False
    """Replace an existing OUT."""
    checkpoint_minutes: float = 10.0
    """Save the state of the computation this often (0: after each step), and on SIGTERM,
    SIGUSR1 or Ctrl-C."""
    timeout_minutes: float = 10.0
    """On several ranks: one that keeps the others waiting for longer is taken for dead."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        if not 0 < self.timeout_minutes <= 10080:  # nor is NaN
            raise InputError(
                f"--timeout-minutes {self.timeout_minutes}: expected minutes, more than 0 and at "
                "most a week"
            )
        if not self.checkpoint_minutes >= 0:  # nor is NaN
            raise InputError(
                f"--checkpoint-minutes {self.checkpoint_minutes}: expected minutes, 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class ComputingConfig(OutputConfig, ProblemConfig):  # fields: the problem's first
    """What is computed of a problem, and where the result goes."""

    out: Path = Path("result.h5")
    """The result file."""

    def check(self) -> None:
        """Refuse values that no run can use; InputError names the option."""
        ProblemConfig.check(self)
        OutputConfig.check(self)
