"""Export surfaces: an interactive page, and VTK files for ParaView.

The VTK file is XML that is written here: a structured grid is some twenty lines of text, and the
packages that write one bring the whole of VTK, or formats that have no named values.
"""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from matplotlib.colors import LogNorm

from hessian_spectrum._core.atomic import replacing
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Array, Surface, Trajectory
from hessian_spectrum.plotting import plane_coordinates
from hessian_spectrum.plotting.style import ORANGE
from hessian_spectrum.plotting.value_scale import LABELS, axis_name, color_scale, described


def save_page(
    surface: Surface,
    path: str | os.PathLike,
    name: str = "loss",
    log: bool | None = None,
    title: str | None = None,
    way: Trajectory | Array | None = None,
) -> None:
    """Write one HTML file with the surface, to be turned by mouse, that needs no network (5 MB).

    The picture fills the window, whatever its size.

    Args:
        log: a logarithmic axis; default: as in pictures.
        way: iterates of a training, marked on the surface; as the ``path`` of a contour figure.

    Raises:
        InputError: plotly is not installed, or the surface is a line.
    """
    figure = surface_figure(surface, name, log, title, way)
    page = figure.to_html(
        include_plotlyjs=True,
        full_html=True,
        include_mathjax=False,
        default_height="100vh",
        config={"responsive": True, "displaylogo": False},
    )
    heading = html.escape(title or described(surface) or name)
    head = f"<head><title>{heading}</title><style>body{{margin:0;overflow:hidden}}</style>"
    page = page.replace("<html>", '<html lang="en">', 1).replace("<head>", head, 1)
    _write(Path(path), page, ".html")


def surface_figure(
    surface: Surface,
    name: str = "loss",
    log: bool | None = None,
    title: str | None = None,
    path: Trajectory | Array | None = None,
) -> Any:
    """plotly's figure of the surface, all of it in view, with its minimum and a way of training.

    Axes are those of the contour figure, and so is the choice of a logarithmic one.

    Args:
        path: (t, 2), coordinates of iterates; a Trajectory lies on the surface along its principal
            directions. Iterates beyond the grid have no height and are left out.

    Raises:
        InputError: plotly is not installed, the surface is a line, or ``log`` is True and a value
            is 0 or less.
    """
    objects = _plotly()
    if min(surface.shape) < 2:
        raise InputError(f"a surface of {surface.shape} points has no area; expected 2 x 2 or more")
    values = surface.values[name]
    finite = values[np.isfinite(values)]
    is_log = isinstance(color_scale(finite, log), LogNorm)
    x, y = plane_coordinates.of_points(surface)
    drawn = objects.Surface(
        x=x,
        y=y,
        z=_or_gap(values),
        surfacecolor=_height(values, is_log),
        customdata=values,
        hovertemplate=_hover(surface, name),
        colorscale="Viridis",
        colorbar={
            "title": {"text": _label(name)},
            "thickness": 16,
            "len": 0.7,
            **_ticks(finite, is_log),
        },
    )
    figure = objects.Figure([drawn, *_marks(objects, surface, name, path)])
    axes = dict(zip(("xaxis", "yaxis"), _axis_names(surface, path)))
    scene: dict[str, Any] = {axis: {"title": {"text": text}} for axis, text in axes.items()}
    scene["zaxis"] = {"title": {"text": _label(name)}, "type": "log" if is_log else "linear"}
    if is_log:
        scene["zaxis"] |= {"tickvals": 10 ** np.array(_ticks(finite, True)["tickvals"])}
        scene["zaxis"] |= {"ticktext": _ticks(finite, True)["ticktext"]}
    # From this far the box of the axes is in view in every direction, with the axes' names.
    scene |= {
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": 1, "z": 0.7},
        "camera": {"eye": {"x": 1.45, "y": -1.45, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.1}},
    }
    heading = html.escape(title or described(surface))
    figure.update_layout(
        title={"text": heading, "font": {"size": 15}} if heading else {},
        scene=scene,
        margin={"l": 0, "r": 0, "b": 0, "t": 40 if heading else 0},
        legend={"orientation": "h", "x": 0, "y": 0},
    )
    return figure


def map_figure(
    surface: Surface,
    name: str = "ratio",
    log: bool | None = None,
    title: str | None = None,
    path: Trajectory | Array | None = None,
) -> Any:
    """plotly's figure of a cell for each point; under the pointer all values of the point.

    Arguments and errors as for ``surface_figure``.
    """
    objects = _plotly()
    values = surface.values[name]
    finite = values[np.isfinite(values)]
    is_log = isinstance(color_scale(finite, log), LogNorm)
    names = list(surface.values)
    held = np.stack([surface.values[other].T for other in names], axis=-1)
    lines = [f"{_text(other)} %{{customdata[{i}]:.5g}}" for i, other in enumerate(names)]
    a, b = (_text(axis_name(surface, i).partition(":")[0]) for i in (0, 1))
    drawn = objects.Heatmap(
        x=surface.a,
        y=surface.b,
        z=_height(values, is_log).T,
        customdata=held,
        hovertemplate="<br>".join([f"{a} %{{x:.4g}}", f"{b} %{{y:.4g}}", *lines])
        + "<extra></extra>",
        colorscale="Viridis",
        colorbar={"title": {"text": _label(name)}, "thickness": 16, **_ticks(finite, is_log)},
    )
    figure = objects.Figure([drawn])
    if path is not None:
        points = _points_of(path)
        figure.add_trace(
            objects.Scatter(x=points[:, 0], y=points[:, 1], mode="lines+markers", name="training")
        )
    across, up = _axis_names(surface, path)
    heading = html.escape(title or described(surface))
    figure.update_layout(
        title={"text": heading, "font": {"size": 15}} if heading else {},
        xaxis={"title": {"text": across}},
        yaxis={"title": {"text": up}},
        margin={"l": 60, "r": 10, "b": 50, "t": 40 if heading else 10},
        showlegend=False,
    )
    return figure


def save_vtk(
    surface: Surface, path: str | os.PathLike, height: str | None = "loss", log: bool = False
) -> None:
    """Write a VTK XML structured grid (.vts) with all values at its points.

    x and y are the points' places in their plane, in units of theta, where they have some, and the
    coordinates a and b otherwise; z is the height, scaled to half the grid's width. A value that is
    not finite is written so, and its point lies at the lowest height.

    Args:
        height: the value that is the height; None: flat.
        log: the height is log10 of the value.
    """
    a, b = surface.shape
    flat = np.stack(np.meshgrid(surface.a, surface.b, indexing="ij"), axis=-1)
    places = surface.positions if surface.positions.size else flat
    z = np.zeros((a, b))
    if height is not None:
        z = _height(surface.values[height], log)
        low, high = np.nanmin(z, initial=np.inf), np.nanmax(z, initial=-np.inf)
        span = np.ptp(places.reshape(-1, 2), axis=0).max() or 1.0
        z = (z - low) * (span / 2 / (high - low) if high > low else 0.0)
        z = np.nan_to_num(z, nan=0.0)
    points = np.concatenate([places, z[..., None]], axis=-1)
    # VTK's first index runs fastest.
    arrays = [_data_array("", points.swapaxes(0, 1).reshape(-1, 3))]
    values = [_data_array(name, array.T.ravel()) for name, array in surface.values.items()]
    extent = f"0 {a - 1} 0 {b - 1} 0 0"
    text = f"""<?xml version="1.0"?>
<VTKFile type="StructuredGrid" version="1.0" byte_order="LittleEndian"
    header_type="UInt64">
<StructuredGrid WholeExtent="{extent}">
<Piece Extent="{extent}">
<Points>
{arrays[0]}
</Points>
<PointData Scalars={quoteattr(height or next(iter(surface.values)))}>
{chr(10).join(values)}
</PointData>
</Piece>
</StructuredGrid>
</VTKFile>
"""
    _write(Path(path), text, ".vts")


# -- inside ------------------------------------------------------------------------------------


def _plotly() -> Any:
    try:
        from plotly import graph_objects
    except ImportError:
        raise InputError(
            "an interactive page needs plotly; pip install 'hessian_spectrum[interactive]'"
        ) from None
    return graph_objects


def _height(values: Array, log: bool) -> Array:
    finite = _or_gap(values)
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            finite = np.where(finite > 0, np.log10(finite), np.nan)
    return finite


def _or_gap(values: Array) -> Array:
    """The values, NaN where they are not finite: a gap."""
    return np.where(np.isfinite(values), values, np.nan)


def _marks(objects: Any, surface: Surface, name: str, path: Trajectory | Array | None) -> list[Any]:
    """The minimum, and the way of a training with heights between the surface's points."""
    marks, values = [], surface.values[name]
    if np.isfinite(values).any():
        least = surface.minimum(name)
        x, y = (float(axis[least.index]) for axis in plane_coordinates.of_points(surface))
        marks.append(
            objects.Scatter3d(
                x=[x],
                y=[y],
                z=[least.value],
                mode="markers",
                name=f"minimum {least.value:.4g}",
                marker={
                    "symbol": "diamond",
                    "size": 6,
                    "color": "white",
                    "line": {"color": "black", "width": 2},
                },
                hovertemplate=f"minimum {least.value:.5g}<extra></extra>",
            )
        )
    if path is not None:
        points = _points_of(path)
        marks.append(
            objects.Scatter3d(
                x=points[:, 0],
                y=points[:, 1],
                z=surface.at(points[:, 0], points[:, 1], name),
                mode="lines+markers",
                name="training",
                line={"color": ORANGE, "width": 6},
                marker={"size": 3, "color": ORANGE},
                hovertemplate="training, iterate %{pointNumber}<extra></extra>",
            )
        )
    return marks


def _points_of(path: Trajectory | Array) -> Array:
    points = path.coordinates[:, :2] if isinstance(path, Trajectory) else np.asarray(path, float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"a path of shape {points.shape}; expected (t, 2)")
    return points


def _axis_names(surface: Surface, path: Trajectory | Array | None) -> tuple[str, str]:
    if isinstance(path, Trajectory):
        shares = [*path.explained_variance, 0.0]
        return f"first component, {shares[0]:.0%}", f"second component, {shares[1]:.0%}"
    first, second = (_text(axis_name(surface, i)) for i in (0, 1))
    return first, second


def _ticks(finite: Array, log: bool) -> dict[str, Any]:
    """Of a scale of logarithms: labelled with the values themselves."""
    if not log or not finite.size:
        return {}
    places = np.linspace(np.log10(finite.min()), np.log10(finite.max()), 6)
    return {"tickvals": places.tolist(), "ticktext": [f"{10**place:.3g}" for place in places]}


def _label(name: str) -> str:
    return _text(LABELS.get(name, name))


def _text(name: str) -> str:
    """A name as plotly shows it: it reads tags and %{...} in texts, and names come from files."""
    return html.escape(name).replace("%{", "% {")


def _hover(surface: Surface, name: str) -> str:
    a, b = (_text(axis_name(surface, i).partition(":")[0]) for i in (0, 1))
    return f"{a} %{{x:.4g}}<br>{b} %{{y:.4g}}<br>{_text(name)} %{{customdata:.5g}}<extra></extra>"


def _data_array(name: str, array: Array) -> str:
    """In base64, its number of bytes first: VTK reads no NaN from decimal digits."""
    components = f' NumberOfComponents="{array.shape[1]}"' if array.ndim > 1 else ""
    named = f" Name={quoteattr(name)}" if name else ""
    content = array.astype("<f8").tobytes()
    text = base64.b64encode(len(content).to_bytes(8, "little") + content).decode()
    return f'<DataArray type="Float64"{named}{components} format="binary">\n{text}\n</DataArray>'


def _write(path: Path, text: str, suffix: str) -> None:
    if path.suffix.lower() != suffix:
        raise InputError(f"{path}: expected a name that ends in {suffix}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
