"""Named parameters <-> one flat vector, and which of its entries this rank owns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.world import World


@dataclass(frozen=True)
class Layout:
    """Order, shapes and ownership of the n entries of theta.

    Rank r owns the entries [r c, min((r + 1) c, n)) with c = ceil(n / size): possibly none.
    Vectors are rows: k of them are one tensor, (k, n) whole or (k, n_local) on this rank.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    world: World = field(default_factory=World)

    @classmethod
    def of_model(cls, model: nn.Module, patterns: Sequence[str] | None, world: World) -> Layout:
        """The trainable parameters whose names match one of ``patterns`` (shell style).

        A parameter that is used under several names appears once, under its first name.
        Default: all that require a gradient.
        """
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        names: dict[int, list[str]] = {}  # a tied parameter has several
        for name, p in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(p), []).append(name)
        require_matches([name for all_ in names.values() for name in all_], patterns)
        chosen = [
            (name, p) for name, p in trainable if any(matches(n, patterns) for n in names[id(p)])
        ]
        if not chosen:
            known = ", ".join(name for name, _ in trainable[:6]) or "none"
            raise InputError(
                f"no trainable parameter matches {list(patterns or ['*'])}; the model's trainable "
                f"parameters are: {known}{', ...' if len(trainable) > 6 else ''}"
            )
        return cls(tuple(name for name, _ in chosen), tuple(p.shape for _, p in chosen), world)

    @classmethod
    def of_size(cls, n: int, world: World | None = None) -> Layout:
        """One unnamed vector of n entries."""
        return cls(("theta",), (torch.Size([n]),), world or World())

    # -- sizes -----------------------------------------------------------------------------

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    @property
    def n(self) -> int:
        return sum(self.sizes)

    @property
    def chunk(self) -> int:
        return -(-self.n // self.world.size)

    @property
    def start(self) -> int:
        return min(self.world.rank * self.chunk, self.n)

    @property
    def stop(self) -> int:
        return min(self.start + self.chunk, self.n)

    @property
    def n_local(self) -> int:
        return self.stop - self.start

    # -- named <-> flat ----------------------------------------------------------------------

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """(..., n) -> views (..., *shape) by name.

        ``split`` because its derivative is one concatenation, not a sum of n-vectors.
        """
        parts = theta.split(self.sizes, dim=-1)
        lead = theta.shape[:-1]
        return {
            name: part.view((*lead, *shape))
            for name, part, shape in zip(self.names, parts, self.shapes)
        }

    def flatten(self, tensors: Iterable[Tensor]) -> Tensor:
        """Tensors in the order of ``names`` -> (n,), a copy."""
        return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])

    # -- whole <-> local: the only large exchanges of a product --------------------------------

    def local(self, rows: Tensor) -> Tensor:
        """(k, n) -> this rank's (k, n_local), without communication."""
        return rows[:, self.start : self.stop]

    def gather(self, rows: Tensor) -> Tensor:
        """(k, n_local) on each rank -> (k, n) on all: one all-gather."""
        if self.world.size == 1:
            return rows
        padded = pad(rows, (0, self.chunk - self.n_local))
        return self.world.all_gather_rows(padded)[:, : self.n]

    def reduce(self, rows: Tensor) -> Tensor:
        """(k, n) on each rank, summed -> this rank's (k, n_local): one reduce-scatter."""
        if self.world.size == 1:
            return rows
        padded = pad(rows, (0, self.chunk * self.world.size - self.n))
        return self.world.reduce_scatter_rows(padded)[:, : self.n_local]


def require_matches(names: Sequence[str], patterns: Sequence[str] | None) -> None:
    """InputError for a pattern that no name matches: it may be misspelt."""
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"no parameter matches {pattern!r}; the parameters are: {', '.join(names[:6])}"
                + (", ..." if len(names) > 6 else "")
            )


def matches(name: str, patterns: Sequence[str] | None) -> bool:
    """Does the name match one of these shell-style patterns? None: yes."""
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)
