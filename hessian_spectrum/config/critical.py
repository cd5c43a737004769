"""Options of the ``critical`` command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import above_zero, positive, seeds
from hessian_spectrum.config.landscape import PointsConfig


@dataclass(frozen=True, kw_only=True)
class CriticalConfig(PointsConfig):
    """Say what a point of the loss is: a minimum, a maximum, a saddle, or why that is not known.

    Without --find it is the parameters of --checkpoint; with it, the critical points that searches
    from STARTS points lead to. Writes OUT, an HDF5 file with the kind, the loss, the ends of the
    spectrum and the index of each, up to 300 parameters the whole spectrum, and the points found;
    prints one sentence for each. --checkpoint OUT.h5:3 of other commands is the point of start 3.

        hessian-spectrum critical --problem mine.py:make --find saddle --starts 50 --dtype float64
    """

    out: Path = Path("critical.h5")
    """Result file, HDF5."""
    find: Literal["any", "minimum", "saddle"] | None = None
    """Search for a critical point of this kind from each start, in float64; default: classify the
    parameters as they are."""
    starts: int = 1
    """With --find: starting points; the first is the parameters themselves."""
    around: Literal["parameters", "zero"] = "parameters"
    """With --find: further starts are Gaussian around the parameters, or around zero."""
    spread: float = 0.5
    """With --find: standard deviation of the starts, over the root mean square of the
    parameters."""
    tol: float = 1e-10
    """With --find: largest norm of the gradient."""
    max_steps: int = 200
    """With --find: Newton steps of a search."""
    points: bool = True
    """With --find: store the parameters of the points; --no-points leaves them out of OUT."""
    k: int = 10
    """Eigenpairs at each end of the spectrum, where there are more than 300 parameters."""
    seed: int = 0
    """Seed of the starts and of random vectors."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        positive(self, "starts", "max_steps", "k")
        above_zero(self, "spread", "tol")
        seeds(self, "seed")
        if self.find is None and self.starts > 1:
            raise InputError(f"--starts {self.starts} is for --find any, minimum or saddle")
        if self.find is None and not self.points:
            raise InputError("--no-points is for --find any, minimum or saddle; leave it out")
