"""What was found, and what to beware of: one sentence each, from results and what files store.

A sentence stands on what the result holds with its error, as the queries say it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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
from hessian_spectrum.landscape.results.critical_points import KINDS
from hessian_spectrum.plotting.certified import certified_eigenvalues
from hessian_spectrum.plotting.density_views import resolution
from hessian_spectrum.reporting.numbers import counted, number, percent
from hessian_spectrum.reporting.source import Source
from hessian_spectrum.spectral import outliers
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.queries import LEFT_OUT

SHARP, SMALL = 0.1, 0.001  # of |lambda|max: what counts as large, and as clearly negative
BATCH_NORM = {
    "eval": "their running statistics",
    "train": "the statistics of each minibatch",
    "recalibrate": "the statistics of all the data at these parameters",
}


@dataclass(frozen=True)
class Finding:
    """A sentence; ``beware``: it limits what the numbers mean."""

    text: str
    beware: bool = False


def of_result(result: Any, operator: str = "hessian") -> list[Finding]:
    """Of one result, by its kind; none of a kind that has no sentences of its own.

    Args:
        operator: which matrix a spectrum is of, as ``--operator`` names it.
    """
    for kind, said in _OF_KIND.items():
        if isinstance(result, kind):
            return list(said(result))
    for kind, spectral in _OF_SPECTRA.items():
        if isinstance(result, kind):
            return list(spectral(result, operator))
    return []


def of_run(source: Source) -> list[Finding]:
    """What to beware of in all results of a file: its state, its data, its arithmetic."""
    return list(_of_run(source))


def _beware(text: str) -> Finding:
    return Finding(text, beware=True)


# -- a file --------------------------------------------------------------------------------------


def _of_run(source: Source) -> Iterator[Finding]:
    run, config = source.run, source.config_of(next(iter(source.run), ""))
    if not run.finished:
        yield _beware(
            "This run is not finished: values that were not computed yet are missing, and those "
            "that are there will change. The same command with --resume continues it."
        )
    if not len(run):
        yield _beware("The file holds no result yet.")
    limit = config.get("limit")
    if limit:
        yield _beware(
            f"Only the first {number(limit)} samples were used (limit = {limit}); other data give "
            "other numbers."
        )
    norm = run.plan.get("batch_norm", config.get("batch_norm"))
    if norm in BATCH_NORM:
        yield _beware(
            f"BatchNorm layers, where the network has any, normalize by {BATCH_NORM[norm]} "
            f"(batch_norm = {norm}). The choice can change eigenvalues many times over."
        )
    if run.plan.get("dropout", "off") == "frozen":
        yield _beware("Dropout is frozen: one fixed mask a layer, which is part of the loss.")
    yield from _noise_floor(run)


def _noise_floor(run: Mapping[str, Any]) -> Iterator[Finding]:
    values = run.get("values")
    values = values if isinstance(values, Mapping) else {}
    noise = max(_number(values, "product_noise"), _number(values, "product_repeat_error"))
    largest = max(
        (float(np.abs(m.nodes).max()) for m in run.values() if isinstance(m, SpectralMeasure)),
        default=math.nan,
    )
    if noise > 0 and math.isfinite(largest):
        yield _beware(
            f"Products with the matrix are off by {number(noise, 2)} of |lambda|max: eigenvalues "
            f"below about {number(noise * largest, 2)} lie in that noise."
        )
    error = _number(values, "arithmetic_error")
    if error > 0:
        yield _beware(
            f"Products in float64 differ by {number(error, 2)} for all eigenpairs together, which "
            "is counted in the residual of each."
        )


def _number(values: Mapping[str, Any], name: str) -> float:
    found = values.get(name, 0.0)
    return float(found) if isinstance(found, (int, float)) and math.isfinite(found) else 0.0


# -- spectra -------------------------------------------------------------------------------------


def _density(measure: SpectralMeasure, operator: str) -> Iterator[Finding]:
    low, high = measure.support
    scale = max(abs(low), abs(high))
    yield Finding(
        f"The largest of {number(measure.n)} eigenvalues is {number(high)} (one lies within "
        f"{number(measure.residuals[-1], 2)}), the smallest {number(low)} (within "
        f"{number(measure.residuals[0], 2)})."
    )
    if scale > 0:
        yield Finding(
            f"{number(measure.count(SHARP * scale, math.inf))} eigenvalues are at least 10 % of "
            f"|lambda|max{_interval(measure, 'count', SHARP * scale, math.inf)}; the trace is "
            f"{number(measure.trace)}{_interval(measure, 'trace')}."
        )
    known = certified_eigenvalues(measure)
    if known.places.size:
        yield Finding(
            f"{number(known.counts.sum())} eigenvalues are certified one by one; the density "
            "describes the rest."
        )
    yield from _negative(measure, low, scale, operator)
    yield from _density_limits(measure)


def _negative(
    measure: SpectralMeasure, low: float, scale: float, operator: str
) -> Iterator[Finding]:
    if low + measure.residuals[0] < 0:
        share = measure.negative_fraction(SMALL * scale)
        yield _beware(
            f"Negative curvature: an eigenvalue is at most {number(low + measure.residuals[0])}. "
            f"{percent(share)} of the eigenvalues are below \u22120.1 % of |lambda|max"
            f"{_interval(measure, 'negative_fraction', SMALL * scale, share=True)}."
            f"{_no_minimum(operator)}"
        )
    elif low < 0:
        yield _beware(
            f"The sign of the smallest eigenvalue is open: {number(low)}, give or take "
            f"{number(measure.residuals[0], 2)}."
        )


def _density_limits(measure: SpectralMeasure) -> Iterator[Finding]:
    if measure.num_probes < 2:
        yield _beware("There is one probe alone, so no error of the density is known.")
    else:
        error = measure.density_error()
        if error.truncation > max(error.noise, 1e-6):
            yield _beware(
                "Truncation: the last steps of the recurrence changed the density more "
                f"({number(error.truncation, 2)} in L1) than the probes differ "
                f"({number(error.noise, 2)}). More --num-steps would resolve it."
            )
        elif error.total > 0.1:
            yield _beware(
                f"The expected L1 error of the density is {number(error.total, 2)}; its integral "
                "is 1. More --num-products lower it."
            )
    floor = resolution(measure)
    share = float(measure.masses(-floor, floor).mean())
    if share > 0.01:
        yield _beware(
            f"Noise floor: {percent(share)} of the eigenvalues are at most {number(floor, 2)} in "
            "size, where residuals leave open their sign and size."
        )
    known = measure.arithmetic
    if known is not None and not known.compared_with_float64:
        yield _beware(f"{LEFT_OUT[0].upper()}{LEFT_OUT[1:]}.")


def _interval(measure: SpectralMeasure, query: str, *args: float, share: bool = False) -> str:
    low, high = measure.interval(query, *args)
    if math.isnan(low):
        return ""
    told = percent if share else number
    return f" (95 % interval {told(low)} to {told(high)})"


def _eigenpairs(pairs: EigenPairs, operator: str) -> Iterator[Finding]:
    if not len(pairs):
        return
    done = int(np.count_nonzero(pairs.converged))
    ends = f"the largest {number(pairs.values[-1])} (within {number(pairs.residuals[-1], 2)})"
    if pairs.num_lower:
        ends += f", the smallest {number(pairs.values[0])} (within {number(pairs.residuals[0], 2)})"
    yield Finding(f"{counted(len(pairs), 'eigenpair')}, {done} of them converged: {ends}.")
    ratio = outliers.outlier_ratios([pairs])[0]
    if math.isfinite(ratio.value):
        yield Finding(
            f"lambda_1 / lambda_10 is {number(ratio.value)}: how far the largest stands out."
        )
    if pairs.num_lower:
        sign = outliers.smallest(pairs)
        if sign.verdict == "negative":
            yield _beware(
                f"Negative curvature: the smallest eigenvalue is {number(sign.value)}, below 0 for "
                f"certain.{_no_minimum(operator)}"
            )
        elif sign.verdict == "undecided":
            yield _beware(
                f"The sign of the smallest eigenvalue is undecided: {number(sign.low)} to "
                f"{number(sign.high)}."
            )
    if done < len(pairs):
        open_ = pairs.residuals[~pairs.converged]
        yield _beware(
            f"Not converged: {len(pairs) - done} of {len(pairs)} eigenpairs, with residuals up to "
            f"{number(open_.max(), 2)}. More --max-products with --resume, or a larger --tol."
        )


def _no_minimum(operator: str) -> str:
    return " The point is no minimum of this loss." if operator == "hessian" else ""


# -- gradients -----------------------------------------------------------------------------------


def _alignment(found: Alignment) -> Iterator[Finding]:
    for size, mean in list(zip(found.batch_sizes, found.mean()))[:: max(1, len(found.mean()) - 1)]:
        of_top = "" if math.isnan(found.top) else f", {percent(mean / found.top)} of lambda_1"
        yield Finding(
            f"Along gradients of minibatches of {number(size)} the curvature is {number(mean)} on "
            f"average{of_top}."
        )
    if (found.counts() < 2).any():
        yield _beware("Of some batch sizes there is one minibatch alone, so no scatter is known.")


def _noise(found: Noise) -> Iterator[Finding]:
    for k in found.dimensions.tolist():
        share = found.mean_gradient_share(k)
        yield Finding(
            f"The top {k} eigenvectors of the Hessian hold {percent(share[-1])} of |g|^2 of "
            f"minibatches of {number(found.batch_sizes[-1])}; their subspace and that of the "
            f"gradients' covariance overlap by {number(found.subspace_overlap(k), 3)} of 1."
        )
    if math.isnan(found.trace) or math.isnan(found.noise_trace):
        yield _beware("A trace is not known: shares of it cannot be told.")


# -- points, paths and planes --------------------------------------------------------------------


def _invalid(result: Any, where: str) -> Iterator[Finding]:
    loss = np.asarray(result.values["loss"]) if "loss" in result.values else np.empty(0)
    bad = int((~np.isfinite(loss)).sum())
    if bad:
        yield _beware(f"At {bad} of {loss.size} {where} the loss is not finite.")


def _norm(result: Any) -> Iterator[Finding]:
    norm = result.about.get("batch_norm", "none")
    if norm in BATCH_NORM:
        yield _beware(f"BatchNorm normalizes by {BATCH_NORM[norm]} (batch_norm = {norm}).")


def _curve(curve: Curve) -> Iterator[Finding]:
    if np.isfinite(curve.loss).any():
        least = curve.minimum()
        yield Finding(
            f"The loss on the path is {number(least.value)} to "
            f"{number(curve.loss[np.isfinite(curve.loss)].max())}; smallest at "
            f"{number(least.place[0])}."
        )
    if "ends" in curve.about and curve.holds_ends and len(curve.t) > 2:
        height = curve.barrier()
        if height > 0:
            yield Finding(f"A barrier of {number(height)} stands above the line between the ends.")
        elif height == 0:
            yield Finding("No point between the ends is above the line between their losses.")
    yield from _invalid(curve, "points")
    yield from _norm(curve)


def _surface(surface: Surface) -> Iterator[Finding]:
    name = "ratio" if "ratio" in surface.values else "loss"
    values = surface.values[name]
    finite = values[np.isfinite(values)]
    shape = " x ".join(map(str, surface.shape))
    if finite.size:
        least = surface.minimum(name)
        place = ", ".join(number(x) for x in least.place)
        what = "|smallest / largest eigenvalue|" if name == "ratio" else "the loss"
        yield Finding(
            f"On {shape} points {what} is {number(least.value)} to {number(finite.max())}; "
            f"smallest at ({place})."
        )
    if name == "ratio" and "smallest" in surface.values:
        lowest = surface.values["smallest"]
        share = float((lowest[np.isfinite(lowest)] < 0).mean()) if np.isfinite(lowest).any() else 0
        if share:
            yield _beware(f"Negative curvature at {percent(share)} of the points that are known.")
    if "converged" in surface.values:
        open_ = int((surface.values["converged"] == 0).sum())
        if open_:
            yield _beware(
                f"Not converged at {open_} points: more --max-products, or a larger --tol."
            )
    yield from _invalid(surface, "points")
    yield from _norm(surface)


def _trajectory(found: Trajectory) -> Iterator[Finding]:
    shares = found.explained_variance[:2].sum() if len(found.explained_variance) else math.nan
    yield Finding(
        f"{counted(len(found.steps), 'iterate')}: the last is "
        f"{number(found.distance_from_start[-1])} from the start, and at most "
        f"{number(np.max(found.beta))} off the straight line; two components hold "
        f"{percent(float(shares))} of the variance."
    )
    if len(found.steps) > 2:
        yield _beware(
            "A random walk in many dimensions has 76 % of its variance in two components, too: a "
            "smooth way in their plane is no sign of a simple one."
        )
    yield from _invalid(found, "iterates")


def _track(found: Track) -> Iterator[Finding]:
    if not len(found):
        yield _beware("The track has no records yet.")
        return
    known = found.values.get("lambda_max")
    if known is not None and np.isfinite(known).any():
        finite = known[np.isfinite(known)]
        yield Finding(
            f"{counted(len(found), 'record')}, steps {number(found.steps[0])} to "
            f"{number(found.steps[-1])}: the sharpness goes from {number(finite[0])} to "
            f"{number(finite[-1])}, at most {number(finite.max())}."
        )
        threshold = found.values.get("threshold")
        seen = found.values.get("preconditioned", known)
        if threshold is not None and np.isfinite(threshold).any():
            above = int((seen > threshold).sum())
            yield Finding(f"At {above} of {len(found)} records it is above the threshold.")
    if found.skipped.size:
        yield _beware(f"{counted(found.skipped.size, 'record')} were skipped to save time.")


def _barriers(found: Barriers) -> Iterator[Finding]:
    count = found.count()
    highest = f", the highest {number(np.nanmax(found.rise))}" if count.barriers else ""
    yield Finding(
        f"{count.barriers} barriers on {count.segments} segments between iterates{highest}."
    )
    if count.unknown:
        yield _beware(f"On {counted(count.unknown, 'segment')} a loss is not finite.")


def _critical(found: CriticalPoints) -> Iterator[Finding]:
    if len(found) == 1:
        yield Finding(str(found[0]), beware=found.count("undecided") == 1)
        return
    told = [f"{found.count(kind)} {kind}" for kind in KINDS if found.count(kind)]
    yield Finding(f"{len(found)} points: {', '.join(told)}.")
    if found.count("undecided"):
        yield _beware(f"{found.count('undecided')} points are undecided; the table says why.")


def _functional(found: FunctionalDistances) -> Iterator[Finding]:
    above = found.distance[np.triu_indices(len(found.names), 1)]
    if above.size:
        yield Finding(
            f"{counted(len(found.names), 'network')}; as functions they are {number(above.min())} "
            f"to {number(above.max())} apart (root mean square of the outputs)."
        )


def _asymmetry(found: Asymmetry) -> Iterator[Finding]:
    steeper = int((np.abs(found.backward).mean(1) > np.abs(found.forward).mean(1)).sum())
    yield Finding(
        f"Along {steeper} of {counted(len(found.forward), 'direction')} the loss is steeper "
        "backwards than forwards, on average over the distances."
    )


def _averaging(found: AveragingBias) -> Iterator[Finding]:
    yield Finding(
        f"The mean of the iterates has loss {number(found.loss_at_average)}, the minimum "
        f"{number(found.loss_at_minimum)}, and the iterates {number(np.mean(found.losses))} on "
        "average."
    )


_OF_KIND: dict[type, Callable[[Any], Iterator[Finding]]] = {
    Alignment: _alignment,
    Noise: _noise,
    Curve: _curve,
    Surface: _surface,
    Trajectory: _trajectory,
    Track: _track,
    Barriers: _barriers,
    CriticalPoints: _critical,
    FunctionalDistances: _functional,
    Asymmetry: _asymmetry,
    AveragingBias: _averaging,
}
_OF_SPECTRA: dict[type, Callable[[Any, str], Iterator[Finding]]] = {
    SpectralMeasure: _density,
    EigenPairs: _eigenpairs,
}
