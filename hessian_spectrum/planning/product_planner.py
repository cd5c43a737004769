"""Choose how products are formed: the fastest plan, measured on one minibatch, that fits memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.memory import available, young_heap
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.loss.backends import check_precision
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.operators.curvature_products import HESSIAN, Form
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.operators.product_modes import MODES, Products
from hessian_spectrum.planning.calibration import Trial
from hessian_spectrum.planning.plan_choice import Workload, choose
from hessian_spectrum.sharded.evaluator import ShardedEvaluator

MEMORY_SHARE = 0.8  # of what is available, unless the user says otherwise
BASIS_SHARE = 0.5  # of the memory: Krylov vectors that take more go to the next larger place


@dataclass(frozen=True)
class Estimate:
    """The cost of a run with its plan; memory for each rank."""

    plan: ProductPlan
    place: str  # of the Krylov vectors: "device", "host" or "disk"
    products: int
    passes: int
    basis: int  # bytes of Krylov vectors
    working: int  # bytes of vectors in flight and of the maps, at the peak, on the device
    budget: int  # bytes of the device that may be used
    seconds: float  # of the products
    beside: float = field(default=0.0, kw_only=True)  # of all else in the steps
    what_beside: str = field(default="orthogonalization and exchange", kw_only=True)
    after: float = field(default=0.0, kw_only=True)  # after the last step
    what_after: str = field(default="answers and their intervals", kw_only=True)
    how: str = field(default="", kw_only=True)  # products are formed, where no mode says it
    calibrated: bool  # False: a default, timed on one minibatch
    trials: tuple[Trial, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # modes left out, and why
    # The map of this rank's first minibatch, where the plan keeps it and it was formed already
    first: Products | None = field(default=None, compare=False)

    @property
    def total(self) -> float:
        """Seconds of the run from here on."""
        return self.seconds + self.beside + self.after


def plan(
    evaluator: Evaluator,
    theta: Tensor,
    num_probes: int,
    num_steps: int,
    *,
    form: Form = HESSIAN,
    mode: str | None = None,
    precision: str | None = None,
    memory: int | None = None,
    folder: Path | None = None,
    kept: int | None = None,
    place: str | None = None,
) -> Estimate:
    """The fastest way to form ``num_steps`` block products of ``num_probes`` vectors that fits.

    Where the run is 20 times as long as its calibration would be, every mode (or only ``mode``) is
    timed on one minibatch, its memory is measured and its products are compared with those of
    reverse over reverse; rank 0's measurements decide for all. A shorter run takes a default.

    Args:
        form: the curvature matrix.
        precision: arithmetic of the products, a name in ``loss.backends.PRECISIONS``.
        memory: bytes of the device that may be used beyond those in use now, on each rank.
            Default: 80 % of what is available.
        folder: of a disk that may hold Krylov vectors; None: none may.
        kept: how many Krylov vectors are held. Default: all, num_probes * (num_steps + 1).
        place: where they are held, if that is decided already: "device", "host" or "disk".

    Raises:
        InputError: an unknown mode or precision; no mode works for this model; the memory is too
            small.
    """
    if mode is not None and mode not in MODES:
        raise InputError(f"hvp={mode!r}: expected one of {', '.join(MODES)}")
    if precision is not None:
        check_precision(precision, evaluator.device)
    # Rank 0 plans for all: its share of the vectors is the largest.
    world, layout, itemsize = evaluator.world, evaluator.layout, evaluator.dtype.itemsize
    kept = num_probes * (num_steps + 1) if kept is None else kept
    basis = kept * layout.chunk * itemsize
    vectors = 4 * num_probes * layout.n * itemsize  # gathered, products, their sum, a minibatch's
    evaluator.statistics(theta)  # of all ranks; remembered for what the first does alone
    first, result, error = None, None, None
    if world.rank == 0:
        try:
            budget = memory or int(MEMORY_SHARE * available(world))
            place = place or place_of(evaluator, basis, budget, vectors, folder)
            room = budget - vectors - (basis if place == "device" else 0)
            if room <= 0:
                raise _no_room(basis, vectors, budget)
            work = Workload(evaluator, theta, form, num_probes, num_steps, mode, precision)
            with young_heap():
                chosen = choose(work, room)
            # A map stays on its rank: it cannot be sent.
            first, result = chosen.first, (budget, place, replace(chosen, first=None))
        except Exception as failed:
            error = failed
    world.raise_together(error)
    budget, place, choice = world.gather_objects(result)[0]
    return Estimate(
        plan=choice.plan,
        place=place,
        products=num_probes * num_steps,
        passes=num_steps,
        basis=basis,
        working=vectors + choice.working,
        budget=budget,
        seconds=choice.seconds,
        calibrated=bool(choice.trials),
        trials=choice.trials,
        refused=choice.refused,
        first=first,
    )


def place_of(
    evaluator: Evaluator | ShardedEvaluator,
    basis: int,
    budget: int,
    vectors: int,
    folder: Path | None,
) -> str:
    """The fastest place that holds the Krylov vectors and leaves room for the products.

    Raises:
        InputError: there is none.
    """
    if basis + vectors < budget and basis <= BASIS_SHARE * budget:
        return "device"
    if evaluator.device.type == "cuda":
        host = MEMORY_SHARE * available(evaluator.world, host=True)
        if basis <= host and vectors < budget:
            return "host"
    if folder is not None and vectors < budget:
        free = shutil.disk_usage(folder).free // evaluator.world.local_size
        if basis <= MEMORY_SHARE * free:
            return "disk"
    if basis + vectors < budget:
        return "device"
    raise _no_room(basis, vectors, budget)


def _no_room(basis: int, vectors: int, budget: int) -> InputError:
    return InputError(
        f"the Krylov vectors take {basis / 2**30:.2f} GiB a rank and the vectors in flight "
        f"{vectors / 2**30:.2f} GiB, but the memory is {budget / 2**30:.2f} GiB, and there is no "
        "host memory or disk for them; use fewer probes or steps, more ranks, or more --memory; in "
        "Python basis= names another place for them"
    )


def vectors_that_fit(layout: Layout, dtype: torch.dtype, memory: int | None = None) -> int:
    """How many vectors, sharded as ``layout`` says, fit into the memory's share for such.

    Args:
        memory: bytes of the device that may be used, on each rank; default: 80 % of what is
            available on the first one.

    One exchange; the same on every rank.
    """
    world = layout.world
    budget = memory or int(MEMORY_SHARE * available(world))
    fitting = int(BASIS_SHARE * budget / (max(1, layout.chunk) * dtype.itemsize))
    return world.gather_objects(fitting)[0]
