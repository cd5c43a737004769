"""Result files for reports, and what a reader of a page finds in it."""

from html.parser import HTMLParser

import numpy as np
import torch
from surfaces_by_hand import bowl

import hessian_spectrum as hs
from hessian_spectrum.landscape.results import Barriers, Curve, Surface, Trajectory

HOSTILE = '<script>hacked=1</script>"><img src=x onerror="hacked=1">\u202e$\\frac{'
LABEL = HOSTILE.replace("/", "|").replace("\u202e", "")  # what the names of groups can be


def spectrum(low=-1.0, seed=0, n=40):
    """A density and both ends of a matrix with eigenvalues from ``low`` to 9."""
    values = torch.cat([torch.linspace(low, 1, n - 2), torch.tensor([4.0, 9.0])]).double()
    matrix = hs.Dense(torch.diag(values))
    measure = hs.spectral_density(matrix, 3, 6, seed=seed)
    return measure, hs.eigenpairs(matrix, k=2, which="both", tol=1e-8)


def small_map():
    grid = np.linspace(-1, 1, 5)
    ratio = 0.1 + np.add.outer(grid**2, grid**2)
    ones = np.ones_like(ratio)
    values = {"loss": ratio, "ratio": ratio, "smallest": -ratio, "largest": ones, "converged": ones}
    return Surface(grid, grid, values, {"n": 5, "num_samples": 7})


def way():
    t = np.linspace(0, 1, 6)
    places = np.stack([1 - t, (1 - t) ** 2], 1)
    shares = np.array([0.9, 0.1])
    return Trajectory(t, t, 1 - t, 0 * t, t, 0 * t, places, shares, {"loss": 1 - t / 2})


def named(name):
    """Results whose every name is ``name``, as far as they have names."""
    t = np.linspace(0, 1, 5)
    about = {"directions": 2 * [{"kind": name, "normalize": name}], "axis": name, "path": name}
    curve = Curve(
        t,
        t,
        {"loss": t, LABEL: t} if name == HOSTILE else {"loss": t},
        {**about, "batch_norm": name},
    )
    values = {"loss": np.outer(t, t) + 1}
    if name == HOSTILE:
        values[LABEL] = np.outer(t, t)
    grid = Surface(t, t, values, about)
    ones = np.ones(2)
    loss = np.array([[4.0, 1, 0, 1, 2], [2, 2, 3, 1, 1]])
    walk = Barriers(t, ones, ones + 1, ones, ones, ones, 0 * ones, {"loss": loss}, about)
    distance = np.array([[0.0, 1.0], [1.0, 0.0]])
    networks = hs.FunctionalDistances(np.array([name, f"{name}2"]), distance, distance, about)
    return {"curve": curve, "surface": grid, "barriers": walk, "functional": networks}


def save_named(path, name):
    """A file that has ``name`` wherever a file can have a text."""
    measure, pairs = spectrum()
    texts = {"model": name, "dataset": name, "operator": name, "batch_norm": name, name: name}
    hs.save(
        path,
        measure,
        pairs,
        config=texts,
        plan={"batch_norm": name, "sizes": {name: 40}, name: {name: [name]}},
        provenance={"command": [name, name], "host": name, "libraries": {name: name}, name: name},
        values={LABEL if name == HOSTILE else name: name, "loss": 1.0},
        **named(name),
    )


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.scripts, self._inside = [], [], [], None
        self.feed(text)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def save_bowl(path):
    hs.save(path, surface=bowl(), trajectory=way())
