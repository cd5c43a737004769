"""Options from a file: TOML, JSON, or the configuration stored in an earlier result.

Values are checked here and not by a library, for the sake of the messages: "num-steps is 'many';
expected a whole number". msgspec.convert (0.22) is as strict, but says "Expected `int | null`, got
`str`", does not list the choices of a Literal ("Invalid enum value 'dev'"), says nothing about a
path, and takes 0.1 s to import. A strict pydantic adapter (2.14) takes 0.4 s to build for
DensityConfig and accepts instances only. tyro takes the text "7" for a number.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import reprlib
import sys
from dataclasses import MISSING
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import dashed


def read_file(path: Path) -> dict[str, Any]:
    """The fields in a .toml or .json file, or in the configuration stored in a result file.

    Keys may be written with dashes or underscores. Of a result file, the fields that belong to
    that run only (command, out, resume, overwrite) are left out.

    Raises:
        InputError: no such file, not valid TOML or JSON, not a table of options, or an option that
            is given twice.
    """
    if not path.is_file():
        raise InputError(f"--config {path}: no such file")
    if path.suffix == ".h5":
        from hessian_spectrum.storage import run_file

        with run_file.open(path) as run:
            fields = dict(run.config)
        for name in ("command", "out", "resume", "overwrite"):
            fields.pop(name, None)
        return fields
    try:
        text = path.read_text()
        is_json = path.suffix == ".json"
        fields = json.loads(text, object_pairs_hook=_table) if is_json else _toml(text)
    except ValueError as error:
        raise InputError(f"--config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise InputError(
            f"--config {path}: holds a {type(fields).__name__}; expected a table of options, as "
            'in {"num-steps": 90}'
        )
    try:
        return _table([(name.replace("-", "_"), value) for name, value in fields.items()])
    except ValueError as error:
        raise InputError(f"--config {path}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """The fields of a configuration as JSON values: paths as text, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def defaults(cls: type) -> dict[str, Any]:
    """As ``to_dict``, of a configuration's fields that have a default: what an option was in a run
    that is older than the option."""
    fields = dataclasses.fields(cls)
    found = {field.name: field.default for field in fields if field.default is not MISSING}
    return json.loads(json.dumps(found, default=str))


def with_fields(cls: type, fields: dict[str, Any], source: Path) -> dict[str, Any]:
    """``fields`` with values of the types that ``cls`` declares.

    Args:
        cls: a configuration's dataclass.
        fields: as ``read_file`` returns them.
        source: the file they come from, for messages.

    Raises:
        InputError: a field that ``cls`` does not have, or a value of another type.
    """
    hints = get_type_hints(cls)
    unknown = sorted(set(fields) - set(hints))
    if unknown:
        raise InputError(
            f"--config {source}: unknown option {', '.join(unknown)}; expected among "
            f"{', '.join(sorted(hints))}"
        )
    typed = {}
    for name, value in fields.items():
        try:
            typed[name] = _typed(value, hints[name])
        except (TypeError, OverflowError):  # an integer can be too large for a float
            raise InputError(
                f"--config {source}: {dashed(name)} is {reprlib.repr(value)}; expected "
                f"{_expected(hints[name])}"
            ) from None
    return typed


def _typed(value: Any, hint: Any) -> Any:
    """The value as the declared type holds it; TypeError for a value of another type."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return None if value is None else _typed(value, _without_none(inner))
    if kind is tuple:
        return tuple(_typed(v, inner[0]) for v in (value if isinstance(value, list) else [value]))
    if kind is Path and type(value) is str:
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind or (kind is Literal and value in inner):
        return value
    raise TypeError


def _expected(hint: Any) -> str:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return _expected(_without_none(inner))
    if kind is Literal:
        return " or ".join(map(repr, inner))
    if kind is tuple:
        return f"a list, each {_expected(inner[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    return words.get(kind, "a text")


def _without_none(kinds: tuple) -> Any:
    return next(kind for kind in kinds if kind is not NoneType)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict; ValueError for a key that comes twice, of which a dict would keep the last."""
    fields = dict(pairs)
    for name in fields:
        if sum(key == name for key, _ in pairs) > 1:
            raise ValueError(f"{dashed(name)} is given twice; give it once")
    return fields


def _toml(text: str) -> dict[str, Any]:
    # Python 3.10 has no tomllib; tomli is the same library.
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return tomllib.loads(text)
