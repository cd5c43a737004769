"""BatchNorm layers of a model, and which statistics they normalize by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hessian_spectrum._core.errors import InputError

STATISTICS = {
    "eval": "its running statistics",
    "train": "the statistics of each minibatch",
    "recalibrate": "the statistics of all the data",
}
BATCH_NORM = tuple(STATISTICS)


def layers(model: nn.Module) -> dict[str, _NormBase]:
    """The model's BatchNorm layers by name, in the order in which they are registered."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and "Instance" not in type(module).__name__
    }


def described(found: Mapping[str, nn.Module]) -> str:
    """Layers in words, for messages: ``bn1 (BatchNorm2d) and 19 more``."""
    name, module = next(iter(found.items()))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{name or 'the model itself'} ({type(module).__name__}){more}"


def check(model: nn.Module, batch_norm: str) -> None:
    """InputError if the model's layers cannot be evaluated in the mode ``batch_norm``."""
    if batch_norm not in BATCH_NORM:
        raise InputError(
            f"batch_norm={batch_norm!r}: expected 'eval' (running statistics), 'train' (those of "
            "each minibatch) or 'recalibrate' (those of all the data, at these parameters)"
        )
    if batch_norm != "eval" and not layers(model):
        raise InputError(
            f"batch_norm={batch_norm!r}, but the model has no BatchNorm layer of torch.nn; leave "
            "it out, or build the model from those layers"
        )
    for name, module in layers(model).items():
        if batch_norm == "train" and isinstance(module, nn.SyncBatchNorm):
            raise InputError(
                f"batch_norm='train': {name} (SyncBatchNorm) would mix the statistics of ranks; "
                "use BatchNorm, or batch_norm='eval' or 'recalibrate'"
            )
        if batch_norm == "recalibrate" and module.running_mean is None:
            raise InputError(
                f"batch_norm='recalibrate': {name} ({type(module).__name__}) has no running "
                "statistics to recompute; give it track_running_stats=True, or use "
                "batch_norm='train'"
            )


@contextmanager
def by_batch(model: nn.Module) -> Iterator[None]:
    """Normalize by the minibatch's own statistics, without updating the running ones."""
    found = list(layers(model).values())
    before = [(module.training, module.track_running_stats) for module in found]
    try:
        for module in found:
            module.training, module.track_running_stats = True, False
        yield
    finally:
        for module, (training, tracking) in zip(found, before):
            module.training, module.track_running_stats = training, tracking
