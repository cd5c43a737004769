"""Points that the command ``critical`` has stored, read as checkpoints: ``critical.h5:3``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Listing, Table, Whole
from hessian_spectrum.landscape.results import CriticalPoints
from hessian_spectrum.storage import run_file
from hessian_spectrum.storage.point_name import PointName

_SHAPES = Table(Listing(Whole()))


def read_point(name: PointName) -> dict[str, Tensor]:
    """The parameters of a point by their names, float64.

    Raises:
        InputError: there is no such file or point, or the file does not store the parameters.
    """
    file, i = name
    try:
        with run_file.open(file) as run:
            found = run.get("critical")
    except FileNotFoundError as error:
        raise InputError(str(error)) from None
    if not isinstance(found, CriticalPoints) or found.thetas is None:
        raise InputError(f"{file} stores no points; expected a file of critical --find --points")
    if "shapes" not in found.about:
        raise InputError(f"{file} does not say of which parameters its points are")
    shapes = found.about["shapes"]
    _SHAPES.require(shapes, f"{file}: is damaged: shapes")
    sizes = [math.prod(shape) for shape in shapes.values()]
    if sum(sizes) != found.thetas.shape[1]:
        raise InputError(f"{file}: is damaged: points of {found.thetas.shape[1]} parameters")
    if i >= len(found) or not found.kinds[i]:
        raise InputError(f"{file}:{i}: of its {len(found)} points, from 0, this one is not there")
    parts = torch.from_numpy(found.thetas[i].copy()).split(sizes)
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts)}
