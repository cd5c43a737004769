"""Figures inside a page: nothing is lost that can be seen, and nothing clashes."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from reported import HOSTILE, Page

from hessian_spectrum.reporting import figures


def drawn(label="a", kind="plot"):
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    t = np.linspace(0, 1, 50)
    axes.plot(t, t**2, "o-", label=label)
    axes.set_title(label)
    if kind == "cells":
        axes.pcolormesh(np.arange(900.0).reshape(30, 30))
    return figure


def points(path):
    return np.array(re.findall(r"-?\d+\.?\d*", path), float).reshape(-1, 2)


def off(places, corners):
    """Largest distance of the places from the polygon through the corners."""
    start, along = corners[:-1], np.diff(corners, axis=0)
    length = np.maximum((along**2).sum(1), 1e-30)
    share = ((places[:, None] - start) * along).sum(2) / length
    nearest = start + np.clip(share, 0, 1)[..., None] * along
    return np.linalg.norm(places[:, None] - nearest, axis=2).min(1).max()


@pytest.mark.parametrize("closed", [False, True])
def test_a_shortened_path_is_where_the_path_is(closed):
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 2000)
    y = 100 * np.exp(-(((t - 0.3) / 0.01) ** 2)) + 40 * np.sin(9 * t) + 0.02 * rng.normal(size=2000)
    places = np.stack([500 * t, y], 1)
    places[1000] += [-30, 0]  # back and beyond the ends of what is a line otherwise
    words = " L ".join(f"{a:.6f} {b:.6f}" for a, b in places)
    found = figures.shortened(f"M {words}{' z' if closed else ''}")
    assert found.endswith("z") == closed
    kept = points(found)
    assert len(kept) < 300
    assert off(places, kept) <= figures.TOLERANCE + 0.5 * 2**0.5 * 0.1  # and a tenth is rounded


def test_markers_keep_their_curves():
    assert figures.shortened("M 0 3\nC 0.795609 3 1.55874 2.683901 2.12 2.12\nz").count("C") == 1


@pytest.mark.parametrize("kind", ["plot", "cells"])
def test_ids_of_figures_differ_and_references_lead_to_them(kind):
    text = "".join(str(figures.inline_svg(drawn(kind=kind), f"f-{i}", "t", "d")) for i in (1, 2))
    page = Page(text)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(|href=")#([\w-]+)', text)
    assert used
    assert set(used) <= set(ids)
    assert not page.all("style") + page.all("script") + page.all("metadata")
    assert ("image" in {tag for tag, _ in page.elements}) == (kind == "cells")


def test_a_figure_is_named_for_those_who_do_not_see_it():
    page = Page(str(figures.inline_svg(drawn(), "f", "A title", "What is seen.")))
    (svg,) = page.all("svg")
    assert svg["role"] == "img"
    assert svg["aria-labelledby"] == "f-title f-desc"
    assert "A title" in page.texts
    assert "What is seen." in page.texts


def test_a_name_that_is_no_formula_is_drawn_as_it_is():
    page = Page(str(figures.inline_svg(drawn(f"{HOSTILE}$"), "f", "t", "d")))
    assert any("<script>hacked=1</script>" in text for text in page.texts)
    formula = Page(str(figures.inline_svg(drawn(r"$\lambda_1$"), "f", "t", "d")))
    assert any("\u03bb" in text for text in formula.texts)
