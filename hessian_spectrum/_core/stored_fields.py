"""How a dataclass of results describes its fields to the result file: metadata of the fields.

One writer and one reader (storage/result_groups.py) do what these say, for every kind of result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stored(
    description: str,
    axes: tuple[str, ...] = (),
    units: str | None = None,
    *,
    coordinate: bool = False,
    index: Mapping[str, str] | None = None,
    compress: bool = False,
    square: bool = False,
    texts: bool = False,
    part_of: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Metadata of a field that is a data set: a number, a text, an array, or a mapping of arrays.

    A mapping of arrays is a group of data sets; one that is called ``about`` is a JSON text. The
    first array of one axis is the HDF5 dimension scale of that axis in its group.

    Args:
        axes: the names of the dimensions, in order.
        units: of the numbers; "eigenvalue" for those of the operator's eigenvalues.
        coordinate: written before the others, which have its axis.
        index: axes that are only counted, and what they count; each has a data set 0, 1, 2, ...
        compress: for arrays that are mostly zeros.
        square: a square matrix, of which a sequence keeps one size.
        texts: an array of texts; others are of numbers.
        part_of: axes of which it has the first entries only; all others are of one length in a
            result.
    """
    return {
        "form": "data",
        "description": description,
        "axes": axes,
        "units": units,
        "coordinate": coordinate,
        "index": index or {},
        "compress": compress,
        "square": square,
        "texts": texts,
        "part_of": part_of,
    }


def stored_attribute(description: str, least: int | None = None) -> dict[str, Any]:
    """Metadata of a number that is an attribute of the result's group; None is left out.

    Args:
        least: of a whole number; None: any real number that is not negative.
    """
    return {"form": "attribute", "description": description, "least": least}


def stored_flag(description: str) -> dict[str, Any]:
    """Metadata of a truth value that is an attribute of the result's group; None is left out."""
    return {"form": "flag", "description": description}


def stored_rows(
    description: str, axes: tuple[str, str], units: str | None = None
) -> dict[str, Any]:
    """Metadata of rows (k, n) that may lie on disk, in the file or in shards; None is left out."""
    return {"form": "rows", "description": description, "axes": axes, "units": units}


def stored_group(name: str, of: type) -> dict[str, Any]:
    """Metadata of another dataclass, which is a group of that name; None is left out."""
    return {"form": "group", "name": name, "of": of}


def stored_count(description: str) -> dict[str, Any]:
    """Metadata of a whole number of each dataclass of a sequence."""
    return {"form": "count", "description": description}


def stored_sequence(name: str, of: type, shapes: str) -> dict[str, Any]:
    """Metadata of a tuple of dataclasses whose arrays are stacked, padded with zeros, in a group.

    The data set ``shapes`` has a row for each: the shapes of its arrays, then its counts.
    An empty tuple is left out.

    Args:
        shapes: what the columns of that data set are.
    """
    return {"form": "sequence", "name": name, "of": of, "shapes": shapes}
