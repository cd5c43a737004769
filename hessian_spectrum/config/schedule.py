"""Which optimizer trains in which epoch, and with which learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hessian_spectrum._core.errors import InputError

Drop = tuple[int, float]
Switch = tuple[int, str, float]


@dataclass(frozen=True)
class Phase:
    """What trains in an epoch."""

    begins: int  # the epoch, from 1, in which this optimizer makes its first step
    optimizer: str
    lr: float


@dataclass(frozen=True)
class Schedule:
    """An optimizer and a learning rate; changes of both after some epochs.

    A learning rate is that of its optimizer times the factors of the drops since this optimizer
    began.
    """

    optimizer: str
    lr: float
    drops: tuple[Drop, ...] = ()  # after that epoch the learning rate is multiplied
    switches: tuple[Switch, ...] = ()  # after that epoch another optimizer goes on

    def phase(self, epoch: int) -> Phase:
        """Of an epoch, from 1."""
        begins, optimizer, lr = 1, self.optimizer, self.lr
        for after, other, of_other in sorted(self.switches):
            if after < epoch:
                begins, optimizer, lr = after + 1, other, of_other
        factors = [factor for after, factor in self.drops if begins <= after + 1 <= epoch]
        return Phase(begins, optimizer, lr * math.prod(factors))


def drop_of(text: str) -> Drop:
    """EPOCH:FACTOR; raises InputError for another form."""
    try:
        epoch, factor = text.split(":")
        found = int(epoch), float(factor)
    except ValueError:
        found = 0, 0.0
    if found[0] < 1 or not 0 < found[1] < math.inf:
        raise InputError(f"--lr-drop {text}: expected EPOCH:FACTOR, as in 50:0.1")
    return found


def switch_of(text: str, optimizers: tuple[str, ...]) -> Switch:
    """EPOCH:OPTIMIZER:LR; raises InputError for another form."""
    try:
        epoch, name, lr = text.split(":")
        found = int(epoch), name, float(lr)
    except ValueError:
        found = 0, "", 0.0
    if found[0] < 1 or found[1] not in optimizers or not 0 < found[2] < math.inf:
        raise InputError(
            f"--switch {text}: expected EPOCH:OPTIMIZER:LR, as in 50:adam:1e-4, with one of: "
            f"{', '.join(optimizers)}"
        )
    return found
