"""What a study is: where its claims come from, its sizes, and the function that measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from benchmarks.suite.findings import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.suite.context import Context

# Seconds, for tests; minutes on two cores; one GPU; as the paper did.
Scale = Literal["test", "cpu", "gpu", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Group = Literal["paper", "speed", "accuracy"]
Data = Literal["mnist", "cifar10", "ptb"]


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Args:
        findings: its claims, judged.
        values: the numbers behind them and behind the figure, by name; for the HDF5 file.
        figure: one picture; None where a table says it all.
        notes: sentences about the method or the result that a reader of the table needs.
    """

    findings: Sequence[Finding]
    values: Mapping[str, Any] = field(default_factory=dict)
    figure: Figure | None = None
    notes: str = ""


@dataclass(frozen=True)
class Study:
    """One study; its file's docstring says what is done, and its file's name is its name.

    Args:
        title: a line.
        source: the paper, its tables and figures.
        run: measures; everything that takes long goes through the context, which resumes.
        scales: options by scale, frozen dataclasses; a scale that is absent is skipped.
        group: "speed" studies are timed alone; "accuracy" ones compare with oracles.
        data: what scales other than "test" read, beside data that the package ships.
    """

    title: str
    source: str
    run: Callable[[Context, Any], Outcome]
    scales: Mapping[Scale, Any]
    group: Group = "paper"
    data: tuple[Data, ...] = ()
