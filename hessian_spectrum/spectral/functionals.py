"""The table of queries on spectral measures and eigenpairs, a row a query. NumPy only.

A row holds all that differs from one query to another: its name and arguments, what each probe
answers, how the probes' answers are combined, and which thresholds it has. The methods of
``SpectralMeasure``, the errors (uncertainty.py), queries by name (queries.py) and the command
line read the table; none of them knows a query by name.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, Signature
from typing import Any

import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.spectral import outliers
from hessian_spectrum.spectral.atoms import Atoms
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.quadrature import NEAREST, Array

Arguments = tuple[Any, ...]
Answer = dict[str, Any]
INFINITE = (-math.inf, math.inf)


@dataclass(frozen=True, kw_only=True)
class Query:
    """The name and the arguments of a query, of any kind of result."""

    name: str
    about: str  # one line of help; the arguments in capitals, as the user types them
    arguments: tuple[str, ...] = ()
    defaults: Arguments = ()  # of the last arguments; a function is called with the result
    flags: tuple[str, ...] = ()  # arguments that the command line takes as --NAME

    @property
    def usage(self) -> str:
        """``NAME A [B]``: what is typed; an argument in brackets may be left out."""
        least = len(self.arguments) - len(self.defaults)
        words = [
            name.upper() if i < least else f"[{name.upper()}]"
            for i, name in enumerate(self.arguments)
            if name not in self.flags
        ]
        return " ".join([self.name, *words])

    @property
    def signature(self) -> Signature:
        least = len(self.arguments) - len(self.defaults)
        defaults = (*(Parameter.empty,) * least, *self.defaults)
        kind = Parameter.POSITIONAL_OR_KEYWORD
        return Signature(
            [Parameter(name, kind, default=value) for name, value in zip(self.arguments, defaults)]
        )

    def typed(self, numbers: tuple[float, ...]) -> Arguments:
        """The numbers of a command line, with the defaults of those that were left out.

        Raises:
            InputError: too few numbers, or too many.
        """
        names = [name for name in self.arguments if name not in self.flags]
        defaults = self.defaults[: len(self.defaults) - len(self.flags)]
        least = len(names) - len(defaults)
        if not least <= len(numbers) <= len(names):
            capitals = " ".join(name.upper() for name in names) or "none"
            raise InputError(
                f"{self.name} takes {len(names)} numbers ({capitals}), got {len(numbers)}"
            )
        return (*numbers, *defaults[len(numbers) - least :])


@dataclass(frozen=True, kw_only=True)
class MeasureQuery(Query):
    """A query on a spectral measure; each function takes the measure, then the arguments.

    The answer is the mean over the probes of ``per_probe``, and has the shape of the first
    argument, unless ``value`` says otherwise. Exactly one of ``per_probe``, ``square`` and
    ``inverse_of`` is given.
    """

    per_probe: Callable[..., Array] | None = None  # (probe, ...); refuses wrong arguments
    square: tuple[str, Arguments] | None = None  # the answer's square is this query's, at these
    inverse_of: str | None = None  # the x at which that query of [-inf, x] reaches the argument
    value: Callable[..., Any] | None = None  # where the answer is not the mean, or rounds otherwise
    thresholds: Callable[..., tuple[float, float, float, float]] | None = None
    # (a, b, at_a, at_b): it integrates over [a, b], and a share of the eigenvalues that moves
    # across an end changes the answer by at_a or at_b times itself. None: a smooth query.
    degree: Callable[..., int] | None = None  # where it integrates a polynomial
    bounds: Callable[..., tuple[float, float]] = lambda measure, *args: (0.0, math.inf)
    refines_pairs: bool = False  # of eigenpairs, too: the measure takes the ends from the pairs


@dataclass(frozen=True, kw_only=True)
class PairsQuery(Query):
    """A query on eigenpairs; ``answer`` takes them, the sizes of the parameters, the arguments."""

    answer: Callable[..., Answer]


# -- what each probe answers, (probe, ...) -----------------------------------------------------


def _moment(measure: Atoms, p: int) -> Array:
    if not 0 <= p < math.inf or p != int(p):
        raise InputError(f"moment({p}): the order must be a whole number, 0 or more")
    return measure.integrals(measure.nodes ** int(p))


def _energy(measure: Atoms, a: float, b: float) -> Array:
    return measure.n * measure.integrals(measure.nodes**2 * measure.inside(a, b))


def _effective_dimension(measure: Atoms, damping: float) -> Array:
    if not damping > 0:
        raise InputError(f"effective_dimension(damping={damping}): damping must be positive")
    positive = np.maximum(measure.nodes, 0.0)
    return measure.n * measure.integrals(positive / (positive + damping))


def _strictly_below(measure: Atoms, x: float) -> Array:
    return measure.integrals((measure.nodes < x).astype(float))


def _negative_fraction(measure: Atoms, threshold: float) -> Array:
    if not threshold >= 0:
        raise InputError(f"negative_fraction(threshold={threshold}): must be at least 0")
    return _strictly_below(measure, -threshold)


def _log_determinant(measure: Atoms, damping: float) -> Array:
    if not measure.nodes[0] + damping > 0:
        raise InputError(
            f"log_determinant(damping={damping}): lambda_min = {measure.nodes[0]:.6g}, so "
            f"H + damping I is not positive definite; use damping > {-measure.nodes[0]:.6g}"
        )
    return measure.n * measure.integrals(np.log(measure.nodes + damping))


# -- answers that are not the mean over the probes ---------------------------------------------


def _mean(per_probe: Array) -> float:
    return float(per_probe.mean(axis=0))


def _quantile(measure: Atoms, q: float) -> float:
    if not 0 <= q <= 1:
        raise InputError(f"quantile({q}): the share q must lie in [0, 1]")
    return float(measure.nodes[measure.node_at(q)])


def _clipped_dimension(measure: Atoms, damping: float) -> float:
    """The effective dimension; warns where eigenvalues below zero were counted as 0."""
    value = _mean(_effective_dimension(measure, damping))
    rounding = NEAREST * np.abs(measure.nodes).max()
    clipped = _mean(_strictly_below(measure, -rounding))
    if clipped > 0:
        warnings.warn(
            f"effective_dimension: {clipped:.3g} of the eigenvalues are negative (down to "
            f"{measure.nodes[0]:.3g}) and counted as 0",
            stacklevel=4,
        )
    return value


# -- what eigenpairs answer --------------------------------------------------------------------


def _within(found: outliers.Within) -> Answer:
    return {"value": found.value, "interval": [found.low, found.high]}


def _whole(k: float) -> int:
    if k != int(k):
        raise InputError(f"{k:g}: expected the number of an eigenvalue, such as 10")
    return int(k)


def _smallest(pairs: EigenPairs) -> Answer:
    *within, sign = outliers.smallest(pairs)
    return {"value": within[0], "interval": within[1:], "sign": sign}


def _normalized(pairs: EigenPairs, k: float) -> Answer:
    found = outliers.normalized(pairs, _whole(k))
    return {"value": found.values.tolist(), "residuals": found.residuals.tolist()}


def _participation(pairs: EigenPairs, sizes: Mapping[str, int] | None) -> Answer:
    if sizes is None or pairs.vectors is None:
        missing = "eigenvectors" if pairs.vectors is None else "sizes of the parameters"
        raise InputError(f"participation: there are no {missing} beside these eigenvalues")
    layers = outliers.by_layer(sizes)
    parts = outliers.participation(pairs.vectors, layers)[::-1]
    return {
        "value": {
            layer: {"together": float(column.mean()), "each": column.tolist()}
            for layer, column in zip(layers, parts.T)
        }
    }


# -- the table ---------------------------------------------------------------------------------

_ROWS: tuple[MeasureQuery | PairsQuery, ...] = (
    MeasureQuery(
        name="density",
        about="smoothed density at the eigenvalue T, per unit eigenvalue",
        arguments=("t", "sigma2"),
        defaults=(lambda measure: measure.default_sigma2,),
        flags=("sigma2",),
        per_probe=Atoms.densities,
    ),
    MeasureQuery(
        name="mass",
        about="share of the eigenvalues in [A, B]",
        arguments=("a", "b"),
        per_probe=Atoms.masses,
        thresholds=lambda measure, a, b: (a, b, 1.0, 1.0),
        bounds=lambda measure, a, b: (0.0, 1.0),
    ),
    MeasureQuery(
        name="count",
        about="number of eigenvalues in [A, B]",
        arguments=("a", "b"),
        per_probe=lambda measure, a, b: measure.n * measure.masses(a, b),
        value=lambda measure, a, b: measure.n * _mean(measure.masses(a, b)),
        thresholds=lambda measure, a, b: (a, b, measure.n, measure.n),
        bounds=lambda measure, a, b: (0.0, measure.n),
    ),
    MeasureQuery(
        name="quantile",
        about="smallest eigenvalue t with at least the share Q of all in (-inf, t]",
        arguments=("q",),
        inverse_of="mass",
        value=_quantile,
    ),
    MeasureQuery(
        name="moment",
        about="tr(H^P) / n, the mean of the eigenvalues' P-th powers",
        arguments=("p",),
        per_probe=_moment,
        degree=lambda measure, p: int(p),
        bounds=lambda measure, p: INFINITE if p % 2 else (0.0, math.inf),
    ),
    MeasureQuery(
        name="energy",
        about="sum of the squared eigenvalues in [A, B]",
        arguments=("a", "b"),
        per_probe=_energy,
        thresholds=lambda measure, a, b: (a, b, measure.n * a * a, measure.n * b * b),
    ),
    MeasureQuery(
        name="trace",
        about="sum of the eigenvalues",
        per_probe=lambda measure: measure.n * _moment(measure, 1),
        value=lambda measure: measure.n * _mean(_moment(measure, 1)),
        degree=lambda measure: 1,
        bounds=lambda measure: INFINITE,
    ),
    MeasureQuery(
        name="frobenius_norm",
        about="root of the sum of the squared eigenvalues",
        square=("energy", INFINITE),
        degree=lambda measure: 2,
        value=lambda measure: math.sqrt(measure.n * _mean(_moment(measure, 2))),
    ),
    MeasureQuery(
        name="effective_dimension",
        about="sum of lambda / (lambda + DAMPING), negative eigenvalues counted as 0",
        arguments=("damping",),
        per_probe=_effective_dimension,
        value=_clipped_dimension,
        bounds=lambda measure, damping: (0.0, measure.n),
    ),
    MeasureQuery(
        name="negative_fraction",
        about="share of the eigenvalues below -THRESHOLD",
        arguments=("threshold",),
        defaults=(0.0,),
        per_probe=_negative_fraction,
        thresholds=lambda measure, threshold: (
            *(-math.inf, np.nextafter(-threshold, -np.inf)),
            *(1.0, 1.0),
        ),
        bounds=lambda measure, threshold: (0.0, 1.0),
    ),
    MeasureQuery(
        name="log_determinant",
        about="log det(H + DAMPING I); of eigenpairs together with a density",
        arguments=("damping",),
        defaults=(0.0,),
        per_probe=_log_determinant,
        bounds=lambda measure, damping: INFINITE,
        refines_pairs=True,
    ),
    PairsQuery(
        name="eigenvalue",
        about="the K-th largest eigenvalue",
        arguments=("k",),
        answer=lambda pairs, sizes, k: _within(outliers.eigenvalue(pairs, _whole(k))),
    ),
    PairsQuery(
        name="eigenvalues",
        about="all eigenvalues that were computed, with their residuals",
        answer=lambda pairs, sizes: {
            "value": pairs.values.tolist(),
            "residuals": pairs.residuals.tolist(),
        },
    ),
    PairsQuery(
        name="smallest",
        about="the smallest eigenvalue, and its sign",
        answer=lambda pairs, sizes: _smallest(pairs),
    ),
    PairsQuery(
        name="outlier_ratio",
        about="lambda_1 / lambda_K",
        arguments=("k",),
        answer=lambda pairs, sizes, k: _within(outliers.outlier_ratio(pairs, _whole(k))),
    ),
    PairsQuery(
        name="condition_number",
        about="condition number of H + DAMPING I",
        arguments=("damping",),
        answer=lambda pairs, sizes, damping: _within(outliers.condition_number(pairs, damping)),
    ),
    PairsQuery(
        name="normalized",
        about="all eigenvalues in units of the K-th largest",
        arguments=("k",),
        answer=lambda pairs, sizes, k: _normalized(pairs, k),
    ),
    PairsQuery(
        name="participation",
        about="part of the eigenvectors' squares in each layer",
        answer=lambda pairs, sizes: _participation(pairs, sizes),
    ),
)

OF_MEASURE: dict[str, MeasureQuery] = {
    row.name: row for row in _ROWS if isinstance(row, MeasureQuery)
}
OF_PAIRS: dict[str, MeasureQuery | PairsQuery] = {
    row.name: row for row in _ROWS if isinstance(row, PairsQuery) or row.refines_pairs
}


# -- evaluation --------------------------------------------------------------------------------


def evaluate(measure: Atoms, query: str, *args: Any) -> Any:
    """The answer of ``measure``: a float, or an array of the shape of the first argument.

    Raises:
        InputError: no such query, or arguments that it does not take.
    """
    row, args = bind(measure, query, args, {})
    if row.value is not None:
        return row.value(measure, *args)
    return per_probe(measure, row, *args).mean(axis=0)


def per_probe(measure: Atoms, row: MeasureQuery, *args: Any) -> Array:
    """(probe, ...): what each probe alone answers; their scatter is the answer's.

    Of a query that is the root of another, what scatters as it does: d sqrt(x) = dx / (2 sqrt(x)).
    """
    if row.per_probe is not None:
        return row.per_probe(measure, *args)
    if row.square is None:
        raise InputError(f"{row.name} is not a mean over the probes: no probe alone answers it")
    name, at = row.square
    norm = evaluate(measure, row.name, *args)
    square = per_probe(measure, OF_MEASURE[name], *at)
    return square / (2 * norm) if norm else np.zeros(measure.num_probes)


def at_nodes(
    measure: Atoms, row: MeasureQuery, *args: Any, here: slice = slice(None), shift: float = 0.0
) -> Array:
    """(k, ...): f(node + shift) at these nodes: what a probe answers that sees one of them alone.

    Of a query that is a mean over the probes.
    """
    nodes = measure.nodes[here] + shift
    alone = replace(
        measure,
        nodes=nodes,
        weights=np.eye(len(nodes)),
        residuals=measure.residuals[here],
        certified=measure.certified[here],
        rules=(),
        held_out=None,
        replicates=None,
    )
    return per_probe(alone, row, *args)


def bind(
    measure: Atoms, query: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[MeasureQuery, Arguments]:
    """The query's row, and its arguments in their order, with the defaults of ``measure``.

    Raises:
        InputError: no such query, or arguments that it does not take.
    """
    row = OF_MEASURE.get(query)
    if row is None:
        raise InputError(
            f"no such query: {query!r}; expected one of {', '.join(sorted(OF_MEASURE))}"
        )
    try:
        bound = row.signature.bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(row.arguments) or "no arguments"
        raise InputError(f"{query} takes {names}: {error}") from None
    bound.apply_defaults()
    least = len(row.arguments) - len(row.defaults)
    defaults = (*(None,) * least, *row.defaults)
    return row, tuple(
        default(measure) if callable(default) and value in (None, default) else value
        for value, default in zip(bound.args, defaults)
    )
