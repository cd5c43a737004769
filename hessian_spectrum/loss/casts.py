"""In which floating-point type a loss is really computed: models and losses cast by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Casts(TorchDispatchMode):
    """While active, records the lowest floating-point type to which a result was rounded.

    Args:
        dtype: of what is given.
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.lowest = dtype

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's own hook: True, its default, imports all of torch._dynamo, 2 s a process."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t.dtype for t in tree_leaves(args) if _is_floating(t)]
        if given:
            for t in tree_leaves(out):
                if _is_floating(t) and torch.finfo(t.dtype).eps > torch.finfo(self.lowest).eps:
                    if torch.finfo(t.dtype).eps > min(torch.finfo(d).eps for d in given):
                        self.lowest = t.dtype
        return out


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
