"""Modules that wrap a model for training: what they wrap is evaluated.

DistributedDataParallel and DataParallel communicate in each call, while ranks may have different
numbers of minibatches; compiled code has no second derivatives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.backends import replaced_forward

_PARALLEL = (DistributedDataParallel, DataParallel)
_SHARDED = ("FullyShardedDataParallel", "FSDPModule")  # named, since their import takes seconds
_DYNAMO = "torch._dynamo.eval_frame"  # imported by torch.compile


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile, however nested.

    Raises:
        InputError: the model's parameters are sharded over ranks.
    """
    _refuse_sharded(model)
    while isinstance(model, _PARALLEL) or _is_compiled(model):
        model = _inner(model)
    return model


@contextmanager
def bypassed(model: nn.Module) -> Iterator[None]:
    """Inside, wrapped submodules are called without their wrappers, and compiled code as written.

    The names of parameters stay.
    """
    with ExitStack() as stack:
        if _DYNAMO in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        parallel = [module for module in model.modules() if isinstance(module, _PARALLEL)]
        stack.enter_context(replaced_forward(parallel, _forward_of_inner))
        yield


def _inner(model: nn.Module) -> nn.Module:
    return model.get_submodule("module" if isinstance(model, _PARALLEL) else "_orig_mod")


def _forward_of_inner(model: nn.Module) -> Callable[..., Any]:
    inner = _inner(model)
    return lambda *args, **options: inner(*args, **options)  # a module would become a submodule


def _is_compiled(model: nn.Module) -> bool:
    dynamo = sys.modules.get(_DYNAMO)
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)


def _refuse_sharded(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kinds = {cls.__name__ for cls in type(module).__mro__}
        if kinds.intersection(_SHARDED):
            raise InputError(
                f"the module {name or 'given as model'} is sharded over ranks (FSDP), but each "
                "rank needs all parameters; use ShardedEvaluator (--sharded), or load the full "
                "state_dict into the module without FSDP"
            )
    for name, p in model.named_parameters():
        if type(p).__name__ == "DTensor" or type(p.data).__name__ == "DTensor":
            raise InputError(
                f"the parameter {name} is a DTensor, sharded over ranks, but each rank needs all "
                "parameters; use ShardedEvaluator (--sharded), or load the full state_dict into "
                "the module without sharding"
            )
