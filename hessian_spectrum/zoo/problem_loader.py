"""Load a problem by name or from the user's own file."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from hessian_spectrum import zoo
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.config.problem import HUGGINGFACE
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.zoo import language_model
from hessian_spectrum.zoo.objectives import problem_for

REQUIRED = ("model", "loss_fn", "data")
# What a problem may set: all arguments of Evaluator but the ranks.
ARGUMENTS = tuple(field.name for field in dataclasses.fields(Problem))

Config = TypeVar("Config", bound=ProblemConfig)


def load(config: ProblemConfig) -> Problem:
    """The problem that ``config`` names; options of ``config`` override what it sets itself.

    Raises:
        InputError: unknown names, missing files, or a function that fails or returns the wrong
            kind of object.
    """
    if config.problem and config.problem.startswith(HUGGINGFACE):
        found = language_model.problem(config)
    elif config.problem:
        found = _from_file(config.problem, config.problem_arg)
    else:
        found = _from_zoo(config)
    if config.checkpoint:
        zoo.load_checkpoint(found.model, config.checkpoint)
    return with_options(config, found)


def with_options(config: ProblemConfig, problem: Problem) -> Problem:
    """``problem`` with the options that ``config`` sets."""
    data = problem.data
    if config.limit is not None:
        data = _first(data, config.limit)
    if config.batch_size is not None and isinstance(data, DataLoader):
        data = _rebatched(data, config.batch_size)
    given: dict[str, Any] = {
        "parameters": config.parameters or None,
        "weight_decay": config.weight_decay,
        "batch_size": config.batch_size,
        "batch_norm": config.batch_norm,
        "dropout": config.dropout,
        "dropout_seed": config.dropout_seed,
        "dtype": config.dtype and getattr(torch, config.dtype),
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if config.device is not None:  # the ranks' device is that one already
        chosen["device"] = None
    return dataclasses.replace(problem, data=data, **chosen)


def settled(config: Config, problem: Problem) -> Config:
    """``config``, with the problem's own choices for the options that were not given.

    Stored with a result, it describes what was computed, and reproduces it even if the problem's
    own choices change later.
    """
    data, parameters = problem.data, problem.parameters or ()
    batch_size = data.batch_size if isinstance(data, DataLoader) else problem.batch_size
    parameters = (parameters,) if isinstance(parameters, str) else tuple(parameters)
    return dataclasses.replace(
        config,
        batch_size=batch_size,
        weight_decay=problem.weight_decay,
        batch_norm=problem.batch_norm,
        dropout=problem.dropout,
        dropout_seed=problem.dropout_seed,
        parameters=parameters,
        dtype=_NAMES.get(problem.dtype, config.dtype),
    )


def _from_zoo(config: ProblemConfig) -> Problem:
    assert config.model is not None and config.dataset is not None  # by ProblemConfig.check
    data = zoo.load_dataset(
        config.dataset,
        data_root=config.data_root,
        split=config.split,
        limit=config.limit,
        image_size=config.image_size,
        download=config.download,
    )
    model = zoo.model_for(
        data,
        config.model,
        config.activation,
        config.init_seed,
        shortcut=config.shortcut,
        batchnorm=config.batchnorm,
        width=config.width,
        dropout_rate=config.dropout_rate,
    )
    return problem_for(config.model, config.loss, model, data)


def _from_file(problem: str, problem_arg: tuple[str, ...]) -> Problem:
    path, _, name = problem.rpartition(":")
    if not path:
        raise InputError(f"--problem {problem}: expected FILE.py:FUNCTION")
    make = getattr(_module(Path(path), problem), name, None)
    if not callable(make):
        raise InputError(f"--problem {problem}: {path} has no function {name}")
    options = dict(map(_key_value, problem_arg))
    _require_signature(problem, make, options)
    with _errors_of(problem, Path(path)):
        result = make(**options)
    if isinstance(result, tuple) and len(result) == len(REQUIRED):
        result = dict(zip(REQUIRED, result))
    _require_arguments(problem, result)
    return Problem(**result)


@contextmanager
def _errors_of(problem: str, path: Path) -> Iterator[None]:
    """Turn an error in the user's file into an InputError that names its line."""
    try:
        yield
    except MemoryError:  # not an error in the file; the command line gives advice
        raise
    except (Exception, SystemExit) as error:
        line = _line_in(path, error)
        where = "" if line is None else f"line {line}: "
        raise InputError(f"--problem {problem}: {where}{_told(error, path)}") from error


def _line_in(path: Path, error: BaseException) -> int | None:
    """The innermost line of the file in the traceback; None if the file is not in it."""
    if isinstance(error, SyntaxError) and _is_same(path, error.filename):
        return error.lineno
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if _is_same(path, frame.f_code.co_filename)]
    return lines[-1] if lines else None


def _told(error: BaseException, path: Path) -> str:
    if isinstance(error, InputError):
        return str(error)
    own = isinstance(error, SyntaxError) and _is_same(path, error.filename)
    text = error.msg if isinstance(error, SyntaxError) and own else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_same(path: Path, name: str | None) -> bool:
    return name is not None and os.path.realpath(name) == os.path.realpath(path)


def _require_signature(problem: str, make: Callable, options: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(make)
    except ValueError:  # not written in Python; calling it reports the error
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        raise InputError(
            f"--problem {problem}: {error}; --problem-arg takes those of the function: "
            f"{', '.join(map(str, signature.parameters.values())) or 'none'}"
        ) from None


def _require_arguments(problem: str, result: Any) -> None:
    if not isinstance(result, dict) or not set(REQUIRED) <= set(result):
        got = f"a {type(result).__name__}"
        if isinstance(result, dict):
            got += f" without {', '.join(name for name in REQUIRED if name not in result)}"
        elif isinstance(result, tuple):
            got += f" of {len(result)}"
        raise InputError(
            f"--problem {problem} returned {got}; expected (model, loss_fn, data) or a dict of "
            "Evaluator's arguments with these three"
        )
    unknown = [str(name) for name in result if name not in ARGUMENTS]
    if unknown:
        raise InputError(
            f"--problem {problem} returned a dict with the unknown {', '.join(unknown)}; expected "
            f"Evaluator's arguments: {', '.join(ARGUMENTS)}"
        )
    for name, kind, expected in (
        ("model", nn.Module, "a torch.nn.Module"),
        ("parameters", (Sequence, NoneType), "name patterns such as ['layer1.*']"),
    ):
        value = result.get(name)
        if not isinstance(value, kind):
            raise InputError(
                f"--problem {problem} returned a {type(value).__name__} as {name}; expected "
                f"{expected}"
            )


def _module(path: Path, problem: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"--problem {path}: no such file")
    # As when Python runs the file: it can import modules beside it.
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--problem {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    with _errors_of(problem, path):
        spec.loader.exec_module(module)
    return module


def _key_value(text: str) -> tuple[str, Any]:
    """KEY and VALUE of KEY=VALUE; the value as a Python literal if it is one, else as text."""
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _first(data: Any, limit: int) -> Any:
    """The first ``limit`` samples."""
    if limit < 1:
        raise InputError(f"--limit {limit}: expected 1 or more samples")
    if isinstance(data, (tuple, list)) and all(isinstance(t, torch.Tensor) for t in data):
        return tuple(t[:limit] for t in data)
    if isinstance(data, DataLoader) and data.batch_size and hasattr(data.dataset, "__len__"):
        first = _first(data.dataset, limit)
        return DataLoader(first, data.batch_size, collate_fn=data.collate_fn)
    if isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__len__"):
        return torch.utils.data.Subset(data, range(min(limit, len(data))))
    raise InputError(
        f"--limit cannot cut a {type(data).__name__}; return tensors or a Dataset from the problem"
    )


def _rebatched(loader: DataLoader, batch_size: int) -> DataLoader:
    """The same samples in batches of another size."""
    if loader.batch_size == batch_size:
        return loader
    if loader.batch_size is None:
        raise InputError(
            f"--batch-size {batch_size} cannot change a DataLoader that makes its own batches "
            "(batch_sampler, or batch_size=None); leave the option out, or return the data set"
        )
    stream = isinstance(loader.dataset, IterableDataset)
    return DataLoader(
        loader.dataset,
        batch_size,
        sampler=None if stream else loader.sampler,  # the evaluator checks it
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        drop_last=loader.drop_last,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


_NAMES: dict[torch.dtype | None, Literal["float32", "float64"] | None] = {
    torch.float32: "float32",
    torch.float64: "float64",
}
