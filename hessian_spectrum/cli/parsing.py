"""The words of a command line, and a --config file -> one command's configuration.

tyro parses; docstring_parser, which tyro itself depends on, reads the text under each field.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro
from tyro.constructors import (
    MISSING,
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import dashed
from hessian_spectrum.config.files import read_file, with_fields

Command = tuple[str, type, str]  # name, dataclass of its options, one line of help

CONFIG_HELP = (
    "Read options from a .toml or .json file, or take those stored in an earlier result (.h5). "
    "Options on the command line win."
)
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong usage or input"
SAVED = ", 75 stopped by a signal after saving its state (--resume continues)"


def parse(
    argv: Sequence[str], commands: Sequence[Command], description: str, quiet: bool = False
) -> Any:
    """The chosen command's configuration: defaults < --config file < command line.

    Args:
        argv: the words after the program's name.
        commands: name, dataclass and one line of help of each. Those whose dataclass has a
            ``check`` take --config.
        description: the program's help, above the list of commands.
        quiet: print neither help nor errors, for a rank that is not the first.

    Raises:
        InputError: a --config file that cannot be used; an option given twice.
        SystemExit: 0 after --help, 2 after an error that was printed.
    """
    argv, source = _config_file(list(argv))
    takers = [name for name, cls, _ in commands if hasattr(cls, "check")]
    if source and (not argv or argv[0] not in takers):
        raise InputError(
            f"--config goes behind {', '.join(takers)}: hessian-spectrum {takers[-1]} --config FILE"
        )
    for name, cls, _ in commands:
        if argv[:1] == [name]:
            _require_two_dashes(argv[1:], cls)
            _require_given_once(argv[1:], cls)
    kinds = []
    for name, cls, summary in commands:
        chosen = argv[:1] == [name]
        options: dict[str, Any] = {"name": name, "prefix_name": False}
        options["description"] = _description(cls) if chosen else summary
        if source and chosen:
            options["default"] = cls(**with_fields(cls, read_file(source), source))
        kinds.append(_annotated(cls, tyro.conf.subcommand(**options)))
    any_command: Any = Union[tuple(kinds)]  # noqa: UP007 - built at run time
    with _silence() if quiet else nullcontext():
        return tyro.cli(
            any_command,
            prog="hessian-spectrum",
            description=_wrapped(description),
            args=argv,
            config=(
                tyro.conf.FlagCreatePairsOff,
                tyro.conf.OmitArgPrefixes,
                tyro.conf.DisallowNone,  # options are left out, not set to None
            ),
            registry=_registry({cls for _, cls, _ in commands}),
        )


@contextmanager
def _silence() -> Iterator[None]:
    # tyro's own console_outputs=False still prints errors about values.
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


def _require_two_dashes(words: Sequence[str], cls: type) -> None:
    """InputError for ``-k 3``, which nothing takes, where there is an option ``--k``."""
    options = {dashed(field.name) for field in dataclasses.fields(cls)}
    for word in words:
        name = dashed(word[1:].partition("=")[0])
        if word.startswith("-") and name in options:
            raise InputError(f"{word}: options have two dashes; expected -{word}")


def _require_given_once(words: Sequence[str], cls: type) -> None:
    """InputError for an option of one value that is given twice, in whatever spelling.

    argparse takes the last one, so that a word left in a script would be ignored.
    """
    repeatable = {
        dashed(name) for name, hint in get_type_hints(cls).items() if get_origin(hint) is tuple
    }
    given: dict[str, str] = {}
    for word in words:
        if not word.startswith("--"):
            continue
        option = dashed(word[2:].partition("=")[0])
        option = option.removeprefix("no-")  # how tyro spells an option that is on by default
        if option in given and option not in repeatable:
            same = given[option] == word
            raise InputError(
                f"{word} was given twice; give it once"
                if same
                else f"{given[option]} and {word} are one option, given twice; give it once"
            )
        given[option] = word


# -- help ------------------------------------------------------------------------------------


def _description(cls: type) -> str:
    """A command's docstring, and its exit codes."""
    codes = EXIT_CODES + (SAVED if hasattr(cls, "resume") else "") + "."
    return _wrapped(f"{inspect.getdoc(cls)}\n\n{codes}")


def _wrapped(text: str) -> str:
    """Paragraphs as wide as the terminal. Indented ones, which are examples, stay as they are.

    tyro leaves a description's line breaks to the terminal, which breaks inside words, and joins
    lines; all but those that are indented.
    """
    width = shutil.get_terminal_size().columns
    paragraphs = [
        textwrap.indent(paragraph, "  ")
        if paragraph.startswith(" ")
        else textwrap.fill(paragraph, width, initial_indent="  ", subsequent_indent="  ")
        for paragraph in text.split("\n\n")
    ]
    return "\n \n".join(paragraphs)


def _registry(classes: set[type]) -> ConstructorRegistry:
    """How tyro shows and fills our dataclasses.

    tyro's own rule for dataclasses (1.0.17) was tried with its markers DisallowNone,
    PositionalMetavarFromFieldName and UseAppendAction. It breaks help texts where the source does,
    adds "(default: None)" and "(default: False)" to options whose text says what happens without
    them, and takes several values either behind one flag or behind several, not both.
    """
    registry = ConstructorRegistry()

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        return _shown(info.type, info.default) if info.type in classes else None

    return registry


def _shown(cls: type, default: Any) -> StructConstructorSpec:
    hints = get_type_hints(cls, include_extras=True)
    docs = _docs(cls)
    fields, repeated = [], {}
    for field in dataclasses.fields(cls):
        name = field.name
        hint: Any = hints[name]
        value = field.default if field.default is not dataclasses.MISSING else MISSING
        value = getattr(default, name) if isinstance(default, cls) else value
        look = _look(hint, name, value)
        if get_origin(hint) is tuple:
            # Values behind one flag, or behind several, or both: appended, then chained.
            repeated[name], value = value, ()
            hint = _annotated(tuple.__class_getitem__((hint, ...)), tyro.conf.UseAppendAction)
        fields.append(StructFieldSpec(name, _annotated(hint, look), value, docs.get(name)))
    if hasattr(cls, "check"):  # only for --help: _config_file has taken it out of the words
        look = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
        fields.insert(0, StructFieldSpec("config", _annotated(str, look), "", CONFIG_HELP))

    def make(config: str = "", **options: Any) -> Any:
        for name, value in repeated.items():
            options[name] = tuple(chain(*options[name])) if options[name] else value
        return cls(**options)

    return StructConstructorSpec(make, tuple(fields))


def _look(hint: Any, name: str, default: Any) -> Any:
    """What stands for the value, and the default where the text does not tell."""
    metavar = None
    if tyro.conf.Positional in get_args(hint):
        many = get_origin(get_args(hint)[0]) is tuple
        metavar, evident = f"[{name.upper()} ...]" if many else name.upper(), True
    else:
        evident = default is None or default == () or isinstance(default, bool)
    if get_origin(hint) is tuple:
        metavar = f"{get_args(hint)[0].__name__.upper()} ..."
        shown = "" if evident else f"(default: {' '.join(map(str, default))})"
        return tyro.conf.arg(metavar=metavar, help_behavior_hint=shown)
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="" if evident else None)


@functools.cache
def _docs(cls: type) -> dict[str, str]:
    """The text under each field of the class and of its bases, on one line."""
    return {
        field.arg_name: " ".join((field.description or "").split())
        for base in reversed(cls.__mro__[:-1])
        for field in docstring_parser.parse_from_object(base).params
    }


def _annotated(hint: Any, *marks: Any) -> Any:
    """``Annotated`` of a type that is known at run time only."""
    return Annotated[(hint, *marks)]
