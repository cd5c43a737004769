"""The words of a command line, and a --config file -> one command's configuration."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    MISSING,
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.files import read_file, with_fields

Command = tuple[str, type, str]  # name, dataclass of its options, one line of help

CONFIG_HELP = """Options from a .toml or .json file, or those stored in an earlier result (.h5);
options on the command line win."""


def parse(
    argv: Sequence[str], commands: Sequence[Command], description: str, quiet: bool = False
) -> Any:
    """The chosen command's configuration: defaults < --config file < command line.

    Args:
        commands: those that compute, with a ``check``, take --config.
        quiet: print neither help nor errors, for a rank that is not the first.

    Raises:
        InputError: a --config file that cannot be used.
        SystemExit: 0 after --help, 2 after an error that was printed.
    """
    argv, source = _config_file(list(argv))
    takers = [name for name, cls, _ in commands if hasattr(cls, "check")]
    if source and (not argv or argv[0] not in takers):
        raise InputError(
            f"--config goes behind {', '.join(takers)}: hessian-spectrum {takers[-1]} --config FILE"
        )
    kinds = []
    for name, cls, text in commands:
        options: dict[str, Any] = {"name": name, "description": text, "prefix_name": False}
        if source and argv[0] == name:
            options["default"] = cls(**with_fields(cls, read_file(source), source))
        kinds.append(Annotated[cls, tyro.conf.subcommand(**options)])
    fields = [field for _, cls, _ in commands for field in dataclasses.fields(cls)]
    with _silence() if quiet else nullcontext():
        return tyro.cli(
            Union[tuple(kinds)],  # noqa: UP007 - built at run time
            prog="hessian-spectrum",
            description=description,
            args=_gathered(argv, {_flag(f.name) for f in fields if "tuple" in str(f.type)}),
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            registry=_registry({cls for _, cls, _ in commands}),
        )


@contextmanager
def _silence() -> Iterator[None]:
    # tyro's own console_outputs=False prints wrong values all the same.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _config_file(argv: list[str]) -> tuple[list[str], Path | None]:
    """The words without --config FILE, and FILE."""
    places = [i for i, word in enumerate(argv) if word.partition("=")[0] == "--config"]
    if not places:
        return argv, None
    if len(places) > 1:
        raise InputError(f"--config was given {len(places)} times; expected one file")
    i = places[0]
    _, equals, name = argv[i].partition("=")
    rest = argv[i + 1 :] if equals else argv[i + 2 :]
    name = name if equals else "".join(argv[i + 1 : i + 2])
    if not name:
        raise InputError("--config needs a file: --config FILE, .toml, .json or .h5")
    return argv[:i] + rest, Path(name)


def _gathered(argv: list[str], flags: set[str]) -> list[str]:
    """``--f a --g b --f c`` as ``--f a c --g b`` for each f in ``flags``.

    tyro takes all values behind one flag or one behind each; users write both.
    """
    words: list[str] = []
    values: dict[str, list[str]] = {}
    current = None  # the list that values are added to now
    for word in argv:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in flags:
            if flag not in values:
                values[flag] = []
                words.append(flag)
            current = values[flag]
            current += [value] if equals else []
        elif word.startswith("-"):
            current = None
            words.append(word)
        else:
            (words if current is None else current).append(word)
    return [part for word in words for part in (word, *values.get(word, ()))]


# -- help ------------------------------------------------------------------------------------


def _registry(classes: set[type]) -> ConstructorRegistry:
    """How tyro shows our dataclasses: each field's docstring as one paragraph.

    By itself tyro keeps the line breaks of an indented docstring, and adds "(default: None)"
    to options whose text says what happens without them.
    """
    registry = ConstructorRegistry()

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        return _shown(info.type, info.default) if info.type in classes else None

    return registry


def _shown(cls: type, default: Any) -> StructConstructorSpec:
    hints = get_type_hints(cls, include_extras=True)
    fields = []
    for field in dataclasses.fields(cls):
        value = field.default if field.default is not dataclasses.MISSING else MISSING
        value = getattr(default, field.name) if isinstance(default, cls) else value
        hint = Annotated[hints[field.name], _look(hints[field.name], field.name, value)]
        help_text = functools.partial(_doc, cls, field.name)
        fields.append(StructFieldSpec(field.name, hint, value, help_text))
    if not hasattr(cls, "check"):
        return StructConstructorSpec(cls, tuple(fields))
    # Only for --help: _config_file has taken it out of the words.
    look = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
    text = " ".join(CONFIG_HELP.split())
    option = StructFieldSpec("config", Annotated[Path | None, look], None, text)
    return StructConstructorSpec(lambda config, **options: cls(**options), (option, *fields))


def _look(hint: Any, name: str, default: Any) -> Any:
    """What stands for the value, and the default where the text does not tell."""
    if tyro.conf.Positional in get_args(hint):
        name = name.upper()
        many = get_origin(get_args(hint)[0]) is tuple
        return tyro.conf.arg(metavar=f"[{name} ...]" if many else name, help_behavior_hint="")
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    metavar = None
    if get_origin(hint) is tuple:
        metavar = f"{_metavar(kinds[0])} ..."
    elif type(None) in get_args(hint):
        metavar = _metavar(kinds[0])
    evident = default is None or default == () or isinstance(default, bool)
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="" if evident else None)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return kind.__name__.upper()


def _doc(cls: type, field: str) -> str | None:
    return next((docs[field] for base in cls.__mro__[:-1] if field in (docs := _docs(base))), None)


@functools.cache
def _docs(cls: type) -> dict[str, str]:
    """The string under each field of the class, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
