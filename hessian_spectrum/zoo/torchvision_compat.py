"""torchvision beside a torch whose build it was not compiled for.

torchvision registers shape rules for its operators ``nms`` and ``qnms`` while it is imported.
Its wheel on PyPI is linked against CUDA, so beside a CPU build of torch the operators cannot
be loaded, and the import fails with "operator torchvision::nms does not exist", although
models, data sets and transforms need no operator at all.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from importlib.metadata import version
from types import ModuleType

import torch

from hessian_spectrum._core.errors import InputError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> ModuleType:
    """The torchvision module, imported even where its compiled operators cannot be loaded.

    If they load, nothing is declared. If they do not, ``torchvision.ops.nms`` and similar
    functions still raise torchvision's own error when they are called; all else works. May be
    called repeatedly, also after an ``import torchvision`` that failed.

    Raises:
        InputError: torchvision is not installed, or was not built for this torch.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    if not _load_operators(_package_folders()):
        _declare_missing_schemas()
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"torchvision {version('torchvision')} cannot be imported beside torch "
            f"{torch.__version__} ({' '.join(str(error).split())}); install the torchvision "
            f"that was released with this torch"
        ) from error


def _package_folders() -> list[str]:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.submodule_search_locations is None:
        raise InputError(
            "torchvision is not installed, and this model or data set needs it; install it "
            "with 'pip install torchvision'"
        )
    return list(spec.submodule_search_locations)


def _load_operators(folders: list[str]) -> bool:
    """Whether torchvision's compiled operators load, by the same steps as torchvision itself."""
    extension = PathFinder.find_spec("_C", folders)
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except (ImportError, OSError):  # a missing shared library or symbol
        return False
    return True


def _declare_missing_schemas() -> None:
    for name in ("nms", "qnms"):
        # A second declaration would raise; the first one lasts as long as the process.
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _SCHEMA)
