"""Tables of numbers, and the arrays of any result as tables.

What the columns mean is what a result's fields say of themselves (``_core/stored_fields``), so a
new kind of result has tables without a line here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hessian_spectrum.reporting.html import Element, element
from hessian_spectrum.reporting.numbers import number

MOST_ROWS = 40  # of a table; of longer ones rows are left out, and the caption says so
MOST_COLUMNS = 12  # of a matrix; larger ones are described by their shape


@dataclass(frozen=True)
class Column:
    """Cells under a name; ``about`` says what they are, with their unit."""

    name: str
    cells: Any  # a sequence
    about: str = ""


@dataclass(frozen=True)
class Table:
    """Columns of one length under a caption."""

    caption: str
    columns: tuple[Column, ...]

    @property
    def height(self) -> int:
        return max((len(column.cells) for column in self.columns), default=0)

    def html(self, most: int = MOST_ROWS) -> Element:
        """The first column names the rows. A table of more than ``most`` rows is thinned evenly.

        A cell carries its number in full for the script that sorts.
        """
        rows = thinned(self.height, most)
        caption = self.caption
        if len(rows) < self.height:
            caption += f" ({len(rows)} of {self.height:,} rows, evenly spaced; the file has all)"
        head = [
            element("th", column.name, scope="col", title=column.about or None)
            for column in self.columns
        ]
        body = [
            element("tr", [_cell(column.cells[i], j == 0) for j, column in enumerate(self.columns)])
            for i in rows
        ]
        table = element(
            "table",
            element("caption", caption),
            element("thead", element("tr", head)),
            element("tbody", body),
            class_="sorted" if len(rows) > 1 else None,
        )
        # A table that is wider than a phone scrolls in its own box, also by keyboard.
        return element(
            "div", table, class_="scroll", tabindex="0", role="group", aria_label=caption
        )


def thinned(count: int, most: int) -> list[int]:
    """Indices of at most ``most`` of ``count`` rows, evenly spaced, the first and the last kept."""
    if count <= most:
        return list(range(count))
    return sorted(set(np.linspace(0, count - 1, most).round().astype(int).tolist()))


def _cell(value: Any, is_head: bool) -> Element:
    attributes: dict[str, Any] = {"scope": "row"} if is_head else {}
    content: Any = value
    if isinstance(value, (bool, np.bool_)):
        content = "yes" if value else "no"
    elif isinstance(value, (int, float, np.integer, np.floating)):
        content = number(float(value))
        attributes |= {"class_": "number", "data_value": _sorted_as(float(value))}
    return element("th" if is_head else "td", content, **attributes)


def _sorted_as(x: float) -> str:
    """As JavaScript's Number reads it."""
    return "NaN" if math.isnan(x) else repr(x).replace("inf", "Infinity")


# -- the arrays of a result ----------------------------------------------------------------------


def of_result(result: Any) -> list[Table]:
    """A table for each axis that arrays of a result have, and one for each small matrix.

    Args:
        result: a dataclass of stored fields, or a mapping of numbers, texts and arrays.
    """
    if isinstance(result, Mapping):
        return [_named_values(result)] if result else []
    by_axes: dict[tuple[str, ...], list[Column]] = {}
    for axes, column in _arrays(result):
        by_axes.setdefault(axes, []).append(column)
    tables = []
    for axes, columns in by_axes.items():
        if len(axes) == 1:
            lengths = {len(column.cells) for column in columns}
            if lengths != {0} and len(lengths) == 1:
                counter = Column(axes[0], range(lengths.pop()), "counted from 0")
                tables.append(Table(f"By {_words(axes[0])}", (counter, *columns)))
        else:
            tables += [_matrix(axes, column) for column in columns]
    return tables


def _arrays(result: Any) -> Iterator[tuple[tuple[str, ...], Column]]:
    for field in dataclasses.fields(result):
        form = field.metadata.get("form")
        value = getattr(result, field.name)
        if form != "data" or value is None or field.name == "about":
            continue
        axes, about = tuple(field.metadata["axes"]), _about(field.metadata)
        arrays = value if isinstance(value, Mapping) else {field.name: value}
        for name, array in arrays.items():
            found = np.asarray(array)
            if found.ndim == len(axes) and 1 <= found.ndim <= 2 and found.size:
                yield axes, Column(_words(name), found, about)


def _about(metadata: Mapping[str, Any]) -> str:
    unit = metadata["units"]
    return metadata["description"] + (f"; in units of {unit}" if unit not in (None, "1") else "")


def _matrix(axes: tuple[str, ...], column: Column) -> Table:
    values = np.asarray(column.cells)
    rows = Column(axes[0], range(len(values)), "counted from 0")
    names = [f"{_words(axes[1])} {j}" for j in range(values.shape[1])]
    return matrix(f"{column.name}: {column.about}", rows, names, values)


def matrix(caption: str, rows: Column, names: Sequence[str], values: np.ndarray) -> Table:
    """A table of a matrix, (row, column); of many columns some are left out evenly."""
    shown = thinned(len(names), MOST_COLUMNS)
    if len(shown) < len(names):
        caption += f" ({len(shown)} of {len(names)} columns, evenly spaced)"
    return Table(caption, (rows, *(Column(names[j], values[:, j]) for j in shown)))


def _named_values(result: Mapping[str, Any]) -> Table:
    names, cells = [], []
    for name, value in result.items():
        size = int(np.size(value))
        names.append(_words(name))
        if size == 1:
            cells.append(np.asarray(value).reshape(-1)[0])
        elif size <= MOST_COLUMNS:
            cells.append(", ".join(str(x) for x in np.asarray(value).ravel().tolist()))
        else:
            cells.append(f"array of shape {np.shape(value)}")
    plain = [cell.item() if isinstance(cell, np.generic) else cell for cell in cells]
    return Table("Named values", (Column("name", names), Column("value", plain)))


def _words(name: str) -> str:
    return str(name).replace("_", " ")
