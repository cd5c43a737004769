"""Parameter vectors and directions that options name, the same on every rank."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum import zoo
from hessian_spectrum._core.errors import InputError, Warned
from hessian_spectrum.analyses import trajectory
from hessian_spectrum.config import PlaneConfig
from hessian_spectrum.config.landscape import WINDOW, PointsConfig
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.distributed.mesh import Mesh
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.extremal import extremes
from hessian_spectrum.landscape import directions, paths
from hessian_spectrum.landscape.direction_grid import grid_task
from hessian_spectrum.landscape.directions import IGNORABLE, Directions
from hessian_spectrum.landscape.results import Trajectory
from hessian_spectrum.landscape.tasks import PointTask
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.validation import finite_parameters
from hessian_spectrum.operators.curvature import Hessian

LocatedT = TypeVar("LocatedT", bound=PointsConfig)

ENDS = {"smallest": 0, "largest": 1}  # of the Hessian's spectrum
# How many vectors each is, that are kept and not made again.
COMPUTED = {"gradient": 1, "smallest": 1, "largest": 1, "components": 2}
MARGIN = 0.1  # of a trajectory's extent, beyond it on each side of a plane
TOL = 1e-5  # of an eigenvector's residual
IGNORED = {"both": IGNORABLE, "bias": ("bias",), "norm": ("norm",), "none": ()}


def located(config: LocatedT, checkpoint: Path | None = None) -> LocatedT:
    """``config`` at this checkpoint, unless another one was chosen."""
    return config if config.checkpoint else dataclasses.replace(config, checkpoint=checkpoint)


@contextmanager
def at_checkpoint(ev: Evaluator, path: Path) -> Iterator[None]:
    """Inside, the evaluator's model has the parameters and buffers of that file.

    Raises:
        InputError: it cannot be loaded, or has parameters that are not finite.
    """
    before = {name: t.clone() for name, t in ev.model.state_dict().items()}
    try:
        zoo.load_checkpoint(ev.model, path)
        try:
            finite_parameters(ev.model)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        yield
    finally:
        ev.model.load_state_dict(before)


def of_checkpoints(ev: Evaluator, paths: Sequence[Path]) -> Tensor:
    """(k, n), theta in each file; the model is left as it was."""
    rows = []
    for path in paths:
        with at_checkpoint(ev, path):
            rows.append(ev.theta)
    return torch.stack(rows)


def steps_of(paths: Sequence[Path]) -> tuple[list[int], dict[str, str]]:
    """A number for each checkpoint, and what it is: {"axis": "epoch"}, "step" or "index".

    The epochs that the files store, or the steps, where all do and they ascend. File names are not
    looked at.
    """
    found = [zoo.stored_epoch(path) for path in paths]
    if epochs := _ascending(found):
        return epochs, {"axis": "epoch"}
    if steps := _ascending([zoo.stored_step(path) for path in paths]):
        return steps, {"axis": "step"}
    without = [path.name for path, epoch in zip(paths, found) if epoch is None]
    why = f"{without[0]} stores no epoch" if without else "the stored epochs do not ascend"
    warnings.warn(f"checkpoints are numbered 0, 1, ...: {why}", Warned, stacklevel=2)
    return list(range(len(paths))), {"axis": "index"}


def _ascending(numbers: Sequence[int | None]) -> list[int]:
    """The numbers, if none is missing and they ascend; otherwise none."""
    known = [number for number in numbers if number is not None]
    ascend = len(known) == len(numbers) and all(a < b for a, b in pairwise(known))
    return known if ascend else []


def plane(
    config: PlaneConfig, ev: Evaluator, computed: Tensor
) -> tuple[Directions, list[list[float]], Trajectory | None]:
    """Directions that --directions names, coordinates along each, and what the plane follows.

    Args:
        computed: (k, n), those that have to be, in order.
    """
    if "components" not in config.directions:
        grid = [paths.window(*axis).tolist() for axis in config.axes(WINDOW, WINDOW)]
        return _chosen(config, ev, computed), grid, None
    followed = _followed(config, ev, computed)
    low, high = followed.coordinates.min(0), followed.coordinates.max(0)
    extent = MARGIN * (high - low)
    defaults = zip((low - extent).tolist(), (high + extent).tolist())
    recipes = tuple(
        {"kind": "principal component", "index": i, "explained_variance": float(share)}
        for i, share in enumerate(followed.explained_variance[:2])
    )
    grid = [paths.window(*axis).tolist() for axis in config.axes(*defaults)]
    return Directions(ev.theta, computed, recipes), grid, followed


def plane_task(
    config: PlaneConfig,
    ev: Evaluator,
    computed: Tensor,
    make: Callable[[Evaluator, Directions, list[list[float]]], PointTask] = grid_task,
) -> PointTask:
    """The points of the plane, and beside them what it follows."""
    along, grid, followed = plane(config, ev, computed)
    task = make(ev, along, grid)
    return task if followed is None else dataclasses.replace(task, beside=(followed,))


def _chosen(config: PlaneConfig, ev: Evaluator, computed: Tensor) -> Directions:
    theta, rows = ev.theta, iter(computed)
    found = []
    for i, name in enumerate(config.directions):
        if name == "random":
            found.append(_random(config, ev, theta, i))
        elif name in COMPUTED:
            found.append(Directions(theta, next(rows)[None], ({"kind": name},)))
        else:
            vector = of_checkpoints(ev, [Path(name)]) - theta
            found.append(Directions(theta, vector, ({"kind": "difference", "to": name},)))
    return found[0] if len(found) == 1 else found[0].joined(found[1])


def _followed(config: PlaneConfig, ev: Evaluator, components: Tensor) -> Trajectory:
    """The way through the checkpoints, in coordinates along these vectors, (2, n)."""
    rows = of_checkpoints(ev, config.checkpoints)
    coordinates = (rows - rows[-1]).double() @ components.double().T
    found = trajectory.trajectory(rows)
    return dataclasses.replace(found, coordinates=coordinates.cpu().numpy())


def computed(config: PlaneConfig, ev: Evaluator) -> Tensor:
    """(k, n), unit vectors: the gradient, eigenvectors of the Hessian, components."""
    if "components" in config.directions:
        return trajectory.principal_directions(ev, of_checkpoints(ev, config.checkpoints)).vectors
    names = [name for name in config.directions if name in COMPUTED]
    found = {}
    if "gradient" in names:
        found["gradient"] = directions.gradient(ev).vectors[0]
    if set(ENDS) & set(names):
        hessian = Hessian(ev)
        both = hessian.layout.gather(extremes(hessian, tol=TOL).vectors)
        found |= {name: both[index] for name, index in ENDS.items()}
    return torch.stack([found[name] for name in names])


def stand_ins(config: Any, ev: Evaluator) -> Tensor:
    """As many unit vectors, to plan with: no products."""
    if "components" in getattr(config, "directions", ()):
        return computed(config, ev)  # which takes none
    count = sum(COMPUTED.get(name, 0) for name in getattr(config, "directions", ()))
    return torch.eye(count, ev.n, dtype=ev.dtype, device=ev.device)


def _random(config: PlaneConfig, ev: Evaluator, theta: Tensor, index: int) -> Directions:
    return directions.random(
        ev,
        theta,
        1,
        seed=config.seed,
        first=index,
        normalize=config.normalization,
        ignore=IGNORED[config.ignore],
    )


def settled(
    config: Any, ev: Evaluator, mesh: Mesh, is_resumed: bool, saved: np.ndarray | None
) -> Tensor:
    """(k, n), the computed ones: those of the run that is resumed, or made now.

    The first rank's, on every rank: other groups may round in another way.

    Args:
        saved: on the first rank, the vectors of the run that is resumed.
    """
    if not isinstance(config, PlaneConfig) or not set(COMPUTED) & set(config.directions):
        return ev.theta.new_empty(0, ev.n)
    make = None if is_resumed else lambda: computed(config, ev)
    return of_first_rank(ev, mesh, make, lambda: stand_ins(config, ev), saved)


def of_first_rank(
    ev: Evaluator,
    mesh: Mesh,
    make: Callable[[], Tensor] | None,
    stand_ins: Callable[[], Tensor],
    saved: np.ndarray | None,
) -> Tensor:
    """The first rank's vectors (k, n), on every rank.

    Args:
        make: what all ranks call; None: they were saved.
        stand_ins: as many vectors, for ranks that do not have the saved ones.
        saved: on the first rank, the vectors of the run that is resumed.
    """
    if make is not None:
        rows = together(mesh.world, make)
    elif saved is not None:
        rows = torch.from_numpy(saved).to(ev.device, ev.dtype)
    else:
        rows = stand_ins()
    return mesh.world.sum(rows if mesh.world.rank == 0 else torch.zeros_like(rows))


def digest(task: PointTask) -> str:
    """SHA-256 of the vectors and weights that the points are made of."""
    sha = hashlib.sha256(task.points.weights.tobytes())
    sha.update(task.points.vectors.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def require_agreement(world: World, digests: Mapping[str, str | None]) -> None:
    """InputError unless all ranks hold the same; inside a group an Evaluator looks itself."""
    every = world.gather_objects(dict(digests))
    for name in digests:
        other = next((r for r, found in enumerate(every) if found[name] != every[0][name]), None)
        if other is not None:
            raise InputError(
                f"rank {other} and rank 0 hold different {name}; load the same files on every "
                "rank, or seed torch before the model is made"
            )
