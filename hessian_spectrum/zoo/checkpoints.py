"""Checkpoint files: load parameters; save parameters and training state. No pickled objects."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hessian_spectrum._core.atomic import replacing
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.wrappers import unwrapped
from hessian_spectrum.storage.point_name import PointName
from hessian_spectrum.zoo.state_dicts import few, renamed, state_dict_in
from hessian_spectrum.zoo.stored_points import read_point


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Set all parameters and buffers of ``model`` to those of a checkpoint, or raise.

    Args:
        model: changed in place, unless an error is raised; keeps its device and dtype.
        path: a ``.safetensors`` file, or else a file of ``torch.save`` that holds a
            state_dict, alone or under the key "state_dict", "model", "model_state_dict" or
            "module". Names that wrappers of training have put before those of the model are
            dropped ("module.", "_orig_mod.", "model."), with the count of an AveragedModel. A tied
            tensor may be there under one of its names; BatchNorm's count of batches, which files
            from before torch 0.4.1 lack, is zero then. Sparse tensors are made dense. Or
            ``critical.h5:3``, the point of start 3 that the command critical has stored: what is
            not among its parameters, such as buffers, stays as it is.

    Raises:
        InputError: no such file, not a checkpoint, the checkpoint of another model, or one whose
            numbers the model's real or whole numbers cannot hold.
    """
    path, model = Path(path).expanduser(), unwrapped(model)
    state, own = renamed(state_dict_in(_read(path), path), model, path), model.state_dict()
    if PointName.of(path):
        state = {**own, **state}
    _require_same_entries(state, own, path)
    _require_same_numbers(state, own, path)
    model.load_state_dict(state)


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    config: Mapping[str, object],
) -> None:
    """Write {"model", "optimizer", "epoch", "config"} for ``torch.load(weights_only=True)``.

    The write is atomic: a killed process leaves the complete file or none. A missing folder is
    created; an existing file is replaced.

    Args:
        path: usually ``epoch-0005.pt``.
        epoch: number of finished epochs.
        config: JSON values; stored as JSON reads them back, because a NumPy scalar, for example,
            would make the file unreadable with weights_only.
    """
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": int(epoch)}
    save_state(path, state, config)


def save_state(path: str | Path, state: Mapping[str, object], config: Mapping[str, object]) -> None:
    """As ``save_checkpoint``, for any tensors and numbers by name, the model's under "model"."""
    checkpoint = {**state, "config": json.loads(json.dumps(dict(config)))}
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def read_state(path: str | Path) -> dict[str, Any]:
    """What ``save_state`` wrote, on the CPU.

    Raises:
        InputError: no such file, not a checkpoint, or one without a "config".
    """
    path = Path(path).expanduser()
    content = _read(path)
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise InputError(f"{path} is not a checkpoint of the command train: it has no config")
    return content


def stored_epoch(path: str | Path) -> int | None:
    """The number of finished epochs that a checkpoint stores under "epoch"; None without one.

    File names are not looked at.

    Raises:
        InputError: as ``load_checkpoint``, for a file that cannot be read.
    """
    return _stored_whole(path, "epoch")


def stored_step(path: str | Path) -> int | None:
    """The number of optimizer steps that a checkpoint stores under "step"; None without one.

    Raises:
        InputError: as ``load_checkpoint``, for a file that cannot be read.
    """
    return _stored_whole(path, "step")


def _stored_whole(path: str | Path, name: str) -> int | None:
    content = _read(Path(path).expanduser())
    value = content.get(name) if isinstance(content, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read(path: Path) -> object:
    if name := PointName.of(path):
        return read_point(name)
    if not path.is_file():
        raise InputError(
            f"no checkpoint file at {path}; give the path of a .pt or .safetensors file"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        return torch.load(path, map_location="cpu", weights_only=True)
    # Damaged bytes make the readers raise nearly any exception, so catch all.
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint ({_reason(error)}); expected a whole "
            f".safetensors file or torch.save(model.state_dict(), path), without pickled objects; "
            f"write it again"
        ) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # torch's message is long and advises unsafe loading; the pickled class is what helps.
    pickled = re.search(r"Unsupported global: GLOBAL (\S+)", text)
    return (
        f"it holds a pickled {pickled[1]}" if pickled else f"{type(error).__name__}: {text[:120]}"
    )


def _require_same_entries(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path
) -> None:
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    findings = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    differences = "; ".join(f"{what}: {few(keys)}" for what, keys in findings.items() if keys)
    if differences:
        raise InputError(
            f"{path} belongs to another model ({differences}); build the model that was saved, "
            f"or give its checkpoint"
        )


def _require_same_numbers(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path
) -> None:
    """InputError where the conversion to the model's dtype drops a part of the numbers.

    Imaginary parts and fractions are a part; the last digits of a float64 are not.
    """
    for key, t in state.items():
        if t.is_complex() and not own[key].is_complex():
            raise InputError(
                f"{path} holds complex numbers for {key}, but the model has {_type(own[key])} "
                "there, without imaginary parts; save real tensors, or build the complex model"
            )
        is_whole = not (own[key].is_floating_point() or own[key].is_complex())
        if is_whole and not torch.equal(t, t.to(own[key].dtype).to(t.dtype)):
            raise InputError(
                f"{path} holds numbers of {_type(t)} for {key} that the model's {_type(own[key])} "
                "cannot hold; build the model that was saved, or give its checkpoint"
            )


def _type(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")
