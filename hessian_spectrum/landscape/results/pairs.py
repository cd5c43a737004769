"""What lies between all pairs of several trained networks. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.exports import Exported
from hessian_spectrum.landscape.results.curve import Curve
from hessian_spectrum.landscape.results.functional_distances import FunctionalDistances
from hessian_spectrum.landscape.results.surface import Surface
from hessian_spectrum.landscape.results.values import Array

Pair = tuple[str, str]
START = "start"  # stands for the start in labels, so that no network has this name
FUNCTIONAL = ("distance_to_start", "distance_to_end")
DISAGREEMENT = ("disagreement_with_start", "disagreement_with_end")


@dataclass(frozen=True)
class Pairs(Exported):
    """Lines, triangles and functional distances of all pairs of several networks.

    A result file holds the parts under labels: ``curve/A--B``, the line from A to B;
    ``surface/A--B``, the triangle of the common start, A and B; ``curve/start--A``; and
    ``functional``. Im, Tao & Branson 2017 (arXiv:1612.04010), table 1, figures 5 and 6.
    """

    lines: Mapping[Pair, Curve]  # end to end, with loss, FUNCTIONAL and DISAGREEMENT
    triangles: Mapping[Pair, Surface]  # those of pairs with a common start
    from_start: Mapping[str, Curve]  # start to end, of networks whose start is known
    functional: FunctionalDistances

    @property
    def names(self) -> list[str]:
        """Of the networks, in order."""
        return [str(name) for name in self.functional.names]

    def by_key(self) -> dict[str, Any]:
        """The parts by their keys in a result file."""
        return {
            **{f"curve/{'--'.join(pair)}": line for pair, line in self.lines.items()},
            **{f"curve/{START}--{name}": line for name, line in self.from_start.items()},
            **{f"surface/{'--'.join(pair)}": grid for pair, grid in self.triangles.items()},
            "functional": self.functional,
        }

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> Pairs:
        """The parts that a result file holds.

        Raises:
            InputError: it is not what ``interpolate --pairs`` has written.
        """
        if not holds_pairs(run):
            raise InputError(
                "no table of pairs: expected functional distances and labelled lines, as "
                "interpolate --pairs writes them"
            )
        lines: dict[Pair, Curve] = {}
        triangles: dict[Pair, Surface] = {}
        from_start: dict[str, Curve] = {}
        for key in run:
            kind = key.partition("/")[0]
            if kind not in ("curve", "surface") or "between" not in run[key].about:
                continue
            first, second = run[key].about["between"]
            if kind == "surface":
                triangles[first, second] = run[key]
            elif first == START:
                from_start[second] = run[key]
            else:
                lines[first, second] = run[key]
        return cls(lines, triangles, from_start, run["functional"])


def holds_pairs(run: Mapping[str, Any]) -> bool:
    """Does a result file hold a table of pairs?"""
    return "functional" in run and any(
        key.startswith("curve/") and "between" in run[key].about for key in run
    )


def functional_of(names: list[str], lines: Mapping[Pair, Curve]) -> FunctionalDistances:
    """The distances between the ends, which each line has at its last point."""
    distance = _table(names, lines, FUNCTIONAL[0])
    disagreement = _table(names, lines, DISAGREEMENT[0])
    about = next(iter(lines.values())).about
    told = {name: value for name, value in about.items() if name not in ("between", "path", "ends")}
    return FunctionalDistances(np.array(names), distance, disagreement, told)


def _table(names: list[str], lines: Mapping[Pair, Curve], quantity: str) -> Array:
    """(network, network), symmetric, what each line has at its end."""
    table = np.zeros((len(names), len(names)))
    for (first, second), line in lines.items():
        i, j = names.index(first), names.index(second)
        table[i, j] = table[j, i] = line.values[quantity][-1]
    return table
