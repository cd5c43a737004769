"""A problem by name or from the user's own file: the arguments of an Evaluator."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from hessian_spectrum import zoo
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.errors import InputError


def load(config: ProblemConfig) -> dict[str, Any]:
    """``model``, ``loss_fn``, ``data`` and the other arguments of Evaluator.

    Raises:
        InputError: unknown names, missing files, a function that returns something else.
    """
    if config.problem:
        arguments = _from_file(config.problem, config.problem_arg)
    else:
        arguments = _from_zoo(config)
    if config.checkpoint:
        zoo.load_checkpoint(arguments["model"], config.checkpoint)
    if config.limit is not None:
        arguments["data"] = _first(arguments["data"], config.limit)
    given = {
        "parameters": config.parameters or None,
        "weight_decay": config.weight_decay or None,
        "dtype": config.dtype and getattr(torch, config.dtype),
    }
    arguments.setdefault("batch_size", config.batch_size)
    return {**arguments, **{name: value for name, value in given.items() if value is not None}}


def _from_zoo(config: ProblemConfig) -> dict[str, Any]:
    data = zoo.load_dataset(config.dataset, data_root=config.data_root, split=config.split)
    model = zoo.model_for(
        data,
        config.model,
        config.activation,
        config.init_seed,
        shortcut=config.shortcut,
        batchnorm=config.batchnorm,
    )
    return {"model": model, "loss_fn": nn.CrossEntropyLoss(), "data": data.tensors}


def _from_file(problem: str, problem_arg: tuple[str, ...]) -> dict[str, Any]:
    path, _, name = problem.rpartition(":")
    if not path:
        raise InputError(f"--problem {problem}: expected FILE.py:FUNCTION")
    make = getattr(_module(Path(path)), name, None)
    if not callable(make):
        raise InputError(f"--problem {problem}: {path} has no function {name}")
    result = make(**dict(map(_key_value, problem_arg)))
    if isinstance(result, tuple) and len(result) == 3:
        result = dict(zip(("model", "loss_fn", "data"), result))
    if not isinstance(result, dict) or not {"model", "loss_fn", "data"} <= set(result):
        raise InputError(
            f"--problem {problem} returned a {type(result).__name__}; expected "
            "(model, loss_fn, data) or a dict of Evaluator's arguments with these three"
        )
    return dict(result)


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"--problem {path}: no such file")
    # As when Python runs the file: its neighbours can be imported.
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise InputError(f"--problem {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _key_value(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as a Python literal where it is one, else as text."""
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
    if isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__len__"):
        return torch.utils.data.Subset(data, range(min(limit, len(data))))
    raise InputError(
        f"--limit cannot cut a {type(data).__name__}; return tensors or a Dataset from the problem"
    )
