"""The blind spot of ReLU: units that no sample activates, in any network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import require_same_call, together
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.functional import LossFunction

aten = torch.ops.aten
# ReLU and ReLU6 as torch evaluates them; max(x, 0) written as clamp is one of them, too.
RECTIFIERS = {aten.relu, aten.relu_}
CLAMPS = {aten.clamp, aten.clamp_, aten.clamp_min, aten.clamp_min_, aten.hardtanh, aten.hardtanh_}
# What a layer was made by says along which dimension its units lie: channels, or features.
CHANNELS = {aten.convolution}
FEATURES = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.native_layer_norm, aten.linear}


@dataclass(frozen=True)
class RectifiedLayer:
    """What one evaluation of ReLU does on all samples."""

    name: str  # of the module in which it is evaluated; its second evaluation ends with #2
    activity: NDArray[np.float64]  # (units,), share of samples and positions that activate each

    @property
    def dead(self) -> NDArray[np.intp]:
        """Indices of the units that are 0 on all samples, ascending."""
        return np.flatnonzero(self.activity == 0)


@dataclass(frozen=True)
class DeadUnits:
    """Layers of rectified units in the order in which they are evaluated; ``str``: one sentence."""

    layers: tuple[RectifiedLayer, ...]

    @property
    def count(self) -> int:
        """How many units no sample activates."""
        return sum(len(layer.dead) for layer in self.layers)

    @property
    def units(self) -> int:
        """How many rectified units there are."""
        return sum(len(layer.activity) for layer in self.layers)

    def __str__(self) -> str:
        if not self.layers:
            return "No ReLU is evaluated."
        said = f"{self.count} of {self.units} rectified units are 0 on all samples"
        where = (
            f"{len(layer.dead)} of {len(layer.activity)} in {layer.name or 'the model itself'}"
            for layer in self.layers
            if len(layer.dead)
        )
        return f"{said}: {', '.join(where)}." if self.count else f"{said}."


def dead_units(ev: Evaluator, theta: Tensor | None = None) -> DeadUnits:
    """Units of ReLU, ReLU6 or clamp(min=0) that no sample of the data activates.

    A unit is dead where its value is 0 on all samples and, for channels of a convolution and
    features of a sequence, at all positions. As far as theta stays beside this point, the loss
    does not depend on the weights into and out of it: each is a null direction of the Hessian, and
    gradient descent never changes them. Samples that are not in ``ev`` may activate the unit.

    Every network is looked at as it is evaluated, functions and modules alike; ReLU written as a
    maximum or a product with (x > 0) is not recognized.

    Args:
        theta: shape (n,), the same on every rank; default: the model's own parameters.

    Returns:
        Every evaluation of ReLU, with the activity of its units over the data of all ranks.

    Raises:
        InputError: an argument is of no use, or differs between ranks; a layer has more units in
            one minibatch than in another.

    Cost: one forward pass and one exchange of small objects.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> ev = hs.Evaluator(net, torch.nn.MSELoss(), (torch.rand(9, 1), torch.rand(9, 1)))
        >>> theta = torch.tensor([1.0, -1.0, 1.0, 0.0, 0.0, -2.0, 1.0, 1.0, 1.0, 0.0])
        >>> print(hs.dead_units(ev, theta))
        2 of 3 rectified units are 0 on all samples: 2 of 3 in 1.
    """
    theta = ev.checked(theta)
    require_same_call(ev.world, "dead_units", theta=theta)
    statistics = ev.statistics(theta)

    def looked_at() -> dict[str, NDArray[np.float64]]:
        found: dict[str, NDArray[np.float64]] = {}
        with ev.evaluation_mode():  # not under no_grad: a forward may differentiate
            for part in ev.parts(statistics):
                with _Rectified(ev.function) as seen:
                    part.network_outputs(theta)
                _add(found, seen.counts)
        return found

    total: dict[str, NDArray[np.float64]] = {}
    for counts in ev.world.gather_objects(together(ev.world, looked_at)):
        _add(total, counts)
    return DeadUnits(
        tuple(RectifiedLayer(name, active / size) for name, (active, size) in total.items())
    )


class _Rectified(TorchDispatchMode):
    """While active, counts what the rectifiers that are evaluated let through.

    ``counts`` holds (2, units) by name: positive values of each unit, and all its values.
    """

    def __init__(self, function: LossFunction):
        super().__init__()
        self.counts: dict[str, NDArray[np.float64]] = {}
        self._function = function
        self._inside: list[tuple[str, nn.Module]] = []
        self._calls: dict[str, int] = {}
        self._axis = -1
        self._stack = ExitStack()

    def __enter__(self) -> _Rectified:
        self._stack.enter_context(self._names())
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in CHANNELS:
            self._axis = 1
        elif packet in FEATURES:
            self._axis = -1
        elif packet in RECTIFIERS or (packet in CLAMPS and _least(args, kwargs or {}) == 0):
            self._count(out)
        return out

    def _count(self, out: Tensor) -> None:
        name, module = self._inside[-1] if self._inside else ("", None)
        call = self._calls[name] = self._calls.get(name, 0) + 1
        # The steps of a recurrence are one layer; a ReLU that a block uses twice is two.
        label = name if call == 1 or isinstance(module, nn.RNNBase) else f"{name}#{call}"
        axis = self._axis % out.ndim if out.ndim > 2 else out.ndim - 1
        others = [i for i in range(out.ndim) if i != axis]
        active = (out > 0).sum(others, dtype=torch.float64) if others else (out > 0).double()
        size = torch.full_like(active, out.numel() / max(1, out.shape[axis]))
        _add(self.counts, {label: torch.stack([active, size]).cpu().numpy()})

    @contextmanager
    def _names(self) -> Iterator[None]:
        """Hooks that keep the modules under evaluation in ``_inside``."""

        def enter(name: str) -> Any:
            return lambda module, _: self._inside.append((name, module))

        def leave(*_: Any) -> None:
            self._inside.pop()

        with ExitStack() as hooks:
            for name, module in self._function.modules():
                if name == "model" or name.startswith("model."):
                    of_model = name.removeprefix("model").removeprefix(".")
                    first = module.register_forward_pre_hook(enter(of_model))
                    last = module.register_forward_hook(leave, always_call=True)
                    hooks.callback(first.remove)
                    hooks.callback(last.remove)
            yield


def _least(args: tuple, kwargs: dict) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))


def _add(total: dict[str, NDArray[np.float64]], more: dict[str, NDArray[np.float64]]) -> None:
    for name, counts in more.items():
        if name in total and total[name].shape != counts.shape:
            raise InputError(
                f"{name}: ReLU of {total[name].shape[1]} units in one minibatch and of "
                f"{counts.shape[1]} in another; expected as many in each"
            )
        total[name] = total[name] + counts if name in total else counts
