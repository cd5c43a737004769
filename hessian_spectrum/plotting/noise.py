"""Figure of gradients and of their covariance C in the top eigenvectors of the Hessian H."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_spectrum.analyses.noise_result import Noise
from hessian_spectrum.plotting.style import BLUE, COLORS, GREY, ORANGE, tidy


def noise_figure(found: Noise, title: str | None = None) -> Figure:
    """Shares of gradients by dimension, eigenvalues of H and C, and squared cosines of v and u."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    shares, spectra, cosines = figure.subplots(1, 3)
    _draw_shares(shares, found)
    _draw_spectra(spectra, found)
    _draw_cosines(cosines, found)
    figure.suptitle(title or "Gradients and their covariance", x=0.01, ha="left", fontsize=11)
    return figure


def _draw_shares(axes: Axes, found: Noise) -> None:
    """For each batch size the mean share against the dimension, with standard errors."""
    k = np.arange(1, len(found.eigenvalues) + 1)
    means = np.array([found.mean_gradient_share(i) for i in k.tolist()])
    errors = np.array([found.gradient_share_error(i) for i in k.tolist()])
    for i, size in enumerate(found.batch_sizes):
        label = f"{size:,} samples" if size != found.num_samples else "all the data"
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 3}
        axes.errorbar(
            k,
            means[:, i],
            np.nan_to_num(errors[:, i]),
            label=label,
            color=COLORS[i % len(COLORS)],
            **style,
        )
    axes.plot(k, k / found.num_parameters, ":", color=GREY, label="random direction")
    axes.set_ylim(0, 1)
    axes.set_xlabel("top eigenvectors of H")
    axes.set_ylabel("part of $|g|^2$ in their span")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)


def _draw_spectra(axes: Axes, found: Noise) -> None:
    """The largest eigenvalues of both, and C along the eigenvectors of H."""
    k = np.arange(1, len(found.eigenvalues) + 1)
    axes.plot(k, found.eigenvalues[::-1], "o-", color=BLUE, markersize=4, label=r"$\lambda_i$ of H")
    axes.plot(
        k, found.noise_eigenvalues[::-1], "D-", color=ORANGE, markersize=4, label=r"$\mu_i$ of C"
    )
    axes.plot(
        k, found.noise_along[::-1], "D:", color=ORANGE, markersize=4, markerfacecolor="white",
        label="$v_i^T C v_i$",
    )  # fmt: skip
    shown = np.concatenate([found.eigenvalues, found.noise_eigenvalues, found.noise_along])
    if (shown > 0).all():
        axes.set_yscale("log")
    axes.set_xlabel("i, the largest first")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)


def _draw_cosines(axes: Axes, found: Noise) -> None:
    k = len(found.eigenvalues)
    squares = np.square(found.overlap[::-1, ::-1])
    image = axes.imshow(
        squares, vmin=0, vmax=1, cmap="Blues", extent=(0.5, k + 0.5, k + 0.5, 0.5), aspect="auto"
    )
    axes.figure.colorbar(image, ax=axes, label=r"$\langle v_i, u_j \rangle^2$")
    axes.set_xlabel("eigenvector $u_j$ of C")
    axes.set_ylabel("eigenvector $v_i$ of H")
    axes.set_title(f"overlap of the top {k}: {found.subspace_overlap(k):.2f}", fontsize=10)
