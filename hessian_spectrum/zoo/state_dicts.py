"""The state_dict that a checkpoint means for a model, under the names of the model.

Wrappers of training, containers and old releases of torch write other names than the model's. What
can be meant in one way only is renamed; otherwise the difference is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError

_KEYS = ("state_dict", "model", "model_state_dict", "module")  # where files hold state_dicts
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and its kin, torch.compile
_COMPILED = "_orig_mod."  # of a compiled child, inside of a name
_OF_WRAPPERS = {"n_averaged"}  # the wrappers' own entries: AveragedModel's count
_COUNT = "num_batches_tracked"  # of BatchNorm, since torch 0.4.1
_SHOWN = 2  # keys that a message names; it counts the others


def state_dict_in(content: object, path: Path) -> dict[str, Tensor]:
    """The state_dict that is ``content``, or is held under one of its usual keys.

    Raises:
        InputError: it holds none, or tensors without names or numbers.
    """
    found = content
    while isinstance(found, Mapping):
        inner = next((k for k in _KEYS if isinstance(found.get(k), Mapping)), None)
        if inner is None:
            break
        found = found[inner]
    if not isinstance(found, Mapping) or not found:
        raise InputError(
            f"{path} holds {_described(content)}, not a state_dict; save model.state_dict(), "
            f'alone or under "state_dict" or "model"'
        )
    foreign = [key for key, value in found.items() if not isinstance(value, Tensor)]
    if foreign:
        raise InputError(
            f"{path} holds entries that are not tensors ({few(foreign)}); expected a state_dict; "
            f'{_way_out(found)}save model.state_dict(), alone or under "state_dict" or "model"'
        )
    unnamed = [key for key in found if not isinstance(key, str)]
    if unnamed:
        raise InputError(
            f"{path} holds tensors under {type(unnamed[0]).__name__} keys ({few(unnamed)}), not "
            "under the names of parameters; save model.state_dict()"
        )
    return {key: _dense(key, t, path) for key, t in found.items()}


def renamed(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """``state`` under the names of ``model``, with what torch or safetensors have left out.

    Prefixes of wrappers, or one before all of the model's names, are dropped. A tensor that the
    model uses under several names may be there under one; BatchNorm's count of batches, which old
    files lack, is zero.

    Raises:
        InputError: the names fit in several ways, or beside other entries; tied tensors differ.
    """
    own = model.state_dict()
    state = _without_wrapper(state, own)
    plain = {key.replace(_COMPILED, ""): key for key in own}
    state = {plain.get(k.replace(_COMPILED, ""), k): t for k, t in state.items()}
    state = _complete(state, own)
    if own.keys() - state.keys():
        state = _complete(_under_prefix(state, own, path), own)
    _require_same_ties(state, own, path)
    return state


def few(keys: Sequence[object]) -> str:
    shown = ", ".join(map(str, keys[:_SHOWN]))
    return f"{shown} and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else shown


# -- what a file holds -------------------------------------------------------------------------


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a mapping with the keys {few(list(content))}" if content else "an empty mapping"
    return f"an object of type {type(content).__name__}"


def _way_out(content: Mapping) -> str:
    """In words: which entries could be meant."""
    inner = [
        key
        for key, value in content.items()
        if isinstance(value, Mapping)
        and value
        and all(isinstance(t, Tensor) for t in value.values())
    ]
    if not inner:
        return ""
    return (
        f"the entries {few(inner)} are state_dicts: save the one that is meant, as in "
        f"torch.save(torch.load(path)[{inner[0]!r}], other_path); or "
    )


def _dense(key: str, t: Tensor, path: Path) -> Tensor:
    if t.is_quantized:
        raise InputError(
            f"{path} holds quantized numbers for {key}; save the model as it was before "
            "quantization, or numbers in floating point, state[key].dequantize()"
        )
    if t.is_meta:
        raise InputError(
            f"{path} holds a tensor without values for {key} (device meta); save the model after "
            "its values were loaded"
        )
    return t if t.layout == torch.strided else t.to_dense()


# -- names -------------------------------------------------------------------------------------


def _without_wrapper(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    while True:
        named = [key for key in state if key not in _OF_WRAPPERS or key in own]
        # A model may have a child that is really called "module".
        wrapper = next(
            (
                prefix
                for prefix in _WRAPPERS
                if all(key.startswith(prefix) for key in named)
                and not all(key.startswith(prefix) for key in own)
            ),
            None,
        )
        if wrapper is None or not named:
            return state
        state = {key.removeprefix(wrapper): state[key] for key in named}


def _complete(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the other names of tied tensors, and BatchNorm's counts."""
    found = dict(state)
    for names in _ties(own):
        known = next((name for name in names if name in state), None)
        if known is not None:
            found.update({name: state[known] for name in names if name not in state})
    if any(key.rsplit(".", 1)[-1] == _COUNT for key in state):
        return found  # not an old file
    for key, t in own.items():
        if key.rsplit(".", 1)[-1] == _COUNT and key.removesuffix(_COUNT) + "running_mean" in state:
            found[key] = torch.zeros_like(t)
    return found


def _ties(own: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of one tensor, where it has several."""
    names: dict[tuple, list[str]] = {}
    for key, t in own.items():
        if isinstance(t, Tensor) and t.numel() and not t.is_meta:
            names.setdefault((t.data_ptr(), t.shape, t.stride()), []).append(key)
    return [tied for tied in names.values() if len(tied) > 1]


def _under_prefix(
    state: dict[str, Tensor], own: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """The entries under the one prefix under which all of the model's names are; else ``state``."""
    dots = ((k, i + 1) for k in state for i, letter in enumerate(k) if letter == ".")
    prefixes = dict.fromkeys(k[:i] for k, i in dots if k[i:] in own)
    parts = {p: {k.removeprefix(p): state[k] for k in state if k.startswith(p)} for p in prefixes}
    fitting = {p: part for p, part in parts.items() if _complete(part, own).keys() == own.keys()}
    if not fitting:
        _require_no_part(state, own, path)
        return state
    prefix, part = next(iter(fitting.items()))
    rest = [k for k in state if not k.startswith(prefix) and k not in _OF_WRAPPERS]
    if not rest:
        return part
    others = f"also under {', '.join(list(fitting)[1:])}" if len(fitting) > 1 else few(rest)
    raise InputError(
        f"{path} holds the model's entries under the prefix {prefix!r}, beside others ({others}); "
        f"save those that are meant: {{k.removeprefix({prefix!r}): v for k, v in state.items() if "
        f"k.startswith({prefix!r})}}"
    )


def _require_no_part(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """InputError where the file is that of the one child that has all of the model's entries."""
    child = next(iter(own)).split(".")[0]
    if own.keys() == {f"{child}.{key}" for key in state}:
        raise InputError(
            f"{path} holds the entries of the model's part {child}; load it into model.{child}"
        )


def _require_same_ties(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """InputError where the file has different numbers for one tensor of the model."""
    for names in _ties(own):
        given = [name for name in names if name in state]
        for name in given[1:]:
            if not torch.equal(state[name], state[given[0]]):
                raise InputError(
                    f"{path} holds different numbers for {given[0]} and {name}, which are one "
                    "tensor in the model; build the model that was saved, without the tie"
                )
