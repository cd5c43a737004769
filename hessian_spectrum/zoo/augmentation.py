"""Random changes of pictures in training, drawn for a whole minibatch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hessian_spectrum._core.errors import InputError

AUGMENTATIONS = ("flip-crop",)
PADDING = 4  # pixels on each side


def draw(num_samples: int, generator: torch.Generator) -> Tensor:
    """(num_samples, 3): is a picture mirrored, and where is it cut out, downwards and across."""
    limits = (2, 2 * PADDING + 1, 2 * PADDING + 1)
    return torch.stack(
        [torch.randint(n, (num_samples,), generator=generator) for n in limits], dim=1
    )


def flip_crop(images: Tensor, drawn: Tensor) -> Tensor:
    """Each picture, mirrored or not, cut out of a frame of ``PADDING`` zeros at its place.

    The augmentation of He, Zhang, Ren & Sun (2016), section 4.2.

    Args:
        images: (N, C, H, W).
        drawn: (N, 3), of ``draw``.
    """
    _, _, height, width = images.shape
    mirrored, down, across = drawn.to(images.device).T
    rows = down[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    columns = torch.where(mirrored[:, None] == 1, width - 1 - columns, columns) + across[:, None]
    framed = F.pad(images, (PADDING,) * 4)
    sample = torch.arange(len(images), device=images.device)
    # Indices on both sides of a slice put the channels last.
    return framed[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def require_pictures(inputs: Tensor) -> None:
    """InputError unless the inputs are (N, C, H, W)."""
    if inputs.dim() != 4 or not inputs.is_floating_point():
        raise InputError(
            f"--augment flip-crop: the inputs have shape {tuple(inputs.shape)}; expected pictures, "
            "(N, C, H, W)"
        )
