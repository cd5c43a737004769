"""Export surfaces: an interactive page, and VTK files for ParaView.

The VTK file is XML that is written here: a structured grid is some twenty lines of text, and the
packages that write one bring the whole of VTK, or formats that have no named values.
"""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from hessian_spectrum._core.atomic import replacing
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Array, Surface
from hessian_spectrum.plotting.value_scale import described


def save_page(
    surface: Surface,
    path: str | os.PathLike,
    name: str = "loss",
    log: bool = False,
    title: str | None = None,
) -> None:
    """Write one HTML file with the surface, to be turned by mouse, that needs no network (5 MB).

    Args:
        log: the height is log10 of the value.

    Raises:
        InputError: plotly is not installed, or the surface is a line.
    """
    try:
        from plotly import graph_objects
    except ImportError:
        raise InputError(
            "an interactive page needs plotly; pip install 'hessian_spectrum[interactive]'"
        ) from None
    if min(surface.shape) < 2:
        raise InputError(f"a surface of {surface.shape} points has no area; expected 2 x 2 or more")
    height = _height(surface.values[name], log)
    figure = graph_objects.Figure(
        graph_objects.Surface(
            x=surface.a,
            y=surface.b,
            z=height.T,  # rows of z go along y
            customdata=surface.values[name].T,
            hovertemplate=_hover(name),
            colorscale="Viridis",
            colorbar={"title": {"text": name}},
        )
    )
    heading = html.escape(title or described(surface))
    axes = {"xaxis": "a", "yaxis": "b", "zaxis": f"log10 {name}" if log else name}
    figure.update_layout(
        title={"text": heading},
        scene={axis: {"title": {"text": text}} for axis, text in axes.items()},
        margin={"l": 0, "r": 0, "b": 0, "t": 60},
    )
    page = figure.to_html(include_plotlyjs=True, full_html=True, include_mathjax=False)
    _write(Path(path), page, ".html")


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


def _height(values: Array, log: bool) -> Array:
    finite = np.where(np.isfinite(values), values, np.nan)
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            finite = np.where(finite > 0, np.log10(finite), np.nan)
    return finite


def _hover(name: str) -> str:
    return "a %{x:.4g}<br>b %{y:.4g}<br>" + name + " %{customdata:.5g}<extra></extra>"


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
