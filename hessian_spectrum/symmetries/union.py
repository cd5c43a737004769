"""Which channels of a network are one and the same: a union-find over integers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

FIXED = 0  # the class of channels that no permutation moves: inputs and outputs of the network


class Classes:
    """Channels, numbered as they are made; ``join`` says that two are the same."""

    def __init__(self) -> None:
        self._parent = [FIXED]

    def new(self, count: int) -> np.ndarray:
        """(count,), new channels, each a class of its own."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def join(self, ones: Iterable[int], others: Iterable[int]) -> None:
        """Each of ``ones`` is the same channel as its counterpart."""
        for one, other in zip(ones, others):
            a, b = self._root(int(one)), self._root(int(other))
            self._parent[max(a, b)] = min(a, b)  # so that FIXED stays the root of what it joins

    def fix(self, channels: Iterable[int]) -> None:
        """No permutation moves these."""
        for channel in channels:
            self.join([channel], [FIXED])

    def of(self, channels: np.ndarray) -> np.ndarray:
        """The class of each channel, the same shape."""
        return np.array([self._root(int(channel)) for channel in channels], dtype=np.int64)

    def _root(self, channel: int) -> int:
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel
