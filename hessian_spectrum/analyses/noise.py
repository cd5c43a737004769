"""How gradients and their covariance lie in the eigenvectors of the Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms.eigenpairs import eigenpairs
from hessian_spectrum.analyses.alignment import gradient_blocks, gradients_at_once, sizes_of
from hessian_spectrum.analyses.noise_result import Array, Noise
from hessian_spectrum.analyses.top_pairs import TopPairs, squares_of
from hessian_spectrum.distributed.agreement import digest_of
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.sample_gradients import numbers
from hessian_spectrum.operators.curvature import Curvature, GradientCovariance, Hessian
from hessian_spectrum.operators.same_call import require_same_computation
from hessian_spectrum.planning.planned_operator import planned
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure

CLASSES = "classes"  # the dimension that is the number of classes
TOL = 1e-6  # of eigenpairs that are computed here


def noise(
    evaluator: Evaluator,
    dimensions: Sequence[int | str] = (1, 5, 10),
    batch_sizes: Sequence[int | str] = (100, "full"),
    num_batches: int = 50,
    *,
    operator: Curvature | None = None,
    covariance: GradientCovariance | None = None,
    pairs: EigenPairs | None = None,
    noise_pairs: EigenPairs | None = None,
    measure: SpectralMeasure | None = None,
    noise_measure: SpectralMeasure | None = None,
    seed: int = 0,
    at_once: int | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> Noise:
    """Shares of gradients and of their covariance C in the top eigenvectors of H, and overlaps.

    The share of |g|^2 in the span of the top eigenvectors, of gradients g of minibatches and of all
    the data; the overlap of the top subspaces of H and C with its principal angles; v^T C v for
    the eigenvectors v of H and u^T H u for the eigenvectors u of C. See ``Noise``.

    Args:
        dimensions: of the top subspaces; as many eigenpairs as the largest says are used.
            "classes": the largest label plus 1.
        batch_sizes: samples in a minibatch; "full" is all the data, as a single minibatch.
        num_batches: minibatches of each size, drawn as in ``alignment``.
        operator: H; default: ``Hessian(evaluator)``. All else is at its theta.
        covariance: C; default: ``GradientCovariance(evaluator)``, centred.
        pairs: eigenpairs of H that include so many of the largest; default: computed here.
        noise_pairs: those of C.
        measure: the spectral measure of H, which gives tr H; default: none, and NaN.
        noise_measure: that of C.
        at_once: gradients in one block; default: as many as a quarter of the free memory holds.
        on_chunk: called after each block with the number of minibatches done; may raise.

    Raises:
        InputError: losses of single samples are not known, or depend on the minibatch
            (``batch_norm="train"``); a size that the data does not have, more dimensions than
            eigenpairs, pairs of another matrix, an argument that differs between ranks.

    Cost: the eigenpairs; k + 1 products of H and of C for k dimensions; the gradients; 8 n k^2
    flops on each rank for the angles of each dimension. Memory: on each rank the eigenvectors,
    whole, and ``4 at_once n`` numbers.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randint(0, 2, (20,))
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), data)
        >>> found = hs.noise(ev, (1, "classes"), batch_sizes=(5, "full"), num_batches=3)
        >>> found.dimensions.tolist(), found.gradient_share(2).shape
        ([1, 2], (2, 3))
        >>> 0 <= found.subspace_overlap(2) <= 1
        True
    """
    operator = operator or Hessian(evaluator)
    covariance = covariance or GradientCovariance(evaluator, operator.theta)
    require_same_computation(
        operator,
        "noise",
        dimensions=list(dimensions),
        batch_sizes=list(batch_sizes),
        num_batches=num_batches,
        seed=seed,
        at_once=at_once,
        **{
            f"eigenvalues of {name}": None if given is None else digest_of(given.values)
            for name, given in (("pairs", pairs), ("noise_pairs", noise_pairs))
        },
    )
    sizes = sizes_of(batch_sizes, evaluator)
    chosen = dimensions_of(dimensions, evaluator)
    if not isinstance(num_batches, int) or num_batches < 1:
        raise InputError(f"num_batches={num_batches}: expected a whole number, 1 or more")
    if at_once is not None and at_once < 1:
        raise InputError(f"at_once={at_once}: expected 1 or more")
    k = max(chosen)
    pairs = pairs or eigenpairs(operator, k, "largest", TOL, seed=seed)
    noise_pairs = noise_pairs or eigenpairs(covariance, k, "largest", TOL, seed=seed)
    for name, given in (("pairs", pairs), ("noise_pairs", noise_pairs)):
        _require_largest(given, k, name)
    operator = planned(operator, k, 2, kept=2 * k)
    covariance = planned(covariance, k, 2, kept=2 * k)
    top, noise_top = TopPairs.of(operator, pairs, k), TopPairs.of(covariance, noise_pairs, k)
    assert top.vectors is not None and noise_top.vectors is not None
    layout = operator.layout
    rows = _gradients(
        evaluator, operator.theta, top.vectors, sizes, num_batches, seed, at_once, on_chunk
    )
    whole, noise_whole = (
        layout.gather(v).double().cpu().numpy() for v in (top.vectors, noise_top.vectors)
    )
    # LAPACK may round differently on another processor.
    angles = layout.world.from_first(_angles(whole, noise_whole, chosen))
    return Noise(
        batch_sizes=np.array(sizes),
        gradient_norm=rows[:, :, 0],
        deviation=rows[:, :, 1],
        cosine=rows[:, :, 2:],
        eigenvalues=top.values,
        residuals=top.residuals,
        noise_eigenvalues=noise_top.values,
        noise_residuals=noise_top.residuals,
        overlap=_summed(layout.world, top.vectors @ noise_top.vectors.T),
        noise_along=_along(covariance, top.vectors),
        curvature_along=_along(operator, noise_top.vectors),
        dimensions=np.array(chosen),
        angles=angles,
        **_traces("", measure),
        **_traces("noise_", noise_measure),
        centered=covariance.centered,
        num_parameters=evaluator.n,
        num_samples=round(evaluator.num_samples),
        seed=seed,
    )


def dimensions_of(dimensions: Sequence[int | str], evaluator: Evaluator) -> list[int]:
    """Dimensions as numbers, ascending; called by every rank.

    Raises:
        InputError: a number that the parameters do not have, classes of data without, or none.
    """
    if isinstance(dimensions, (int, str)):
        dimensions = (dimensions,)
    found = set()
    for k in dimensions:
        k = _num_classes(evaluator) if k == CLASSES else k
        whole = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
        if not whole or not 1 <= int(k) <= evaluator.n:
            raise InputError(
                f"dimension {k!r}: expected 1 to {evaluator.n}, the number of parameters, or "
                "'classes'"
            )
        found.add(int(k))
    if not found:
        raise InputError("dimensions is empty; expected some, such as (1, 5, 10)")
    return sorted(found)


def _num_classes(evaluator: Evaluator) -> int:
    largest = -1
    for batch in evaluator.batches:
        labels = evaluator.function.labels(batch)
        if labels is not None and labels.numel():
            largest = max(largest, int(labels.max()))
    largest = max(evaluator.world.gather_objects(largest))
    if largest < 0:
        raise InputError(
            "dimension 'classes': the targets are no class indices; name a number instead"
        )
    return largest + 1


def _require_largest(pairs: EigenPairs, k: int, name: str) -> None:
    """InputError unless there are k eigenpairs of the upper end, with vectors."""
    held = len(pairs) - (pairs.num_lower or 0)
    if pairs.vectors is None or held < k:
        have = "no eigenvectors" if pairs.vectors is None else f"{held} of the upper end"
        raise InputError(f"{name}: has {have}; expected the {k} largest, with eigenvectors")


def _gradients(
    evaluator: Evaluator,
    theta: Tensor,
    vectors: Tensor,
    sizes: Sequence[int],
    num_batches: int,
    seed: int,
    at_once: int | None,
    on_chunk: Callable[[int], None] | None,
) -> Array:
    """(s, b, 2 + k): |g|, the squared deviation from the whole gradient, the cosines.

    One small reduction a block.
    """
    at_once = min(at_once or gradients_at_once(evaluator), num_batches)
    whole = evaluator.layout.local(evaluator.gradient(theta)[None])
    own = numbers(evaluator)
    rows = np.full((len(sizes), num_batches, 2 + len(vectors)), math.nan)
    done = 0
    for row, size in zip(rows, sizes):
        first = 0
        for block in gradient_blocks(evaluator, theta, size, num_batches, seed, at_once, own):
            found = torch.stack([squares_of(block), squares_of(block - whole)], dim=1)
            found = torch.cat([found, (block @ vectors.T).double()], dim=1)
            row[first : first + len(block)] = evaluator.world.sum(found).cpu().numpy()
            first, done = first + len(block), done + len(block)
            if on_chunk:
                on_chunk(done)
    rows[:, :, 0] = np.sqrt(rows[:, :, 0])
    with np.errstate(divide="ignore", invalid="ignore"):  # a gradient of zero has no direction
        rows[:, :, 2:] /= rows[:, :, :1]
    return rows


def _along(operator: Curvature, vectors: Tensor) -> Array:
    """v^T A v for each row, (k,), summed over ranks."""
    products = operator.products(vectors)
    found = _summed(operator.layout.world, (vectors * products).sum(1, dtype=torch.float64))
    if not np.isfinite(found).all():
        operator.raise_failure()
    return found


def _summed(world: World, part: Tensor) -> Array:
    return world.sum(part.double()).cpu().numpy()


def _angles(vectors: Array, noise_vectors: Array, dimensions: Sequence[int]) -> Array:
    """Principal angles of the top subspaces, (d, k), descending, NaN beyond the dimension.

    Args:
        vectors, noise_vectors: rows in ascending order of eigenvalues, (k, n).
    """
    found = np.full((len(dimensions), len(vectors)), math.nan)
    for row, k in zip(found, dimensions):
        row[:k] = subspace_angles(vectors[-k:].T, noise_vectors[-k:].T)
    return found


def _traces(prefix: str, measure: SpectralMeasure | None) -> dict[str, float]:
    if measure is None:
        return {f"{prefix}trace": math.nan, f"{prefix}trace_error": math.nan}
    error = float(measure.standard_error("trace"))
    return {f"{prefix}trace": measure.trace, f"{prefix}trace_error": error}
