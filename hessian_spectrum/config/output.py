"""Options about the result file, checkpointing and resuming."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.problem import ProblemConfig


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the result goes, how often the state is saved, and what happens to an existing file."""

    resume: bool = False
    """Continue from the state that an interrupted run saved for OUT. Without such a state, start
    from the beginning."""
    overwrite: bool = False
    """Replace an existing OUT."""
    checkpoint_minutes: float = 10.0
    """Minutes between saves of the computation's state; 0 saves after each step. SIGTERM, SIGUSR1
    and Ctrl-C save it too."""
    timeout_minutes: float = 10.0
    """On several ranks: minutes after which a rank that keeps the others waiting is taken for
    dead."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
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
    """What to compute, of which problem, and where the result goes."""

    out: Path = Path("result.h5")
    """Result file, HDF5."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        ProblemConfig.check(self)
        OutputConfig.check(self)
