"""Which of torch's kernels may be used: those with second derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Attention by the math kernel, which alone has second derivatives and jvp.

    The fused kernels (flash, memory-efficient) and the inference path of nn.MultiheadAttention
    have neither. Outside the block torch chooses as before.
    """
    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(fast)
