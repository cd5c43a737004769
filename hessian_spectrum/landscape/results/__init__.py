"""Results in parameter space, with their queries. NumPy only: readers need no torch."""

from hessian_spectrum.landscape.results.asymmetry import Asymmetry, AveragingBias
from hessian_spectrum.landscape.results.barriers import Barriers
from hessian_spectrum.landscape.results.critical_points import CriticalPoint, CriticalPoints
from hessian_spectrum.landscape.results.curve import Basin, Curve
from hessian_spectrum.landscape.results.direction_vectors import DirectionVectors
from hessian_spectrum.landscape.results.functional_distances import FunctionalDistances
from hessian_spectrum.landscape.results.matched_lines import MatchedLines
from hessian_spectrum.landscape.results.pairs import Pairs
from hessian_spectrum.landscape.results.surface import Surface
from hessian_spectrum.landscape.results.track import Track
from hessian_spectrum.landscape.results.trajectory import Trajectory
from hessian_spectrum.landscape.results.values import Array, Minimum, Values

__all__ = [
    "Array",
    "Asymmetry",
    "AveragingBias",
    "Barriers",
    "Basin",
    "CriticalPoint",
    "CriticalPoints",
    "Curve",
    "DirectionVectors",
    "FunctionalDistances",
    "MatchedLines",
    "Minimum",
    "Pairs",
    "Surface",
    "Track",
    "Trajectory",
    "Values",
]
