"""A table of trainings: the options that differ, and the folder of each."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.validation import dashed
from hessian_spectrum.config.files import with_fields

if TYPE_CHECKING:
    from hessian_spectrum.config.training import TrainConfig

# Options of the whole grid, and those with several values of their own.
NOT_IN_A_GRID = ("grid", "grid_member", "out", "resume", "overwrite", "track")


def members(config: TrainConfig) -> dict[str, TrainConfig]:
    """The trainings of ``config.grid`` by name, in order: the last option changes first.

    Each has the folder OUT/NAME, such as OUT/adam-seed2, and its track, if any, there.

    Raises:
        InputError: an entry of another form, or two trainings of one name.
    """
    axes = [_axis(config, text) for text in config.grid]
    found: dict[str, TrainConfig] = {}
    for chosen in product(*axes):
        name = "-".join(part for part, _ in chosen)
        options: dict[str, Any] = {"grid": (), "grid_member": None, "out": config.out / name}
        for _, of_part in chosen:
            options |= of_part
        if config.track is not None:
            options["track"] = config.out / name / config.track.name
        if name in found:
            raise InputError(f"--grid {' '.join(config.grid)}: gives {name} twice")
        found[name] = dataclasses.replace(config, **options)
    return found


def _axis(config: TrainConfig, text: str) -> list[tuple[str, dict[str, Any]]]:
    """For each value of one option: its part of a name, and the options that it sets."""
    option, equals, values = text.partition("=")
    name = option.replace("-", "_")
    hints = get_type_hints(type(config))
    if name not in hints:
        name = name.removesuffix("s")  # optimizers=, seeds=
    if not equals or not values or name not in hints or name in NOT_IN_A_GRID:
        raise InputError(
            f"--grid {text}: expected OPTION=VALUE,VALUE,..., as in optimizer=sgd:0.1,adam:0.001 "
            "or seed=0,1,2"
        )
    if name == "optimizer":
        return [_optimizer(config, value) for value in values.split(",")]
    return [(f"{dashed(name)}{value}", _typed(config, name, value)) for value in values.split(",")]


def _optimizer(config: TrainConfig, text: str) -> tuple[str, dict[str, Any]]:
    """NAME, or NAME:LR."""
    name, colon, lr = text.partition(":")
    options = _typed(config, "optimizer", name)
    return name, options | (_typed(config, "lr", lr) if colon else {})


def _typed(config: TrainConfig, name: str, text: str) -> dict[str, Any]:
    value: Any = {"true": True, "false": False}.get(text, text)
    for number in (int, float):
        if value is text:
            try:
                value = number(text)
            except ValueError:
                continue
    hint = str(get_type_hints(type(config))[name])
    value = text if "tuple" in hint or "str" in hint else value
    try:
        return with_fields(type(config), {name: value}, Path("--grid"))
    except InputError as error:
        why = str(error).removeprefix("--config --grid: ")
        raise InputError(f"--grid {name}={text}: {why}") from None
