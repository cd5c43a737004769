"""Which pictures a page shows of a result, each with a sentence that says what is to be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hessian_spectrum.analyses.alignment_result import Alignment
from hessian_spectrum.analyses.noise_result import Noise
from hessian_spectrum.landscape.results import (
    Asymmetry,
    AveragingBias,
    Barriers,
    CriticalPoints,
    Curve,
    FunctionalDistances,
    Surface,
    Track,
    Trajectory,
)
from hessian_spectrum.plotting import density as spectra
from hessian_spectrum.plotting import landscape, registry
from hessian_spectrum.plotting.certified import certified_eigenvalues
from hessian_spectrum.plotting.style import BLUE, COLORS, tidy
from hessian_spectrum.plotting.value_scale import is_wide
from hessian_spectrum.reporting.numbers import counted, number, percent
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure

Sentence = Callable[[Any], str]


@dataclass(frozen=True)
class Picture:
    """A figure that is drawn when it is asked for."""

    title: str
    sentence: str  # for those who do not see it
    draw: Callable[[], Figure]
    view: str | None = None  # of ``plot``, which draws the same


def of_result(
    result: Any, sizes: Mapping[str, int] | None = None, path: Trajectory | None = None
) -> list[Picture]:
    """The pictures of one result, the most telling first; none of a kind that has none.

    Args:
        sizes: entries of each parameter, for eigenvectors' shares in layers.
        path: a way of training, which is drawn on a surface.
    """
    if isinstance(result, EigenPairs):
        return list(_of_pairs(result, sizes))
    if isinstance(result, Surface):
        return list(_of_surface(result, path))
    if isinstance(result, Track) and not len(result):
        return []
    if isinstance(result, CriticalPoints) and not result.is_critical.any():
        return []
    for kind, rows in _OF_KIND.items():
        if isinstance(result, kind):
            return [
                Picture(title, sentence(result), _drawer(draw, result), view)
                for title, view, draw, sentence in rows
            ]
    return []


def _drawer(draw: Callable[[Any], Figure], result: Any) -> Callable[[], Figure]:
    return lambda: draw(result)


# -- sentences -----------------------------------------------------------------------------------


def _density(measure: SpectralMeasure) -> str:
    drawn = measure.drawn
    peak = drawn.t[int(drawn.values.argmax())]
    band = ", with its 95 % band" if measure.num_probes > 1 else ""
    known = certified_eigenvalues(measure)
    ticks = f"; ticks mark {counted(len(known.places), 'certified eigenvalue')}"
    return (
        f"Density of {number(measure.n)} eigenvalues on a logarithmic axis{band}, from "
        f"{number(measure.support[0])} to {number(measure.support[1])}, highest at {number(peak)}"
        f"{ticks if len(known.places) else ''}; below it the share of eigenvalues up to each value."
    )


def _log(measure: SpectralMeasure) -> str:
    mean = measure.weights.mean(axis=0)
    below = percent(float(mean[measure.nodes < 0].sum()))
    return (
        "Eigenvalues per decade of their size, positive ones in a solid and negative ones in a "
        f"dashed line; {below} of the eigenvalues are negative."
    )


def _certified(measure: SpectralMeasure) -> str:
    known = certified_eigenvalues(measure)
    return (
        f"{counted(len(known.places), 'bar')} for eigenvalues that are known one by one, above the "
        "density of the unresolved rest."
    )


def _cumulative(measure: SpectralMeasure) -> str:
    return (
        f"Share of the eigenvalues up to each value, a staircase from 0 to 1; half of them are at "
        f"most {number(measure.quantile(0.5))}."
    )


def _alignment(found: Alignment) -> str:
    mean = found.mean()
    return (
        f"Curvature along minibatch gradients against the batch size, from {number(mean[0])} at "
        f"{number(found.batch_sizes[0])} samples to {number(mean[-1])} at "
        f"{number(found.batch_sizes[-1])}."
    )


def _noise(found: Noise) -> str:
    return (
        "Shares of gradients in the top eigenvectors of the Hessian by batch size, and how far the "
        "top subspaces of the Hessian and of the gradients' covariance agree."
    )


def _curve(curve: Curve) -> str:
    finite = curve.loss[np.isfinite(curve.loss)]
    if not finite.size:
        return "The path has no finite loss."
    return (
        f"Loss along the path on {counted(len(curve.t), 'point')}, {number(finite.min())} to "
        f"{number(finite.max())}, {number(curve.loss[0])} at its start and "
        f"{number(curve.loss[-1])} at its end."
    )


def _surface(surface: Surface, name: str) -> str:
    values = surface.values[name]
    finite = values[np.isfinite(values)]
    if not finite.size:
        return f"No point of the plane has a finite {name}."
    least = surface.minimum(name)
    return (
        f"Colours of the {name} over two coordinates, {number(finite.min())} to "
        f"{number(finite.max())}; a star marks the smallest value at "
        f"({number(least.place[0])}, {number(least.place[1])})."
    )


def _trajectory(found: Trajectory) -> str:
    return (
        f"{counted(len(found.steps), 'iterate')} of a training run: values along it, distances "
        "from its start and to its end, its way beside the straight line, and the variance that "
        "its principal components explain."
    )


def _track(found: Track) -> str:
    return (
        f"{counted(len(found), 'record')} along a training run: the largest eigenvalues with the "
        "optimizer's threshold, the loss, critical sharpness and distances."
    )


def _barriers(found: Barriers) -> str:
    count = found.count()
    return (
        f"Loss between consecutive iterates on {count.segments} segments, {count.barriers} of them "
        "with a barrier; heights above the floor, and cosines of consecutive updates."
    )


def _critical(found: CriticalPoints) -> str:
    many = counted(len(found), "point")
    return f"Index, the number of negative eigenvalues, against the loss of {many}."


def _functional(found: FunctionalDistances) -> str:
    return f"Distances between {counted(len(found.names), 'network')} as functions, as colours."


def _asymmetry(found: Asymmetry) -> str:
    return (
        f"Slopes of the loss along {counted(len(found.forward), 'direction')}, forwards in solid "
        "and backwards in dashed lines, against the distance from the solution."
    )


def _averaging(found: AveragingBias) -> str:
    return (
        f"Losses of {counted(len(found.losses), 'iterate')}; lines are the loss at their mean, "
        f"{number(found.loss_at_average)}, and at the minimum, {number(found.loss_at_minimum)}."
    )


# -- kinds of their own --------------------------------------------------------------------------


def _of_pairs(pairs: EigenPairs, sizes: Mapping[str, int] | None) -> Iterator[Picture]:
    if not len(pairs):
        return
    done = int(np.count_nonzero(pairs.converged))
    yield Picture(
        "Eigenvalues",
        f"{counted(len(pairs), 'eigenvalue')} in ascending order, {number(pairs.values[0])} to "
        f"{number(pairs.values[-1])}, with their residuals; {done} have converged.",
        lambda: spectra.eigenpairs_figure(pairs),
        "eigenvalues",
    )
    if pairs.vectors is not None and sizes:
        yield Picture(
            "Layers of the eigenvectors",
            f"Share of each of {len(sizes)} parameters in each of the eigenvectors.",
            lambda: spectra.participation_figure(pairs, sizes=dict(sizes)),
            "participation",
        )


def _of_surface(surface: Surface, path: Trajectory | None) -> Iterator[Picture]:
    name = "ratio" if "ratio" in surface.values else "loss"
    if surface.shape[1] == 1:
        curve = surface.row()
        if np.isfinite(curve.values[name]).any():
            yield Picture(
                f"{name} along a line".capitalize(),
                f"{name} on {counted(len(curve.t), 'point')} of a line.".capitalize(),
                lambda: landscape.curve_figure(curve, name),
            )
        return
    sentence = _surface(surface, name)
    if name == "ratio" or 1 in surface.shape:
        yield Picture("Map", sentence, lambda: landscape.heat_figure(surface, name), "heat")
        return
    way = None if path is None or path.coordinates.shape[1] < 2 else path
    sentence += "" if way is None else " A line is the way of training."
    yield Picture(
        "Contours", sentence, lambda: landscape.contour_figure(surface, name, way), "contour"
    )


def _asymmetry_figure(found: Asymmetry) -> Figure:
    """Slopes of each direction on both sides."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, color in zip(range(len(found.forward)), COLORS * len(found.forward)):
        label = f"direction {i}"
        axes.plot(found.distance, found.forward[i], "-", color=color, label=f"{label}, forwards")
        axes.plot(found.distance, found.backward[i], "--", color=color, label=f"{label}, backwards")
    axes.set_xlabel("distance from the solution")
    axes.set_ylabel("slope of the loss")
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _functional_figure(found: FunctionalDistances) -> Figure:
    """The matrix of distances, with the networks' names."""
    figure = Figure(figsize=(6.5, 5.2), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(found.distance, cmap="viridis")
    names = [str(name) for name in found.names]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    figure.colorbar(drawn, ax=axes, label="root mean square distance of outputs")
    return figure


def _averaging_figure(found: AveragingBias) -> Figure:
    """Losses of iterates in their order, and at their mean."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    losses = found.losses
    axes.plot(np.arange(len(losses)), losses, "o-", color=BLUE, markersize=3, label="iterates")
    for level, color, label in (
        (found.loss_at_average, COLORS[1], "at their mean"),
        (found.loss_at_minimum, COLORS[2], "at the minimum"),
    ):
        axes.axhline(level, color=color, linestyle="--", linewidth=1.2, label=label)
    axes.legend(frameon=False, fontsize=9)
    if is_wide([losses]):
        axes.set_yscale("log")
    axes.set_xlabel("iterate")
    axes.set_ylabel("loss")
    tidy(axes)
    return figure


Row = tuple[str, "str | None", Callable[[Any], Figure], Sentence]
_OF_KIND: dict[type, tuple[Row, ...]] = {
    SpectralMeasure: (
        ("Density", "density", spectra.density_figure, _density),
        ("By decades", "log", spectra.log_figure, _log),
        ("Certified eigenvalues", "certified", spectra.certified_figure, _certified),
        ("Summed up", "cumulative", spectra.cumulative_figure, _cumulative),
    ),
    Alignment: (("Curvature along gradients", "alignment", spectra.alignment_figure, _alignment),),
    Noise: (("Gradients and their covariance", "noise", spectra.noise_figure, _noise),),
    Curve: (("Along the path", None, landscape.curve_figure, _curve),),
    Trajectory: (("Along the run", None, landscape.trajectory_figure, _trajectory),),
    **{
        kind: ((title, None, registry.PANELS[kind][0], sentence),)
        for kind, title, sentence in (
            (Track, "Records", _track),
            (Barriers, "Between iterates", _barriers),
            (CriticalPoints, "Index against loss", _critical),
        )
    },
    FunctionalDistances: (("Between networks", None, _functional_figure, _functional),),
    Asymmetry: (("Slopes on both sides", None, _asymmetry_figure, _asymmetry),),
    AveragingBias: (("Iterates and their mean", None, _averaging_figure, _averaging),),
}


# -- several results -----------------------------------------------------------------------------


def beside(results: Mapping[str, Any]) -> Picture | None:
    """Densities or curves on one axis, surfaces in one picture; None of what has no such picture.

    Args:
        results: two or more of one kind, by name.
    """
    kind = type(next(iter(results.values())))
    count = len(results)
    if count < 2 or any(not isinstance(result, kind) for result in results.values()):
        return None
    names = {_plain(name): result for name, result in results.items()}
    listed = ", ".join(results)
    if kind is SpectralMeasure and count <= len(COLORS):
        return Picture(
            "Densities on one axis",
            f"Densities with their 95 % bands on one axis: {listed}.",
            lambda: registry.several.curves_figure(names),
        )
    if kind is Curve and count <= len(COLORS):
        return Picture(
            "Curves on one axis",
            f"Losses along the paths on one axis: {listed}.",
            lambda: landscape.curve_figure(names),
        )
    if kind is Surface and count <= 6 and all(min(s.shape) > 1 for s in results.values()):
        value = "ratio" if all("ratio" in s.values for s in results.values()) else "loss"
        return Picture(
            "Surfaces in the same colours",
            f"The {value} in the planes of {listed}, in the same colours.",
            lambda: landscape.panels_figure(names, value, cells=value == "ratio"),
        )
    return None


def over_epochs(kind: str, found: Any) -> Picture | None:
    """All labelled results of one kind over the epochs; None of what has no such picture.

    Args:
        found: a ``storage.series.Series``.
    """
    views = registry.several.VIEWS_OF.get(kind)
    if views is None or len(found) < 2:
        return None
    view, draw = next(iter(views.items()))
    names = {_plain(name): result for name, result in found.results.items()}
    first, last = found.places[0], found.places[-1]
    return Picture(
        f"All {counted(len(found), 'result')}",
        f"{kind} of {len(found)} results over the {found.axis}, {number(first)} to {number(last)}.",
        lambda: draw(names, found.places, found.axis),
        view,
    )


def _plain(name: str) -> str:
    """A name as a legend shows it; matplotlib leaves out those that begin with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name
