"""The numbers of each kind of result as tables; a kind without tables of its own has all arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hessian_spectrum.analyses.alignment_result import Alignment
from hessian_spectrum.landscape.results import (
    Barriers,
    CriticalPoints,
    DirectionVectors,
    FunctionalDistances,
    Surface,
)
from hessian_spectrum.landscape.results.critical_points import REASONS
from hessian_spectrum.plotting.certified import certified_eigenvalues
from hessian_spectrum.reporting.numbers import command_line, number
from hessian_spectrum.reporting.tables import Column, Table, matrix, of_result
from hessian_spectrum.spectral import queries
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure

UNIT = "in units of the eigenvalues"


def tables(result: Any, file: str = "FILE", key: str = "") -> list[Table]:
    """All tables of one result.

    Args:
        file, key: of the result, for the commands that answer the same.
    """
    for kind, made in _OF_KIND.items():
        if isinstance(result, kind):
            return made(result, file, key)
    return of_result(result)


def _density(measure: SpectralMeasure, file: str, key: str) -> list[Table]:
    known = certified_eigenvalues(measure)
    drawn = measure.drawn
    found = [_answers(measure, file, key)]
    if known.places.size:
        found.append(
            Table(
                "Certified eigenvalues",
                (
                    Column("eigenvalue", known.places[::-1], UNIT),
                    Column("at least", known.low[::-1], UNIT),
                    Column("at most", known.high[::-1], UNIT),
                    Column("how many", known.counts[::-1], "below 1: a part of one"),
                ),
            )
        )
    curve = (
        Column("eigenvalue t", drawn.t, UNIT),
        Column("density", drawn.values, "per unit eigenvalue; integrates to 1"),
        Column("95 % from", drawn.lower, "lower end of the 95 % interval"),
        Column("to", drawn.upper, "upper end of the 95 % interval"),
    )
    return [*found, Table("The density as drawn", curve)]


def _answers(measure: SpectralMeasure, file: str, key: str) -> Table:
    """What one asks first, with the command that asks it."""
    scale = max(map(abs, measure.support)) or 1.0
    asked: list[tuple[str, tuple[float, ...]]] = [
        ("trace", ()),
        ("frobenius_norm", ()),
        ("count", (float(f"{0.1 * scale:.3g}"), math.inf)),
        ("count", (float(f"{0.01 * scale:.3g}"), math.inf)),
        ("negative_fraction", (float(f"{0.001 * scale:.3g}"),)),
    ]
    rows = []
    for query, numbers in asked:
        answer = queries.ask(measure, query, numbers)
        low, high = answer["interval"] or (math.nan, math.nan)
        words = [query, *(f"{x:g}" for x in numbers)]
        result = ["--result", key] if key else []
        command = command_line(["hessian-spectrum", "query", file, *words, *result])
        rows.append((" ".join(words), answer["value"], low, high, command))
    names = ("question", "answer", "95 % from", "to", "command")
    return Table("Answers", tuple(Column(name, cells) for name, cells in zip(names, zip(*rows))))


def _eigenpairs(pairs: EigenPairs, file: str, key: str) -> list[Table]:
    if not len(pairs):
        return []
    return [
        Table(
            "Eigenvalues, largest first",
            (
                Column("rank", range(1, len(pairs) + 1)),
                Column("eigenvalue", pairs.values[::-1], UNIT),
                Column(
                    "an eigenvalue lies within", pairs.residuals[::-1], f"|H v - lambda v|, {UNIT}"
                ),
                Column("converged", pairs.converged[::-1].tolist()),
            ),
        )
    ]


def _alignment(found: Alignment, file: str, key: str) -> list[Table]:
    columns = [
        Column("batch size", found.batch_sizes, "samples in a minibatch"),
        Column("minibatches", found.counts()),
        Column("curvature along g", found.mean(), f"mean of g^T H g / |g|^2, {UNIT}"),
        Column("deviation", found.std(), "standard deviation over the minibatches"),
        Column("|g|", found.mean("gradient_norm"), "mean norm of the gradients"),
    ]
    if found.eigenvalues.size:
        columns.append(Column("of lambda_1", found.mean("share"), "share of the largest"))
        columns.append(Column("in the eigenvectors", found.mean("captured"), "part of |g|^2"))
    return [Table("By batch size", tuple(columns))]


def _barriers(found: Barriers, file: str, key: str) -> list[Table]:
    columns = (
        Column("from step", found.start),
        Column("epoch", found.epoch),
        Column("barrier", found.is_barrier.tolist(), "the rise is above the rounding error"),
        Column("rise", found.rise, "largest loss between the ends minus that of the higher end"),
        Column("floor", found.floor, "smallest loss of the segment"),
        Column("above the floor", found.height_above_floor, "mean of the ends minus the floor"),
        Column("step length", found.step_length, "|w(s + 1) - w(s)|"),
        Column("cosine", found.cosine, "of the update and the one before it"),
    )
    return [Table("Segments between iterates", columns)]


def _critical(found: CriticalPoints, file: str, key: str) -> list[Table]:
    reasons = list(REASONS)
    why = ["" if math.isnan(c) else REASONS[reasons[int(c)]] for c in found.reason]
    named = {"gradient_norm": "gradient norm", "negative": "index, at least"}
    named |= {"negative_most": "index, at most", "smallest": "smallest", "largest": "largest"}
    columns = (
        Column("point", range(len(found))),
        Column("what it is", found.kinds),
        Column("loss", found.loss),
        *(Column(words, found.values[name]) for name, words in named.items()),
        *((Column("why undecided", why),) if any(why) else ()),
    )
    return [Table("Points", columns)]


def _functional(found: FunctionalDistances, file: str, key: str) -> list[Table]:
    first, second = np.triu_indices(len(found.names), 1)
    names = np.array([str(name) for name in found.names])
    if not first.size:
        return []
    columns = (
        Column("network", names[first].tolist()),
        Column("and", names[second].tolist()),
        Column("distance", found.distance[first, second], "root mean square distance of outputs"),
        Column("disagreement", found.disagreement[first, second], "share of different labels"),
    )
    return [Table("Pairs of networks", columns)]


def _surface(surface: Surface, file: str, key: str) -> list[Table]:
    """A table of each value, the one that is drawn first."""
    names = sorted(
        surface.values, key=lambda name: (name not in ("ratio", "loss"), name != "ratio")
    )
    rows = Column("a", surface.a, "first coordinate; columns are the second")
    columns = [f"b = {number(b)}" for b in surface.b]
    return [matrix(name.replace("_", " "), rows, columns, surface.values[name]) for name in names]


def _directions(found: DirectionVectors, file: str, key: str) -> list[Table]:
    recipes = [recipe for recipe in found.about.get("recipes", ()) if isinstance(recipe, Mapping)]
    names = list(dict.fromkeys(name for recipe in recipes for name in recipe))
    columns = [Column(str(n), [str(recipe.get(n, "")) for recipe in recipes]) for n in names]
    counter = Column("direction", range(len(recipes)), "counted from 0")
    return [Table("How the directions were made", (counter, *columns))] if recipes else []


_OF_KIND: dict[type, Callable[[Any, str, str], list[Table]]] = {
    SpectralMeasure: _density,
    EigenPairs: _eigenpairs,
    Alignment: _alignment,
    Barriers: _barriers,
    CriticalPoints: _critical,
    FunctionalDistances: _functional,
    Surface: _surface,
    DirectionVectors: _directions,
}
