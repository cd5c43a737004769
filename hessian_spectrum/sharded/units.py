"""Which parameters are gathered together: those of one layer, whole for as long as it works."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.sharding import Layout

ROOT = ""  # the unit of what is in no other


@dataclass(frozen=True)
class Unit:
    """Parameters that one collective gathers: their entries one after the other.

    Each of P ranks owns c = ceil(size / P) entries of them; the last ranks' are padded.
    """

    name: str  # of the module
    layout: Layout  # of its parameters, by their first names
    moves: bool  # they are in theta; else they are constants

    @property
    def size(self) -> int:
        return self.layout.n

    @property
    def chunk(self) -> int:
        return self.layout.chunk

    @property
    def padding(self) -> int:
        return self.chunk * self.layout.world.size - self.size


def units_of(
    model: nn.Module, theta: Layout, patterns: Sequence[str] | None = None
) -> tuple[Unit, ...]:
    """The units of a model: one for each of its blocks, and one for the rest.

    Blocks are the modules whose names match ``patterns``; by default those that FSDP2 shards by
    themselves or, without such, the entries of every outermost nn.ModuleList, as the layers of a
    transformer. Parameters in theta and constants are units of their own.

    Args:
        theta: which parameters are in theta, and the ranks.

    Raises:
        InputError: a pattern matches no module.
    """
    blocks = _blocks(model, patterns)
    chosen = set(theta.names)
    parts: dict[tuple[str, bool], list[tuple[str, Tensor]]] = {}
    for name, p in model.named_parameters():
        block = max((b for b in blocks if _is_inside(name, b)), key=len, default=ROOT)
        parts.setdefault((block, name in chosen), []).append((name, p))
    return tuple(
        Unit(
            block,
            Layout(tuple(n for n, _ in named), tuple(p.shape for _, p in named), theta.world),
            moves,
        )
        for (block, moves), named in parts.items()
    )


def _blocks(model: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    modules = dict(model.named_modules())
    if patterns is not None:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in modules):
                raise InputError(
                    f"units: no module matches {pattern!r}; the model's modules are: "
                    f"{_some(name for name in modules if name)}"
                )
        return [name for name in modules if any(fnmatchcase(name, p) for p in patterns)]
    sharded = [name for name, module in modules.items() if name and is_fsdp(module)]
    if sharded:
        return sharded
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(_is_inside(name, other) for other in lists)]
    return [f"{name}.{index}" for name in outer for index in range(len(modules[name]))]


def is_fsdp(module: nn.Module) -> bool:
    """Does FSDP2 (``fully_shard``) shard this module by itself?"""
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)


def _is_inside(name: str, block: str) -> bool:
    return name.startswith(f"{block}.")


def _some(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:6]) + (", ..." if len(known) > 6 else "")
