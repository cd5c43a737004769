"""Choose and write the figure, page or VTK file of a curve, a surface, a trajectory or others; or
of several results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import (
    Barriers,
    CriticalPoints,
    Curve,
    Pairs,
    Surface,
    Track,
    Trajectory,
)
from hessian_spectrum.landscape.results.pairs import holds_pairs
from hessian_spectrum.plotting import (
    barrier_views,
    critical_views,
    curves,
    density,
    landscape,
    pair_views,
    several,
    surface_export,
    track_views,
)
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.storage.series import Series

# What is drawn beside each other: in words, and its views.
BESIDE: dict[type, tuple[str, tuple[str, ...]]] = {
    Surface: ("a surface or a map", ("contour", "heat")),
    Curve: ("a curve", ()),
    SpectralMeasure: ("a density", ("density",)),
}
KINDS = ("surface", "curve", "trajectory", "barriers", "critical")
DRAWN = (Surface, Curve, Trajectory, Track, Barriers, CriticalPoints)
# Of the results that are drawn here by kind, the views that they have; of others see density.py and
# several.py.
VIEWS_BY_KIND: dict[str, tuple[str, ...]] = {
    "track": tuple(track_views.VIEWS),
    "surface": ("contour", "heat", "relief"),
    "trajectory": tuple(curves.TRAJECTORY_VIEWS),
    "barriers": tuple(barrier_views.VIEWS),
    "critical": tuple(critical_views.VIEWS),
}
# Results that are drawn in panels: their picture, and its panels by the names of views.
PANELS: dict[type, tuple[Callable[..., Figure], Mapping[str, object]]] = {
    Track: (track_views.track_figure, track_views.VIEWS),
    Barriers: (barrier_views.barriers_figure, barrier_views.VIEWS),
    CriticalPoints: (critical_views.critical_figure, critical_views.VIEWS),
}
IN_WORDS = {Track: "a track", Barriers: "barriers", CriticalPoints: "critical points"}
VIEWS: dict[str, Callable[..., Figure]] = {
    "contour": landscape.contour_figure,
    "heat": landscape.heat_figure,
    "relief": landscape.relief_figure,
}


def kind_of_view(view: str | None, held: Mapping[str, bool]) -> str | None:
    """Which kind of result a view is of, of those that a file holds; None where it is of none.

    Args:
        view: None: the kind that is drawn by default.
        held: by kind, in the order of preference: are there several results, all labelled?
    """
    for kind, is_several in held.items():
        table = several.VIEWS_OF if is_several else density.VIEWS_OF
        views = VIEWS_BY_KIND.get(kind, ()) if kind in VIEWS_BY_KIND else table.get(kind, ())
        if view is None or view in views:
            return kind
    return None


def save_beside(
    results: Mapping[str, Any],
    out: Path,
    view: str | None = None,
    value: str | None = None,
    sigma2: float | None = None,
) -> None:
    """Draw several results of one kind: surfaces side by side, densities and curves on one axis.

    Arguments and errors as for ``save``; ``sigma2`` is the variance of densities' smoothing.
    """
    first = next(iter(results.values()))
    kind = next((kind for kind in BESIDE if isinstance(first, kind)), Surface)
    for name, result in results.items():
        if not isinstance(result, kind):
            held, wanted = type(result).__name__.lower(), BESIDE[kind][0]
            raise InputError(f"--beside: {name} holds a {held}; expected {wanted}")
    if out.suffix in (".html", ".vts"):
        raise InputError(f"{out} with --beside: expected a picture; leave --beside out")
    density.save_figure(_beside(kind, results, view, value, sigma2), out)


def _beside(
    kind: type,
    results: Mapping[str, Any],
    view: str | None,
    value: str | None,
    sigma2: float | None,
    title: str | None = None,
) -> Figure:
    views = BESIDE[kind][1]
    if kind is Surface:
        values = next(iter(results.values())).values
        value = value or ("ratio" if "ratio" in values else "loss")
        view = view or ("heat" if value == "ratio" else "contour")
    if view is not None and view not in views:
        expected = " or ".join(views) or "none"
        raise InputError(f"--view {view} with --beside: expected {expected}")
    if sigma2 is not None and kind is not SpectralMeasure:
        raise InputError("--sigma2 is for densities; leave it out")
    if value is not None and kind is SpectralMeasure:
        raise InputError("--value is for surfaces and curves; leave it out")
    if kind is SpectralMeasure:
        return several.curves_figure(results, sigma2)
    if kind is Curve:
        return landscape.curve_figure(results, value or "loss", title=title)
    return landscape.panels_figure(results, value or "loss", cells=view == "heat")


def save_series(
    found: Series,
    out: Path,
    view: str | None = None,
    title: str | None = None,
    sigma2: float | None = None,
    value: str | None = None,
) -> None:
    """Draw all labelled results of one kind over the epochs, or curves on one axis.

    Arguments and errors as for ``save``.
    """
    if found.kind == "curve":
        density.save_figure(_beside(Curve, found.results, view, value, sigma2, title), out)
        return
    views: Mapping[str, Callable[..., Figure]] = several.VIEWS_OF.get(found.kind, {})
    if not views:
        raise InputError(
            f"there are {len(found)} labelled results of the kind {found.kind}; choose one by "
            f"--result: {', '.join(found.keys)}"
        )
    of_blocks = "blocks" if found.axis == "block" and "blocks" in views else None
    view = view or of_blocks or next(iter(views))
    if view not in views:
        raise InputError(
            f"--view {view} of {len(found)} labelled results: expected {' or '.join(views)}; or "
            f"choose one of them by --result, such as {found.keys[0]}"
        )
    if sigma2 is not None and (found.kind != "density" or view == "blocks"):
        raise InputError("--sigma2 is for densities that are smoothed; leave it out")
    options: dict[str, Any] = {} if sigma2 is None else {"sigma2": sigma2}
    figure = views[view](found.results, found.places, found.axis, title=title, **options)
    density.save_figure(figure, out)


def draws_pairs(run: Mapping[str, Any], view: str | None) -> bool:
    """Is this a view of all pairs of networks, and does a file hold these?"""
    return view in (None, *pair_views.VIEWS) and holds_pairs(run)


def save_pairs(
    run: Mapping[str, Any],
    out: Path,
    view: str | None = None,
    value: str | None = None,
    title: str | None = None,
) -> None:
    """Draw all pairs of networks that a file holds; arguments and errors as for ``save``."""
    if out.suffix in (".html", ".vts"):
        raise InputError(f"{out} of all pairs: expected a picture, or one surface by --result")
    draw = pair_views.VIEWS[view or "table"]
    density.save_figure(draw(Pairs.of(run), value or "loss", title), out)


def save(
    result: Curve | Surface | Trajectory | Track | Barriers | CriticalPoints,
    out: Path,
    view: str | None = None,
    value: str | None = None,
    title: str | None = None,
    path: Trajectory | None = None,
) -> None:
    """Write ``out``: an interactive page (.html), a file for ParaView (.vts) or a picture.

    Args:
        view: of a surface; default: contour, but heat of a map's ratio.
        value: what of it; default: ratio where there is one, else loss; of a trajectory all.
        path: drawn on contours, of a surface along its principal components.

    Raises:
        InputError: a view or a kind of file that it does not have.
    """
    kind = type(result).__name__.lower()
    if isinstance(result, (Track, Barriers, CriticalPoints)):
        density.save_figure(_panels(result, out, view, value, title), out)
        return
    if isinstance(result, Surface) and result.shape[1] == 1:
        result = result.row()
    if isinstance(result, Trajectory) and view in curves.TRAJECTORY_VIEWS and value is None:
        if out.suffix not in (".html", ".vts"):
            density.save_figure(curves.trajectory_figure(result, title, view=view), out)
            return
    if not isinstance(result, Surface) and (view is not None or out.suffix in (".html", ".vts")):
        raise InputError(
            f"{f'--view {view}' if view else out} is for a surface, and this is a {kind}"
            f"{' along a line' if kind == 'surface' else ''}; leave it out"
        )
    if view is not None and view not in VIEWS:
        raise InputError(f"--view {view} of a surface: expected one of {', '.join(VIEWS)}")
    if isinstance(result, Trajectory):
        density.save_figure(landscape.trajectory_figure(result, title, value), out)
        return
    value = value or ("ratio" if "ratio" in result.values else "loss")
    result.values[value]  # refused by name
    if isinstance(result, Curve):
        figure = landscape.curve_figure(result, value, title=title)
        density.save_figure(figure, out)
    elif out.suffix == ".html":
        surface_export.save_page(result, out, value, title=title, way=path)
    elif out.suffix == ".vts":
        surface_export.save_vtk(result, out, value)
    else:
        view = view or ("heat" if value == "ratio" or 1 in result.shape else "contour")
        options = {"path": path} if view == "contour" else {}
        density.save_figure(VIEWS[view](result, value, title=title, **options), out)


def _panels(
    result: Track | Barriers | CriticalPoints,
    out: Path,
    view: str | None,
    value: str | None,
    title: str | None,
) -> Figure:
    draw, views = PANELS[type(result)]
    what = IN_WORDS[type(result)]
    if value is not None or out.suffix in (".html", ".vts"):
        raise InputError(
            f"{f'--value {value}' if value else out} is for a surface, and this is {what}; choose "
            f"a --view: {', '.join(views)}"
        )
    if view is not None and view not in views:
        raise InputError(f"--view {view} of {what}: expected {', '.join(views)}")
    return draw(result, title, view)
