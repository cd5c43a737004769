"""A minibatch that several ranks share: each one's part, and the sum of what they find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.world import Flags, World


@dataclass
class Share:
    """This rank's part of a minibatch.

    A rank without samples evaluates one that does not count: its layers take part in the
    reductions, whatever shapes they accept.
    """

    rows: int  # that this rank evaluates
    total: int  # samples of the minibatch
    counts: bool = True

    @property
    def weight(self) -> float:
        """Of this rank's mean in that of the minibatch."""
        return self.rows / self.total if self.counts else 0.0


def share_of(world: World, total: int) -> tuple[Share, slice]:
    """This rank's part of so many samples, and which ones it evaluates."""
    low, high = (total * (world.rank + i) // world.size for i in (0, 1))
    if high > low:
        return Share(high - low, total), slice(low, high)
    return Share(1, total, counts=False), slice(0, 1)


def summed(
    world: World, parameters: Iterable[nn.Parameter], loss: Tensor, flags: Flags | None
) -> Tensor:
    """Add up the gradients over the ranks, in place, and the loss, which is returned.

    Cost: one reduction, of a vector of the parameters' size. The ranks' flags travel with it.
    """
    if world.size == 1:
        return loss
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.reshape(-1) for g in gradients] + [loss.reshape(1)]
    if flags is not None:
        parts.append(flags.answers().to(loss))
    totals = world.sum(torch.cat(parts)).split([part.numel() for part in parts])
    for g, total in zip(gradients, totals):
        g.copy_(total.view_as(g))
    if flags is not None:
        flags.hear(totals[-1])
    return totals[len(gradients)][0]


def require_no_dropout(model: nn.Module) -> None:
    """InputError for layers whose masks on several ranks would not be those of one."""
    for name, module in model.named_modules():
        rate = getattr(module, "p", getattr(module, "dropout", 0.0))
        if isinstance(module, (nn.modules.dropout._DropoutNd, nn.RNNBase)) and rate:
            raise InputError(
                f"{name or 'the model'} ({type(module).__name__}) drops units at random, and the "
                "masks of several ranks are not those of one; train on one rank, or with "
                "--dropout-rate 0"
            )
