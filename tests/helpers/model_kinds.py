"""The kinds of model of the benchmarks, with their dense oracles."""

import functools

import pytest
import torch

from benchmarks.suite.kinds import KINDS, oracle


@functools.cache
def kind_and_oracle(name):
    torch.manual_seed(0)
    try:
        kind = KINDS[name]()
    except ImportError as error:
        pytest.skip(str(error))
    return kind, oracle(kind)
