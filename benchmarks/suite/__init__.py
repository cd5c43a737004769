"""What all studies share: checks, scales, commands, trained networks, results and their tables."""

from benchmarks.suite.context import Context
from benchmarks.suite.findings import Finding, Verdict
from benchmarks.suite.study import SCALES, Outcome, Scale, Study

__all__ = ["SCALES", "Context", "Finding", "Outcome", "Scale", "Study", "Verdict"]
