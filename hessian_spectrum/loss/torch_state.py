"""Torch's dispatch state, put back after an evaluation that may have failed inside of torch."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def unchanged() -> Iterator[None]:
    """Restore this thread's dispatch keys and the stack of transforms at the end.

    An operation that fails inside a transform of torch.func can leave both as they were in its
    middle (quantile under functionalize; 2.13). Every later gradient of the process is zero then.
    """
    functorch = torch._C._functorch
    depth = functorch.get_dynamic_layer_stack_depth()
    try:
        with torch._C._ForceDispatchKeyGuard(
            torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        ):
            try:
                yield
            except BaseException as error:
                # Objects in the frames change the state when they are freed: now, not later.
                _clear_frames(error)
                raise
    finally:
        if functorch.get_dynamic_layer_stack_depth() > depth:
            functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)


def _clear_frames(error: BaseException | None) -> None:
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
