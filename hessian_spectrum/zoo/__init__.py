"""Models, data sets, checkpoints and a small trainer, for examples and experiments.

The engine does not import the zoo; only the commands do. Each piece is an ordinary ``nn.Module``,
``TensorDataset`` or file, so that users can replace any of them by their own. torchvision is
imported only for its own models and data sets, and downloads only on request.
"""

from hessian_spectrum.zoo.checkpoints import (
    load_checkpoint,
    save_checkpoint,
    stored_epoch,
    stored_step,
)
from hessian_spectrum.zoo.datasets import load_dataset
from hessian_spectrum.zoo.models import build_model, model_for
from hessian_spectrum.zoo.objectives import objective_for, samples_for
from hessian_spectrum.zoo.trainer import train

__all__ = [
    "build_model",
    "load_checkpoint",
    "load_dataset",
    "model_for",
    "objective_for",
    "samples_for",
    "save_checkpoint",
    "stored_epoch",
    "stored_step",
    "train",
]
