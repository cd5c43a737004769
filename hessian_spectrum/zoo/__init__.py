"""Models, data sets, checkpoints and a small trainer, to have something real to look at.

Nothing in the engine imports the zoo; only the command line does. Each piece is an ordinary
``nn.Module``, ``TensorDataset`` or file, so any of them can be swapped for one's own. torchvision
is imported only when one of its models or data sets is asked for; it downloads only on request.
"""

from hessian_spectrum.zoo.checkpoints import load_checkpoint, save_checkpoint
from hessian_spectrum.zoo.datasets import load_dataset
from hessian_spectrum.zoo.models import build_model, model_for
from hessian_spectrum.zoo.trainer import train

__all__ = [
    "build_model",
    "load_checkpoint",
    "load_dataset",
    "model_for",
    "save_checkpoint",
    "train",
]
