"""Parameter vectors and directions that options name, the same on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hessian_spectrum import directions, zoo
from hessian_spectrum.config import PlaneConfig
from hessian_spectrum.curvature import Hessian
from hessian_spectrum.directions import IGNORABLE, Directions
from hessian_spectrum.evaluator import Evaluator
from hessian_spectrum.krylov.extremes import extremes
from hessian_spectrum.mesh import Mesh
from hessian_spectrum.point_tasks import PointTask
from hessian_spectrum.runs.points import Saved
from hessian_spectrum.runs.record import together

ENDS = {"smallest": 0, "largest": 1}  # of the Hessian's spectrum
COMPUTED = ("gradient", *ENDS)  # kept as vectors, not made again
TOL = 1e-5  # of an eigenvector's residual
IGNORED = {"both": IGNORABLE, "bias": ("bias",), "norm": ("norm",), "none": ()}


def of_checkpoints(ev: Evaluator, paths: Sequence[Path]) -> Tensor:
    """(k, n), theta in each file; the model is left as it was."""
    before = {name: t.clone() for name, t in ev.model.state_dict().items()}
    rows = []
    try:
        for path in paths:
            zoo.load_checkpoint(ev.model, path)
            rows.append(ev.theta)
    finally:
        ev.model.load_state_dict(before)
    return torch.stack(rows)


def chosen(config: PlaneConfig, ev: Evaluator, computed: Tensor) -> Directions:
    """Those that --directions names; ``computed``, (k, n): the ones that have to be, in order."""
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


def computed(config: PlaneConfig, ev: Evaluator) -> Tensor:
    """(k, n), unit vectors: the gradient, eigenvectors of the Hessian."""
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
    count = sum(name in COMPUTED for name in getattr(config, "directions", ()))
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


def settled(config: Any, ev: Evaluator, mesh: Mesh, saved: Saved | None) -> Tensor:
    """(k, n), the computed ones: those of the run that is resumed, or made now.

    The first rank's, on every rank: other groups may round in another way.
    """
    if not isinstance(config, PlaneConfig) or not set(COMPUTED) & set(config.directions):
        return ev.theta.new_empty(0, ev.n)
    if saved is None:
        rows = together(mesh.world, lambda: computed(config, ev))
    elif saved.vectors is not None:
        rows = torch.from_numpy(saved.vectors).to(ev.device, ev.dtype)
    else:
        rows = stand_ins(config, ev)
    return mesh.world.sum(rows if mesh.world.rank == 0 else torch.zeros_like(rows))


def digest(task: PointTask) -> str:
    """SHA-256 of the vectors and weights that the points are made of."""
    sha = hashlib.sha256(task.points.weights.tobytes())
    sha.update(task.points.vectors.detach().cpu().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()
