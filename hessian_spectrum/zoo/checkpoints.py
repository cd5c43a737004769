"""Checkpoint files: load parameters; save parameters and training state. No pickled objects."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hessian_spectrum._core.atomic import replacing
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.loss.wrappers import unwrapped

_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and its kin, torch.compile
_SHOWN = 2  # keys that a message names; it counts the others


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Set all parameters and buffers of ``model`` to those of a checkpoint, or raise.

    Args:
        model: changed in place, unless an error is raised; keeps its device and dtype.
        path: a ``.safetensors`` file, or else a file of ``torch.save`` that holds a
            state_dict, alone or under the key "state_dict" or "model". A "module." (DataParallel)
            or "_orig_mod." (torch.compile) before every key is dropped, in the file and in the
            model.

    Raises:
        InputError: no such file, not a checkpoint, the checkpoint of another model, or one whose
            numbers the model's real or whole numbers cannot hold.
    """
    path, model = Path(path).expanduser(), unwrapped(model)
    state, own = _without_wrapper(_state_dict_in(_read(path), path), model), model.state_dict()
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
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": int(epoch),
        "config": json.loads(json.dumps(dict(config))),
    }
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def stored_epoch(path: str | Path) -> int | None:
    """The number of finished epochs that a checkpoint stores under "epoch"; None without one.

    File names are not looked at.

    Raises:
        InputError: as ``load_checkpoint``, for a file that cannot be read.
    """
    content = _read(Path(path).expanduser())
    epoch = content.get("epoch") if isinstance(content, Mapping) else None
    is_whole = isinstance(epoch, int) and not isinstance(epoch, bool)
    return epoch if is_whole else None


def _read(path: Path) -> object:
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


def _state_dict_in(content: object, path: Path) -> dict[str, Tensor]:
    found = content
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise InputError(
            f"{path} holds {_described(content)}, not a state_dict; save model.state_dict(), "
            f'alone or under "state_dict" or "model"'
        )
    foreign = [key for key, value in found.items() if not isinstance(value, Tensor)]
    if foreign:
        raise InputError(
            f"{path} holds entries that are not tensors ({_few(foreign)}); expected a state_dict; "
            f'save model.state_dict(), alone or under "state_dict" or "model"'
        )
    return dict(found)


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a mapping with the keys {_few(list(content))}" if content else "an empty mapping"
    return f"an object of type {type(content).__name__}"


def _without_wrapper(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    own = model.state_dict()
    while True:
        # A model may have a child that is really called "module".
        wrapper = next(
            (
                prefix
                for prefix in _WRAPPERS
                if all(key.startswith(prefix) for key in state)
                and not all(key.startswith(prefix) for key in own)
            ),
            None,
        )
        if wrapper is None:
            return state
        state = {key.removeprefix(wrapper): value for key, value in state.items()}


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
    differences = "; ".join(f"{what}: {_few(keys)}" for what, keys in findings.items() if keys)
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


def _few(keys: Sequence[object]) -> str:
    shown = ", ".join(map(str, keys[:_SHOWN]))
    return f"{shown} and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else shown
