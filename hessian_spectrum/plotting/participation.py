"""Heat map of the layers in which eigenvectors have their weight. No pyplot."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.outliers import by_layer, participation

LEAST = 1e-4  # lower end of the colour scale
ROWS = 40  # parameters whose names are legible as rows; more are joined by layer


def participation_figure(
    pairs: EigenPairs, sizes: Mapping[str, int], title: str | None = None
) -> Figure:
    """The part of each eigenvector's square in each layer, on a logarithmic colour scale.

    A second panel has the mean over all eigenvectors, and each layer's share of the parameters,
    which is the expectation for a random direction.

    Args:
        sizes: entries of each parameter by name, in order; more than 40 are joined by layer.

    Raises:
        InputError: the pairs have no vectors.
    """
    if pairs.vectors is None or not len(pairs):
        raise InputError("these eigenpairs have no eigenvectors: there is no participation to draw")
    layers = sizes if len(sizes) <= ROWS else by_layer(sizes)
    parts = participation(pairs.vectors, layers)
    entries = np.array(list(layers.values()), dtype=float)
    height = min(12.0, 1.9 + 0.26 * len(layers))
    figure = Figure(figsize=(max(6.0, 3.6 + 0.3 * len(pairs)), height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(max(4, len(pairs)), 3))
    style = {"aspect": "auto", "cmap": "viridis", "norm": LogNorm(LEAST, 1.0)}
    order = slice(None, None, -1)  # the largest eigenvalue first
    image = left.imshow(parts[order].T.clip(LEAST), interpolation="nearest", **style)
    beside = np.stack([parts.mean(axis=0), entries / entries.sum()], axis=1)
    right.imshow(beside.clip(LEAST), interpolation="nearest", **style)
    for (row, column), value in np.ndenumerate(beside):
        shade = "black" if value > 0.05 else "white"
        right.text(
            column, row, f"{100 * value:.2g}%", ha="center", va="center", fontsize=7, color=shade
        )
    left.set_yticks(range(len(layers)), list(layers), fontsize=8)
    step = -(-len(pairs) // 12)
    places = range(0, len(pairs), step)
    left.set_xticks(
        places, [f"{pairs.values[order][i]:.3g}" for i in places], rotation=60, fontsize=8
    )
    left.set_xlabel("eigenvector, by its eigenvalue")
    right.set_xticks((0, 1), ("all together", "parameters"), rotation=60, fontsize=8)
    for axes in (left, right):
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    figure.colorbar(image, ax=right, label="part of $|v|^2$", extend="min")
    left.set_title(title or f"{len(pairs)} eigenvectors by layer", loc="left", fontsize=11)
    return figure
