"""Where the values of parameters come from: the model, or files that each rank reads a part of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.batching import raw_bytes
from hessian_spectrum.sharded.units import Unit, is_fsdp

# name, first and last entry of the flattened parameter -> these entries. Called by every rank in
# one order, with ranges of its own.
Source = Callable[[str, int, int], Tensor]
BLOCK = 1 << 20  # entries that are looked at together
INDEX = "model.safetensors.index.json"


def require(model: nn.Module, weights: Any, world: World) -> None:
    """InputError unless the parameters have values somewhere, on all the ranks."""
    for name, p in model.named_parameters():
        if _is_dtensor(p) and p.device_mesh.get_coordinate() is None:  # type: ignore[attr-defined]
            raise InputError(
                f"the parameter {name} lies on ranks {p.device_mesh.mesh.flatten().tolist()}, "  # type: ignore[attr-defined]
                f"without rank {world.rank}; make its device mesh of all ranks, or give world= of "
                "those that have it"
            )
        if p.is_meta and weights is None:
            raise InputError(
                f"the parameter {name} is on the device meta, without values; pass weights=, a "
                "safetensors file or a checkpoint, or load the model"
            )
        if p.is_complex():
            raise InputError(
                f"the parameter {name} is complex; give the model its real and imaginary parts as "
                "real parameters"
            )


def digest(model: nn.Module) -> str:
    """SHA-256 of what each rank holds whole: buffers, and parameters that are no DTensors."""
    sha = hashlib.sha256()
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if not (_is_dtensor(t) or t.is_meta):
            sha.update(name.encode())
            sha.update(raw_bytes(t))
    return sha.hexdigest()


def source(model: nn.Module, weights: str | Path | None, world: World) -> Source:
    """Of these files or, without, of the model. Called by every rank."""
    if weights is not None:
        return _of_files(model, Path(weights), world)
    for module in model.modules():
        if is_fsdp(module):
            module.reshard()  # type: ignore[operator]
    return _OfModel(model)


class _OfModel:
    """One parameter at a time is whole, whatever its placements are.

    Attributes:
        sums: of the entries of each DTensor and of their squares, by name: a parameter that is
            sharded over some of the ranks is another DTensor, with the same values, on the others.
    """

    def __init__(self, model: nn.Module):
        self._named = dict(model.named_parameters())
        self._whole: dict[str, Tensor] = {}
        self.sums: dict[str, tuple[float, float]] = {}

    def __call__(self, name: str, first: int, last: int) -> Tensor:
        p = self._named[name]
        if not _is_dtensor(p):
            return p.detach().reshape(-1)[first:last]
        if name not in self._whole:
            self._whole.clear()
            whole = p.detach().full_tensor().reshape(-1)  # type: ignore[attr-defined]
            self._whole[name] = whole
            numbers = whole.double()
            self.sums[name] = numbers.sum().item(), numbers.square().sum().item()
        return self._whole[name][first:last]


def require_same(source: Source, world: World) -> None:
    """InputError unless all ranks have read the same whole parameters."""
    sums = world.gather_objects(getattr(source, "sums", {}))
    for rank, found in enumerate(sums):
        names = [name for name, value in found.items() if value != sums[0][name]]
        if names:
            raise InputError(
                f"the parameter {names[0]} has other values on rank {rank} than on rank 0; load "
                "the same state on all ranks"
            )


def shard(unit: Unit, source: Source, dtype: torch.dtype) -> Tensor:
    """This rank's entries of a unit, (c,). Called by every rank."""
    world, at = unit.layout.world, 0
    start = world.rank * unit.chunk
    found = torch.zeros(unit.chunk, dtype=dtype, device=world.device)
    for name, size in zip(unit.layout.names, unit.layout.sizes):
        first, last = (min(max(b - at, 0), size) for b in (start, start + unit.chunk))
        found[at + first - start : at + last - start] = source(name, first, last).to(found)
        at += size
    return found


def require_finite(theta: Tensor, fixed: Iterable[Tensor], world: World) -> None:
    bad = sum(int((~t.isfinite()).sum()) for t in (theta, *fixed))
    total = int(world.sum(torch.tensor(float(bad), device=world.device)))
    if total:
        raise InputError(
            f"the model's parameters have {total} entries that are NaN or infinite; did the "
            "training diverge? Use an earlier checkpoint"
        )


def sums_of_bits(entries: Tensor, layout: Layout | None) -> list[int]:
    """Two sums modulo 2^64 of entries' bits, multiplied by odd numbers that their places give.

    Summed over ranks they are those of the whole vector, however it is shared out. They tell
    parameters apart; they are no safeguard against one who wants them to agree.

    Args:
        layout: of theta; None: the order does not count.
    """
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[entries.element_size()]
    bits = entries.detach().cpu().contiguous().view(kind).numpy().astype(np.uint64)
    start = 0 if layout is None else layout.start
    found = []
    for multiplier in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F):
        total = 0
        for first in range(0, len(bits), BLOCK):
            part = bits[first : first + BLOCK]
            places = np.arange(start + first, start + first + len(part), dtype=np.uint64)
            factors = np.uint64(multiplier) * (2 * places + 1 if layout else np.ones_like(places))
            mixed = (part ^ (part >> np.uint64(17))) * factors
            total += int((mixed ^ (mixed >> np.uint64(29))).sum(dtype=np.uint64))
        found.append(total % 2**64)
    return found


def _is_dtensor(p: Tensor) -> bool:
    return type(p).__name__ == "DTensor" or type(p.data).__name__ == "DTensor"


def _of_files(model: nn.Module, path: Path, world: World) -> Source:
    shapes = {name: p.shape for name, p in model.named_parameters()}
    names: dict[str, list[str]] = {}  # a tied parameter may be stored under any of its names
    first = {id(p): name for name, p in model.named_parameters()}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(first[id(p)], []).append(name)
    if path.is_dir() and (path / ".metadata").exists():
        return _of_checkpoint(path, shapes)
    files = _safetensors_files(path)

    def entries(name: str, first: int, last: int) -> Tensor:
        from safetensors import safe_open

        stored = next((n for n in names[name] if n in files), None)
        if stored is None:
            raise InputError(
                f"{path}: has no tensor {name}; it has {', '.join(list(files)[:6])}, ..."
            )
        with safe_open(files[stored], framework="pt") as file:
            part = file.get_slice(stored)
            shape = tuple(part.get_shape())
            if shape != tuple(shapes[name]):
                raise InputError(
                    f"{path}: {stored} has shape {shape}; the model expects {tuple(shapes[name])}"
                )
            return _rows(part, shape, first, last)

    return entries


def _rows(part: Any, shape: tuple[int, ...], first: int, last: int) -> Tensor:
    """Entries of a stored tensor, flattened: the rows that have them are read."""
    if first >= last:
        return torch.zeros(0)
    if not shape:
        return part[...].reshape(-1)[first:last]
    row = max(1, torch.Size(shape[1:]).numel())
    top, bottom = first // row, -(-last // row)
    return part[top:bottom].reshape(-1)[first - top * row : last - top * row]


def _safetensors_files(path: Path) -> dict[str, Path]:
    """The file of each tensor, by name."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        found = next((path / n for n in (INDEX, "model.safetensors") if (path / n).exists()), None)
        if found is None:
            raise InputError(
                f"{path}: holds neither {INDEX}, model.safetensors nor a checkpoint of "
                "torch.distributed.checkpoint"
            )
        path = found
    if not path.exists():
        raise InputError(f"{path}: there is no such file; weights= names a .safetensors file")
    try:
        if path.name.endswith(".json"):
            table = json.loads(path.read_text())["weight_map"]
            return {str(name): path.parent / str(file) for name, file in table.items()}
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {error}") from error


def _of_checkpoint(path: Path, shapes: dict[str, torch.Size]) -> Source:
    """Of torch.distributed.checkpoint: one parameter at a time is read whole.

    Its file of metadata is a pickle, which runs what is in it: from sources that are trusted.
    """
    from torch.distributed.checkpoint import FileSystemReader, load

    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    prefix = next(
        (p for p in ("", "model.", "state_dict.") if f"{p}{next(iter(shapes))}" in stored), ""
    )
    whole: dict[str, Tensor] = {}

    def entries(name: str, first: int, last: int) -> Tensor:
        key = prefix + name
        if key not in stored:
            raise InputError(
                f"{path}: has no tensor {name}; it has {', '.join(list(stored)[:6])}, ..."
            )
        size = getattr(stored[key], "size", None)
        if size != shapes[name]:
            raise InputError(
                f"{path}: {key} has shape {tuple(size or ())}; the model expects "
                f"{tuple(shapes[name])}"
            )
        if name not in whole:
            whole.clear()
            found = {key: torch.empty(shapes[name])}
            load(found, storage_reader=FileSystemReader(path), no_dist=True)
            whole[name] = found[key].reshape(-1)
        return whole[name][first:last]

    return entries


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Inside, new modules have parameters on the device meta, without values; buffers have theirs.

    A model of any size is made so on every rank, and its values are read by
    ``ShardedEvaluator(model, ..., weights=PATH)``.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> with hs.parameters_on_meta():
        ...     model = torch.nn.Linear(100_000, 100_000)
        >>> model.weight.device.type
        'meta'
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        found = module._parameters[name]
        if found is not None and not found.is_meta:
            meta = nn.Parameter(found.to("meta"), requires_grad=found.requires_grad)
            module._parameters[name] = meta

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
