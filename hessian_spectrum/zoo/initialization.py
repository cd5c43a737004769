"""Starting points of training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError

# Numbers of each form, and what they do to a weight.
_FORMS: dict[str, tuple[str, Callable[..., object]]] = {
    "normal": ("MEAN:STD", lambda w, mean, std: w.normal_(mean, std)),
    "uniform": ("LOW:HIGH", lambda w, low, high: w.uniform_(low, high)),
    "scaled": ("FACTOR", lambda w, factor: w.mul_(factor)),
}


@torch.no_grad()
def initialize(model: nn.Module, form: str, seed: int) -> None:
    """Set the weights, which are the parameters of two dimensions or more, in place.

    Biases and the parameters of normalization layers stay as torch made them. torch's global
    generator is neither read nor advanced.

    Args:
        form: ``torch``, as they are; ``normal:MEAN:STD``; ``uniform:LOW:HIGH``; or
            ``scaled:FACTOR``, those of torch times FACTOR.

    Raises:
        InputError: another form.
    """
    change = _change(form)
    weights = [p for p in model.parameters() if p.dim() > 1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not those of GPUs
        for weight in weights:
            drawn = weight.cpu()
            change(drawn)
            weight.copy_(drawn)


def require_form(form: str) -> None:
    """InputError unless ``initialize`` takes it."""
    _change(form)


def _change(form: str) -> Callable[[Tensor], object]:
    name, *texts = form.split(":")
    if form == "torch":
        return lambda weight: None
    try:
        words, change = _FORMS[name]
        numbers = [float(text) for text in texts]
        valid = len(numbers) == len(words.split(":")) and all(abs(x) < 1e30 for x in numbers)
        valid = valid and not (name == "normal" and numbers[1] < 0)
        valid = valid and not (name == "uniform" and numbers[0] > numbers[1])
    except (KeyError, ValueError):
        valid = False
    if not valid:
        forms = ", ".join(f"{name}:{words}" for name, (words, _) in _FORMS.items())
        raise InputError(f"--init {form}: expected torch, or one of {forms}")
    return lambda weight: change(weight, *numbers)
