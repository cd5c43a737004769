"""Density runs of a small problem that are interrupted after their first save."""

import torch
from small_networks import data, mlp
from torch.nn import functional as F

from hessian_spectrum.commands.signals import StopRequest


def problem(loss_fn=F.cross_entropy, model=None, **options):
    torch.manual_seed(0)
    samples = data()
    model = model or mlp()
    return {"model": model, "loss_fn": loss_fn, "data": samples, "batch_size": 4, **options}


class StopAfterOneSave(StopRequest):
    """A signal that comes as soon as there is something to go on from, or when ``then`` says."""

    def __init__(self, out, then=lambda: "SIGTERM"):
        self.state, self.then = out.with_name("run.h5.d") / "manifest.json", then
        super().__init__()

    @property
    def name(self):
        return self.then() if self.state.exists() else None

    @name.setter
    def name(self, value):
        assert value is None


def contents(out):
    """Every file of the run, with its bytes."""
    files = [*out.parent.glob("run.h5"), *out.parent.glob("run.h5.d/*")]
    return {path.name: path.read_bytes() for path in files}
