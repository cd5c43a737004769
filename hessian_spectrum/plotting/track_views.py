"""What a tracker recorded of a training run, by step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Array, Track
from hessian_spectrum.plotting.outlier_ratio import draw_zeta
from hessian_spectrum.plotting.style import BLUE, GREY, ORANGE, tidy
from hessian_spectrum.plotting.value_scale import is_wide

MOST_DRAWN = 20  # eigenvalues below the largest


def track_figure(found: Track, title: str | None = None, view: str | None = None) -> Figure:
    """Sharpness with its threshold, loss, critical sharpness and distances; or one of these.

    Args:
        view: eigenvalues, loss, critical, distance or zeta; default: the first four.

    Raises:
        InputError: nothing was recorded, or of zeta no ten eigenvalues.
    """
    if not len(found):
        raise InputError("the track has no records yet")
    panels = PANELS if view is None else {view: VIEWS[view]}
    rows = 1 if view else 2
    figure = Figure(figsize=(11, 7) if view is None else (7, 4.2), layout="constrained")
    for number, draw in enumerate(panels.values(), 1):
        axes = figure.add_subplot(rows, len(panels) // rows, number)
        draw(axes, found)
        axes.set_xlabel("optimizer step")
        tidy(axes)
    figure.axes[0].set_title(title or f"{len(found)} records", loc="left", fontsize=11)
    return figure


def _eigenvalues(axes: Axes, found: Track) -> None:
    """What the optimizer sees, with its threshold; the Hessian's own largest and smallest."""
    for column in found.eigenvalues.T[1:MOST_DRAWN]:
        axes.plot(found.steps, column, ".", color=GREY, markersize=2)
    _with_error(axes, found, "lambda_max", BLUE, "largest")
    if "lambda_min" in found.values:
        _with_error(axes, found, "lambda_min", GREY, "smallest")
    seen, own = _values(found, "preconditioned"), found["lambda_max"]
    if np.isfinite(seen).any() and not np.allclose(seen, own, equal_nan=True):
        _with_error(axes, found, "preconditioned", ORANGE, "largest, preconditioned")
    threshold = _values(found, "threshold")
    if np.isfinite(threshold).any():
        axes.plot(found.steps, threshold, "--", color="black", linewidth=1, label="threshold")
    else:
        known = found.about.get("threshold", {})
        why = "; ".join(dict.fromkeys(str(reason) for reason in known.values()))
        axes.text(0.02, 0.02, f"no threshold: {why}", transform=axes.transAxes, fontsize=8)
    axes.set_ylabel("eigenvalue")
    axes.legend(frameon=False, fontsize=8)


def _loss(axes: Axes, found: Track) -> None:
    drawn = [found["loss"]]
    axes.plot(found.steps, found["loss"], "o-", color=BLUE, markersize=3, label="probe set")
    if "minibatch_loss" in found.values:
        drawn.append(found["minibatch_loss"])
        axes.plot(found.steps, drawn[-1], ".", color=ORANGE, label="minibatch")
    if is_wide(drawn):
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    axes.legend(frameon=False, fontsize=8)


def _critical(axes: Axes, found: Track) -> None:
    names = [name for name in found.values if name.startswith("critical")]
    for name in names:
        label = name.removeprefix("critical").removeprefix("_") or "own loss"
        axes.plot(found.steps, found[name], "o-", markersize=3, label=label)
    lr = found["lr"]
    with np.errstate(divide="ignore"):
        axes.plot(found.steps, 2 / lr, "--", color="black", linewidth=1, label="2 / lr")
    axes.set_ylabel("critical sharpness")
    axes.legend(frameon=False, fontsize=8)


def _distance(axes: Axes, found: Track) -> None:
    log = bool((found["step_length"] > 0).all())
    names = {"distance": "from the start", "step_length": "of a step"}
    for (name, label), color in zip(names.items(), (BLUE, ORANGE)):
        # On a log axis the first distance, which is 0, would be a line without end.
        values = np.where(found[name] > 0, found[name], np.nan) if log else found[name]
        axes.plot(found.steps, values, color=color, label=label)
    axes.set_yscale("log" if log else "linear")
    axes.set_ylabel("distance in parameter space")
    axes.legend(frameon=False, fontsize=8)


def _zeta(axes: Axes, found: Track) -> None:
    draw_zeta(axes, found.steps, found.pairs)


def _with_error(axes: Axes, found: Track, name: str, color: str, label: str) -> None:
    """The values, and a band within whose height there is an eigenvalue."""
    values, errors = _values(found, name), np.nan_to_num(_values(found, f"{name}_error"))
    band = values - errors, values + errors
    axes.fill_between(found.steps, *band, color=color, alpha=0.25, linewidth=0)
    axes.plot(found.steps, values, "o-", color=color, markersize=3, linewidth=1.2, label=label)


def _values(found: Track, name: str) -> Array:
    return found[name] if name in found.values else np.full(len(found), np.nan)


PANELS: dict[str, Callable[[Axes, Track], None]] = {
    "eigenvalues": _eigenvalues,
    "loss": _loss,
    "critical": _critical,
    "distance": _distance,
}
VIEWS = {**PANELS, "zeta": _zeta}  # which takes ten eigenvalues
