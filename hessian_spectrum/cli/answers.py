"""Answers of several results as a table, or as a list for JSON. NumPy only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hessian_spectrum.cli import noise_queries, value_queries
from hessian_spectrum.spectral import queries

if TYPE_CHECKING:
    from hessian_spectrum.storage.series import Series

Answer = dict[str, Any]


def sentence(answer: Answer) -> str:
    """One answer in words."""
    if answer.get("of") == "noise":
        return noise_queries.sentence(answer)
    asked = value_queries if "of" in answer else queries
    return asked.sentence(answer)


def listed(series: Series, answers: list[Answer]) -> list[Answer]:
    """Each answer with its "result", "label" and place: {"epoch": 5} or {"index": 0}."""
    return [
        {"result": key, "label": label, series.axis: place, **answer}
        for key, label, place, answer in zip(series.keys, series.results, series.places, answers)
    ]


def table(series: Series, answers: list[Answer]) -> str:
    """One line a result: its place on the axis, its label, the answer, its 95 % interval."""
    head, rows = _columns(answers)
    cells = [[series.axis, "label", *head]]
    for place, label, row in zip(series.places, series.results, rows):
        cells.append([f"{place:g}", label, *row])
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = []
    for row in cells:
        aligned = [
            cell.ljust(width) if i == 1 or i == len(row) - 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(aligned).rstrip())
    notes = dict.fromkeys(answer["left_out"] for answer in answers if "left_out" in answer)
    return "\n".join([*lines, *notes])


def _columns(answers: list[Answer]) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns, and their cells for each answer."""
    first = answers[0]
    if isinstance(first["value"], (list, dict)) or "of" in first:
        return [first["query"]], [[_one_line(answer)] for answer in answers]
    name = f"{first['query']}({', '.join(f'{x:g}' for x in first['arguments'])})"
    by = "95 % interval" if "standard_error" in first else "by the residuals"
    head, rows = [name, by], [[f"{a['value']:.8g}", _interval(a["interval"])] for a in answers]
    if any(answer.get("data_error") is not None for answer in answers):
        head.insert(1, "data error")
        for row, answer in zip(rows, answers):
            error = answer["data_error"]
            row.insert(1, "unknown" if error is None else f"{error:.2g}")
    return head, rows


def _interval(ends: list[float] | None) -> str:
    return "unknown" if ends is None else f"{ends[0]:.6g} to {ends[1]:.6g}"


def _one_line(answer: Answer) -> str:
    """What follows "=" in the sentence; of layers, those that hold the most."""
    value = answer["value"]
    if isinstance(value, dict):
        most = sorted(value.items(), key=lambda part: -part[1]["together"])
        return ", ".join(f"{layer} {part['together']:.1%}" for layer, part in most)
    return sentence(answer).partition(" = ")[2]
