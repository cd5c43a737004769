"""Lengths and inner products of long float32 vectors are summed in float64."""

import pytest
import torch

from hessian_spectrum.distributed.arrays import dot, length


def test_a_small_entry_counts_beside_a_large_one():
    v = torch.full((3_000_000,), 1e-3)
    v[0] = 4096.0  # in float32 4096^2 + 1e-6 is 4096^2
    assert length(v) ** 2 == pytest.approx(4096.0**2 + 3e6 * 1e-6, abs=1e-2)
    assert dot(v, v) == pytest.approx(length(v) ** 2, rel=1e-9)


def test_blocks_join():
    a, b = torch.randn(2, 2_500_001)
    assert dot(a, b) == pytest.approx((a.double() @ b.double()).item(), abs=1e-9)
    assert dot(a[:0], b[:0]) == 0
