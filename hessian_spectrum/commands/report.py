"""Summaries of estimates and results, as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessian_spectrum.analyses.alignment_result import Alignment
from hessian_spectrum.analyses.noise_result import Noise
from hessian_spectrum.config.problem import ZOO_FIELDS
from hessian_spectrum.landscape.results import (
    Barriers,
    CriticalPoints,
    Curve,
    MatchedLines,
    Pairs,
    Surface,
    Trajectory,
)
from hessian_spectrum.landscape.results.critical_points import KINDS
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure

if TYPE_CHECKING:
    from hessian_spectrum.landscape.parameter_points import Points
    from hessian_spectrum.landscape.point_passes import PointPlan
    from hessian_spectrum.loss.evaluator import Evaluator
    from hessian_spectrum.planning.product_planner import Estimate
    from hessian_spectrum.storage.run_file import Run
    from hessian_spectrum.storage.writer_lock import Writer


LONG = 20  # tables with more entries are counted; --json has them
SHOWN = 100  # arrays with more entries are described by their shape
_PLACES = {"device": "on the device", "host": "in the host's memory", "disk": "on disk"}


def estimate(
    estimate: Estimate,
    evaluator: Evaluator,
    values: dict[str, float],
    most: bool = False,
    limit: int | None = None,
) -> str:
    """The estimated cost of a run, before it starts.

    Args:
        estimate: of the planner.
        values: "loss" and "gradient_norm".
        most: a target may end the run earlier, so the products are an upper bound.
        limit: the products are what such runs take as a rule, and may become so many.
    """
    plan = estimate.plan
    how = [f"{plan.chunk or 'all'} vectors at once"]
    how += [f"minibatches of {plan.batch_size}"] if plan.batch_size else []
    how += ["linear maps kept between steps"] if plan.keep else []
    how += [f"in {plan.precision}"] if plan.precision else []
    bound = "at most " if most else "as a rule " if limit else ""
    up_to = f", and up to {limit:,} where pairs converge slowly" if limit else ""
    chosen = "measured" if estimate.calibrated else "by default, since the run is short"
    lines = [
        f"loss {values['loss']:.6g}, gradient norm {values['gradient_norm']:.3g}; "
        f"{evaluator.n:,} parameters, {evaluator.num_samples:,.0f} samples, "
        f"{evaluator.world.size} rank(s)",
        f"{bound}{estimate.products:,} products in {estimate.passes} passes over the data, about "
        f"{duration(estimate.total)}{_parts(estimate)}{up_to}",
        f"a rank needs {_bytes(estimate.basis)} for Krylov vectors ({_PLACES[estimate.place]}) and "
        f"{_bytes(estimate.working)} for products, of {_bytes(estimate.budget)}",
        estimate.how or f"products by {plan.mode} ({', '.join(how)}; {chosen})",
    ]
    for name, reason in estimate.refused.items():
        lines.append(f"  not by {name}: {reason}")
    return "\n".join(lines)


def _parts(estimate: Estimate) -> str:
    """What the time is spent on, where it is not the products alone."""
    parts = {
        "products": estimate.seconds,
        estimate.what_beside: estimate.beside,
        estimate.what_after: estimate.after,
    }
    told = [f"{name} {duration(s)}" for name, s in parts.items() if s >= 0.05 * estimate.total]
    return f" ({', '.join(told)})" if len(told) > 1 and estimate.total >= 1 else ""


def job_minutes(seconds: float) -> str:
    """The time limit of a batch job for a run that is expected to take so long."""
    minutes = math.ceil(1.5 * seconds / 60) + 3  # start-up, and the signal before the limit
    return f"a batch job of it: submit --minutes {minutes}"


def points_estimate(
    points: Points,
    plan: PointPlan,
    seconds: float | None,
    num_groups: int,
    evaluator: Evaluator,
    others: Mapping[str, float],
) -> str:
    """The estimated cost of values at many points, before they are computed.

    Args:
        seconds: of all; None where they were not measured.
        others: those of what is computed beside the values, by name.
    """
    count, ev = len(points), evaluator
    group = _groups(num_groups, ev)
    took = "time unknown" if seconds is None else f"about {duration(seconds)}"
    took += "".join(f", of which {name} {duration(s)}" for name, s in others.items())
    how = [f"{plan.together} in one call" if plan.together > 1 else "one after another"]
    how += ["first layers by linearity"] if plan.superposed else []
    how += [f"minibatches of {plan.batch_size}"] if plan.batch_size else []
    how += ["images in channels-last order"] if plan.channels_last else []
    how += ["BatchNorm folded into convolutions"] if plan.folded else []
    itemsize = ev.dtype.itemsize
    size = len(points.vectors) * ev.n * itemsize + plan.chunk * ev.n * (8 + itemsize)
    return (
        f"{count:,} points of {ev.n:,} parameters on {ev.num_samples:,.0f} samples, {group}: "
        f"{took}\n"
        f"each pass over the data: {min(plan.chunk, count)} points, {', '.join(how)}; a rank needs "
        f"{_bytes(size)} for parameter vectors"
    )


def map_estimate(estimate: Estimate, count: int, num_groups: int, evaluator: Evaluator) -> str:
    """The estimated cost of eigenvalues at many points, before they are computed."""
    ev, seconds = evaluator, estimate.seconds * count / num_groups
    return (
        f"{count:,} points of {ev.n:,} parameters on {ev.num_samples:,.0f} samples, "
        f"{_groups(num_groups, ev)}: with {estimate.products} products at each about "
        f"{duration(seconds)}\n"
        f"products by {estimate.plan.mode}; a rank needs {_bytes(estimate.basis)} for Krylov "
        f"vectors and {_bytes(estimate.working)} for products, of {_bytes(estimate.budget)}"
    )


def _groups(num_groups: int, evaluator: Evaluator) -> str:
    ranks = f"{evaluator.world.size} rank(s)"
    return ranks if num_groups == 1 else f"{num_groups} groups of {ranks}"


def curvature_map(result: Surface) -> str:
    """A map of eigenvalues in a few lines."""
    v = result.values
    known = np.isfinite(v["smallest"])
    lines = [f"points                   {result.loss.size}, with {int(known.sum())} computed"]
    for name, label in (
        ("largest", "largest eigenvalue"),
        ("smallest", "smallest eigenvalue"),
        ("ratio", "|smallest / largest|"),
        ("products", "products at a point"),
    ):
        found = v[name][known]
        if found.size:
            lines.append(
                f"{label:<24} {found.min():.6g} to {found.max():.6g}   "
                f"(median {np.median(found):.4g})"
            )
    open_ = int((v["converged"][known] == 0).sum())
    if open_:
        lines.append(
            f"not converged            {open_} points: more --max-products, or a larger --tol"
        )
    if result.num_invalid:
        lines.append(f"not finite               {result.num_invalid} points")
    return "\n".join(lines)


def pairs(result: Pairs) -> str:
    """A line for each pair of networks."""
    width = max(len(f"{a}, {b}") for a, b in result.lines)
    lines = [
        f"{'pair':<{width}}   distance   disagreement   barrier on the line   "
        "least loss of the triangle"
    ]
    found = result.functional
    for i, j in combinations(range(len(result.names)), 2):
        pair = result.names[i], result.names[j]
        line, triangle = result.lines[pair], result.triangles.get(pair)
        least = "no common start"
        if triangle is not None:
            finite = triangle.loss[np.isfinite(triangle.loss)]
            least = f"{finite.min():.4g}" if finite.size else "not finite"
        lines.append(
            f"{', '.join(pair):<{width}}   {found.distance[i, j]:<8.4g}   "
            f"{found.disagreement[i, j]:<12.1%}   {line.barrier():<19.4g}   {least}"
        )
    return "\n".join(lines)


def matched_lines(found: MatchedLines) -> str:
    """Both barriers, and what the matching did."""
    did = found.matching
    lines = [
        f"matched by {did['method']:<14}{did['num_moved']} units moved, distance "
        f"{did['distance_before']:.6g} before and {did['distance']:.6g} after"
    ]
    for label, curve in found.curves.items():
        lines.append(f"{label}:")
        for name, array in curve.values.items():
            if np.isfinite(array).any():
                low, high = np.nanmin(array), np.nanmax(array)
                lines.append(f"  {name.replace('_', ' '):<22} {low:.6g} to {high:.6g}")
            if name.endswith("loss") and curve.holds_ends:
                above = curve.barrier(name, "max")
                lines.append(
                    f"  {f'barrier of the {name}'.replace('_', ' '):<22} {curve.barrier(name):.6g}"
                    f"   ({above:.6g} above the higher end)"
                )
    return "\n".join(lines)


def values(result: Curve | Surface | Trajectory, center: dict[str, float]) -> str:
    """A curve, a surface or a trajectory in a few lines."""
    lines = [f"loss at the parameters   {center['loss']:.6g}"]
    axes = next(names for names in (("t",), ("a", "b"), ("steps",)) if hasattr(result, names[0]))
    for name, array in result.values.items():
        finite = array[np.isfinite(array)]
        if not finite.size:
            continue
        if name == "converged":
            open_ = int((finite == 0).sum())
            lines += [f"not converged            {open_} points"] if open_ else []
            continue
        best, sign = ("largest", -1) if name.endswith("accuracy") else ("smallest", 1)
        lowest = np.unravel_index(
            np.where(np.isfinite(array), sign * array, np.inf).argmin(), array.shape
        )
        place = ", ".join(
            f"{result.about.get('axis', axis)} = {getattr(result, axis)[i]:.4g}"
            for axis, i in zip(axes, lowest)
        )
        label = name.replace("_", " ")
        lines.append(f"{label:<24} {finite.min():.6g} to {finite.max():.6g}   ({best} at {place})")
    if isinstance(result, Curve) and result.holds_ends and len(result.t) > 2:
        first, last = result.ends
        lines.append(
            f"barrier of the loss      {result.barrier():.6g}   (above the line between the ends, "
            f"t = {first:.4g} and {last:.4g})"
        )
    loss = np.asarray(result.values["loss"])
    if not np.isfinite(loss).all():
        invalid = int((~np.isfinite(loss)).sum())
        lines.append(f"not finite               {invalid} of {loss.size} points")
    if isinstance(result, Trajectory):
        shares = ", ".join(f"{share:.1%}" for share in result.explained_variance[:2])
        lines += [
            f"distance from the start  {result.distance_from_start[-1]:.6g}",
            f"off the straight line    {result.beta.max():.6g} at most",
            f"principal components     {shares} of the variance",
        ]
    return "\n".join(lines)


def barriers(result: Barriers, center: dict[str, float]) -> str:
    """The segments between iterates in a few lines, and one line for each of the first epochs."""
    lines = [f"loss at the parameters   {center['loss']:.6g}"]
    count = result.count()
    points = len(result.t) - 2
    lines.append(f"segments                 {len(result)}, with {points} points between their ends")
    told = f"{count.barriers} of {count.segments}"
    if count.barriers:
        best = int(np.nanargmax(np.where(result.is_barrier, result.rise, np.nan)))
        axis = result.about.get("axis", "step")
        told += f"   (highest {result.rise[best]:.6g}, after {axis} {result.start[best]:g})"
    lines.append(f"barriers                 {told}")
    epochs = result.epochs
    for epoch in epochs[:LONG] if len(epochs) > 1 else ():
        found = result.count(epoch)
        lines.append(f"  in epoch {epoch:<14g} {found.barriers} of {found.segments}")
    if count.unknown:
        lines.append(f"not finite               {count.unknown} segments")
    for name, array in (
        ("height above the floor", result.height_above_floor),
        ("cosine of updates", result.cosine),
    ):
        known = array[np.isfinite(array)]
        if known.size:
            lines.append(
                f"{name:<24} {known.min():.6g} to {known.max():.6g}   (mean {known.mean():.4g})"
            )
    return "\n".join(lines)


def critical(result: CriticalPoints) -> str:
    """One sentence of one point; of several how many are of each kind, and then the first ones."""
    searches = _searches(result)
    if len(result) == 1:
        return "\n".join([*searches, str(result[0])])
    lines = [f"points                   {len(result)}", *searches]
    for kind in KINDS:
        if result.count(kind):
            of_it = result.loss[np.array(result.kinds) == kind]
            known = of_it[np.isfinite(of_it)]
            span = f"   (loss {known.min():.6g} to {known.max():.6g})" if known.size else ""
            lines.append(f"  {kind:<23}{result.count(kind)}{span}")
    lines += [f"{i:>4}  {point}" for i, point in enumerate(result) if i < LONG]
    return "\n".join(lines)


def _searches(result: CriticalPoints) -> list[str]:
    """How many searches have ended how; nothing where there was none."""
    codes, names = result.values.get("outcome"), result.about.get("outcomes", [])
    if codes is None or np.isnan(codes).all():
        return []
    counts = {name: int((codes == i).sum()) for i, name in enumerate(names)}
    told = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return [f"searches                 {told}"]


def of_each(found: Mapping[str, Any], searched: bool) -> list[str]:
    """How many results of each kind there are.

    Args:
        found: by key.
        searched: the eigenpairs are those of a search, which has a limit, not Ritz values.
    """
    kinds = {"density": "densities", "eigenpairs": "eigenpairs", "alignment": "alignments"}
    lines = []
    for kind, name in kinds.items():
        results = [result for key, result in found.items() if key.partition("/")[0] == kind]
        if results:
            lines.append(f"{name:<24} {len(results)}, one a checkpoint")
    pairs = [result for result in found.values() if isinstance(result, EigenPairs)]
    open_ = sum(not result.converged.all() for result in pairs)
    if open_ and searched:
        lines.append(f"not converged            at {open_} checkpoints: more --max-products")
    return lines


def density(
    measure: SpectralMeasure,
    extremes: EigenPairs,
    values: dict[str, float],
    sigma2: float | None = None,
    target_error: float | None = None,
) -> str:
    """A density run in a few lines, each number with its error."""
    low, high = extremes.values
    low_error, high_error = extremes.residuals
    scale = max(abs(low), abs(high))
    sharp = [f for f in (0.1, 0.01) if f * scale > 0]
    lines = [
        f"loss                    {values['loss']:.6g}" if "loss" in values else "",
        f"gradient norm           {values['gradient_norm']:.3g}"
        if "gradient_norm" in values
        else "",
        f"largest eigenvalue      {high:.6g}   (an eigenvalue lies within {high_error:.1e})",
        f"smallest eigenvalue     {low:.6g}   (an eigenvalue lies within {low_error:.1e})",
        f"trace                   {measure.trace:.6g}   ({_error(measure, 'trace')})",
    ]
    for fraction in sharp:
        count = measure.count(fraction * scale, math.inf)
        error = _error(measure, "count", fraction * scale, math.inf)
        lines.append(
            f"eigenvalues above {fraction:>4.0%}  {count:.1f} of {measure.n:,}   ({error})"
        )
    negative = measure.negative_fraction(0.001 * scale)
    lines.append(
        f"negative beyond 0.1%    {negative:.3%} of the eigenvalues   "
        f"({_error(measure, 'negative_fraction', 0.001 * scale, unit='%')}); 100% = |lambda|max"
    )
    if "product_noise" in values:
        lines.append(
            f"error of a product      {values['product_noise']:.1e} (asymmetry), "
            f"{values['product_repeat_error']:.1e} (repeated), relative"
        )
    lines += _density_error(measure, sigma2, target_error)
    return "\n".join(line for line in lines if line)


def block_densities(found: Mapping[str, SpectralMeasure], values: dict[str, float]) -> str:
    """One line a block, the largest first; of more than ``LONG`` blocks those at both ends.

    An eigenvalue of the block lies within what stands in parentheses; of a trace it is the standard
    error.
    """
    rows = sorted(found.items(), key=lambda item: -abs(item[1].nodes).max())
    lines = [
        f"loss {values['loss']:.6g}, gradient norm {values['gradient_norm']:.3g}; "
        f"{len(found)} blocks",
        f"{'block':40s} {'entries':>9s} {'smallest':>18s} {'largest':>18s} {'trace':>18s}",
    ]
    told = []
    for name, measure in rows:
        ends = zip(measure.nodes[[0, -1]], measure.residuals[[0, -1]])
        cells = [*ends, (measure.trace, measure.standard_error("trace"))]
        numbers = " ".join(f"{value:9.4g} ({error:6.1g})".rjust(18) for value, error in cells)
        told.append(f"{name:40s} {measure.n:9,} {numbers}")
    if len(told) > LONG + 1:  # a line that says so takes as much room as one block
        half = LONG // 2
        told[half:-half] = [f"... and {len(told) - 2 * half} blocks between these"]
    lines += told
    lines.append("in parentheses: an eigenvalue lies within; of traces, the probes' standard error")
    return "\n".join(lines)


def eigenpairs(pairs: EigenPairs, values: dict[str, float], products: int) -> str:
    """The pairs in a table, largest first, each with its residual."""
    done = int(pairs.converged.sum())
    lines = [
        f"loss {values['loss']:.6g}, gradient norm {values['gradient_norm']:.3g}; "
        f"{done} of {len(pairs)} pairs converged with {products:,} products",
        "eigenvalue       an eigenvalue lies within",
    ]
    for value, residual, converged in zip(*_descending(pairs)):
        lines.append(f"{value:<16.9g} {residual:.1e}{'' if converged else '   not converged'}")
    error = values["arithmetic_error"]
    if error:
        lines.append(
            f"products in float64 differ by {error:.1e} for all pairs together, which is counted "
            "in each; --certify tells how much each has"
        )
    if done < len(pairs):
        open_ = pairs.residuals[~pairs.converged]
        if error > open_.min() / 2:  # what is left is arithmetic
            lines.append(
                "  float32 limits the others, and more products do not help: --dtype float64, "
                "or a larger --tol"
            )
        else:
            lines.append("  more --max-products with --resume, or a larger --tol, for the others")
    return "\n".join(lines)


def _descending(pairs: EigenPairs) -> tuple:
    return pairs.values[::-1], pairs.residuals[::-1], pairs.converged[::-1]


def alignment(found: Alignment, values: dict[str, float]) -> str:
    """A table with one line per batch size: means over minibatches and standard deviations."""
    known = "" if math.isnan(found.top) else f"; lambda_1 = {found.top:.6g}"
    columns = {
        "batch size": [f"{size:,}" for size in found.batch_sizes],
        "minibatches": [f"{count}" for count in found.counts()],
        "mean": [f"{value:.4g}" for value in found.mean()],
        "deviation": [_or_dash(value, ".2g") for value in found.std()],
        "|g|": [f"{value:.3g}" for value in found.mean("gradient_norm")],
    }
    if known:
        columns["of lambda_1"] = [_or_dash(value, ".1%") for value in found.mean("share")]
    if np.isfinite(found.captured).any():
        span = f"|g|^2 in {len(found.eigenvalues)} eigenvectors"
        columns[span] = [_or_dash(value, ".1%") for value in found.mean("captured")]
    return "\n".join(
        [
            f"loss                    {values['loss']:.6g}",
            f"gradient norm           {values['gradient_norm']:.3g}",
            f"alignment g^T H g / |g|^2 of minibatches' gradients g{known}",
            *_table(columns),
        ]
    )


def noise(found: Noise, values: dict[str, float], pairs: Mapping[str, EigenPairs]) -> str:
    """Spectra, shares of gradients by batch size, and overlaps by dimension, each in a table.

    Args:
        pairs: of H, under "", and of the other matrices, by their labels.
    """
    spectra = {
        "matrix": ["H" if not label else label.replace("-", " ") for label in pairs],
        "smallest": [
            _or_dash(x.values[0] if x.num_lower else math.nan, ".6g") for x in pairs.values()
        ],
        **{
            f"lambda_{k}": [f"{x.values[-k]:.6g}" for x in pairs.values()]
            for k in found.dimensions.tolist()
        },
    }
    shares = {"batch size": [f"{size:,}" for size in found.batch_sizes]}
    for k in found.dimensions.tolist():
        means, errors = found.mean_gradient_share(k), found.gradient_share_error(k)
        # Of all the data there is one gradient, without error.
        texts = [f" +- {_or_dash(error, '.1%')}" if error else "" for error in errors]
        shares[f"top {k}"] = [f"{mean:.1%}{text}" for mean, text in zip(means, texts)]
    overlaps = {
        "top": [f"{k}" for k in found.dimensions],
        "overlap": [f"{found.subspace_overlap(k):.3f}" for k in found.dimensions],
        "largest angle": [
            f"{math.degrees(found.principal_angles(k)[0]):.1f} deg" for k in found.dimensions
        ],
        "v^T C v / tr C": [_or_dash(found.noise_share(k), ".1%") for k in found.dimensions],
        "u^T H u / tr H": [_or_dash(found.curvature_share(k), ".1%") for k in found.dimensions],
    }
    return "\n".join(
        [
            f"loss                    {values['loss']:.6g}",
            f"gradient norm           {values['gradient_norm']:.3g}",
            f"tr H                    {_with_error(found.trace, found.trace_error)}",
            f"tr C                    {_with_error(found.noise_trace, found.noise_trace_error)}",
            *_table(spectra),
            "share of |g|^2 in the top eigenvectors of H, mean over minibatches +- standard error",
            *_table(shares),
            "top subspaces of H (vectors v) and C (vectors u): |P_H P_C|^2 / k, angles, shares",
            *_table(overlaps),
        ]
    )


def _table(columns: Mapping[str, list[str]]) -> list[str]:
    """One line a row, under the titles."""
    return ["  ".join(cells) for cells in zip(*map(_right, columns, columns.values()))]


def _with_error(value: float, error: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.6g} +- {_or_dash(error, '.2g')}"


def _right(title: str, cells: list[str]) -> list[str]:
    width = max(map(len, [title, *cells]))
    return [cell.rjust(width) for cell in [title, *cells]]


def _or_dash(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _density_error(
    measure: SpectralMeasure, sigma2: float | None, target_error: float | None
) -> list[str]:
    sigma2 = measure.default_sigma2 if sigma2 is None else sigma2
    error = measure.density_error(sigma2)
    if math.isnan(error.total):
        return []
    lines = [
        f"error of the density    {error.total:.1e} expected (L1, smoothed with sigma2 = "
        f"{sigma2:.1e}); probes {error.noise:.1e}, last step {error.truncation:.1e}"
    ]
    if error.truncation > max(error.noise, 1e-6):
        lines.append(
            "  the last step changed more than the probes differ: more --num-steps would resolve it"
        )
    if target_error is not None and error.total > target_error:
        lines.append(
            f"  the target {target_error:g} was not reached: more --num-products or --num-steps"
        )
    return lines


def _error(measure: SpectralMeasure, query: str, *args: float, unit: str = "") -> str:
    low, high = measure.interval(query, *args) * (100 if unit == "%" else 1)
    text = f"95%: {low:.6g}{unit} to {high:.6g}{unit}"
    if math.isnan(low):
        text = "one probe: error unknown"
    varies = measure.data_error(query, *args) * (100 if unit == "%" else 1)
    return text if math.isnan(varies) else f"{text}; other data: +- {varies:.2g}{unit}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in the unit that one would say."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def running(writer: Writer, path: Path) -> str:
    """Who writes the file ``path``, and how far the run is, in one line."""
    owner, status = writer.owner, writer.status
    job = f"job {owner['job']}, " if owner.get("job") else ""
    who = f"{job}host {owner.get('host', 'unknown')}, process {owner.get('pid', 'unknown')}"
    if not status:
        return f"{path}: being written ({who}), before its first step"
    of = f" of {status['total']:,}" if status["total"] else ""
    where = f"{status['stage']} ({who}) at {status['unit']} {status['done']:,}{of}"
    saved = "nothing saved yet"
    if status["saved"] is not None:
        saved = f"saved at {status['unit']} {status['saved']:,}"
    if writer.is_stale:
        return (
            f"{path}: {where}; {saved}; its process is gone, or has been silent for "
            f"{duration(writer.silent)}: --resume continues"
        )
    left = status["seconds_left"]
    return f"{path}: {where}{'' if left is None else f', {duration(left)} left'}; {saved}"


def contents(run: Run) -> dict[str, Any]:
    """The contents of a result file as JSON values, with arrays described by their shapes."""
    return {
        "path": str(run.path),
        "created": run.created.isoformat(),
        "finished": run.finished,
        "results": {key: _shape(result) for key, result in run.items()},
        "config": run.config,
        "plan": run.plan,
        "provenance": run.provenance,
    }


def _own_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what describes the zoo's models and data, for an own problem."""
    if not config.get("problem"):
        return config
    return {name: value for name, value in config.items() if name not in ZOO_FIELDS}


def info(run: Run) -> str:
    """The contents of a result file as text: results, configuration, plan, provenance."""
    everything = contents(run)
    state = "" if run.finished else " (not finished; --resume continues)"
    lines = [f"{run.path}, written {run.created:%Y-%m-%d %H:%M} UTC{state}"]
    lines += [f"  {key}: {shape}" for key, shape in everything["results"].items()]
    everything["config"] = _own_fields(run.config)
    for name in ("config", "plan", "provenance"):
        lines += [f"{name}:", *_indented(everything[name])]
    return "\n".join(lines)


def _shape(result: SpectralMeasure | EigenPairs | Alignment | Noise | dict) -> Any:
    if isinstance(result, SpectralMeasure):
        low, high = result.support
        return (
            f"{len(result.nodes)} nodes in [{low:.6g}, {high:.6g}], {result.num_probes} probes, "
            f"n = {result.n}"
        )
    if isinstance(result, Alignment):
        sizes = ", ".join(map(str, result.batch_sizes))
        return f"batch sizes {sizes}, at most {result.num_batches} minibatches of each"
    if isinstance(result, Noise):
        dimensions = ", ".join(map(str, result.dimensions))
        return f"batch sizes {', '.join(map(str, result.batch_sizes))}, dimensions {dimensions}"
    if isinstance(result, EigenPairs):
        return f"{len(result)} eigenvalues, {int(result.converged.sum())} converged"
    if isinstance(result, CriticalPoints):
        counts = {kind: result.count(kind) for kind in KINDS}
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        return f"{len(result)} point(s): {told or 'not computed yet'}"
    if not isinstance(result, Mapping):
        return _fields(result)
    return {name: _plain(v) for name, v in result.items()}


def _fields(result: Any) -> dict[str, Any]:
    """For a result with named arrays: their shapes and the names of its values."""
    found = {}
    for name, value in vars(result).items():
        if isinstance(value, np.ndarray):
            found[name] = f"array of shape {value.shape}"
        elif name == "values":
            found[name] = ", ".join(value)
    return found


def _plain(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        return value
    return value.tolist() if np.size(value) <= SHOWN else f"array of shape {np.shape(value)}"


def _indented(fields: dict[str, Any], depth: int = 1) -> list[str]:
    lines = []
    for key, value in fields.items():
        name = _printable(key)
        if isinstance(value, dict) and len(value) > LONG:
            lines.append("  " * depth + f"{name}: {len(value)} entries")
        elif isinstance(value, dict):
            lines += ["  " * depth + f"{name}:", *_indented(value, depth + 1)]
        elif value not in (None, [], ""):
            lines.append("  " * depth + f"{name}: {_printable(value)}")
    return lines


def _printable(value: Any) -> str:
    """As text; with escapes where it could begin a line of its own, or steer a terminal."""
    text = str(value)
    return text if text.isprintable() else repr(text)
