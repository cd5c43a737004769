"""Do gradients of minibatches point along the sharp directions of the loss?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.analyses.alignment_result import Alignment, joined
from hessian_spectrum.analyses.top_pairs import TopPairs, squares_of
from hessian_spectrum.distributed.agreement import digest_of
from hessian_spectrum.distributed.memory import available
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.sample_gradients import (
    Indices,
    draw,
    minibatch_gradients,
    numbers,
)
from hessian_spectrum.operators.curvature import Curvature, Hessian
from hessian_spectrum.operators.same_call import require_same_computation
from hessian_spectrum.planning.planned_operator import planned
from hessian_spectrum.spectral.eigenpairs import EigenPairs

SHARE = 0.25  # of the free memory, for gradients and their products
COPIES = 6  # memory for a gradient, in vectors: itself, its product, and buffers of exchanges
FULL = "full"  # the batch size that means all the data


def alignment(
    evaluator: Evaluator,
    batch_sizes: Sequence[int | str] = (100, 1000),
    num_batches: int = 50,
    *,
    pairs: EigenPairs | None = None,
    operator: Curvature | None = None,
    seed: int = 0,
    at_once: int | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> Alignment:
    """``g^T H g / |g|^2`` for gradients g of random minibatches, H of all the data.

    Xing, Arpit, Tsirigotis & Bengio 2018, "A walk with SGD", eq. 4, and Ghorbani, Krishnan & Xiao
    2019, section 4.3. Each minibatch is drawn without replacement and independently of the others
    from ``seed``: the same samples at every world size. Its gradient is that of the mean loss over
    the minibatch, with the same sample weights and weight decay as the whole loss.

    Args:
        batch_sizes: samples in a minibatch; "full" is all the data, as a single minibatch.
        num_batches: minibatches of each size.
        pairs: eigenpairs of H at these parameters, which include the largest; vectors are rows
            (k, n), lazy or not. Pairs of the lower end are ignored. Without pairs, the shares of
            lambda_1, cosines and captured shares are NaN.
        operator: H; default: ``Hessian(evaluator)``. Gradients are taken at its theta.
        at_once: gradients in one block; default: as many as a quarter of the free memory holds.
        on_chunk: called after each block with the number of minibatches done; may raise.

    Returns:
        An Alignment, one row for each batch size in ascending order.

    Raises:
        InputError: a size that the data does not have, pairs of another matrix, data whose samples
            cannot be separated, or an argument that differs between ranks.

    Cost: for each size, ``num_batches`` Hessian products in passes of ``at_once``, and as many
    gradients of that size; one more product to check ``pairs``. Memory: on each rank
    ``6 at_once n`` numbers, and its share of ``pairs.vectors``.

    Example:
        >>> import torch, hessian_spectrum as hs
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 3), torch.randn(20, 1)
        >>> ev = hs.Evaluator(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data)
        >>> found = hs.alignment(ev, batch_sizes=(5, "full"), num_batches=3)
        >>> found.batch_sizes.tolist(), found.alignment.shape
        ([5, 20], (2, 3))
        >>> found.counts().tolist()  # there is one minibatch of all the data
        [3, 1]
    """
    operator = operator or Hessian(evaluator)
    require_same_computation(
        operator,
        "alignment",
        batch_sizes=list(batch_sizes),
        num_batches=num_batches,
        seed=seed,
        at_once=at_once,
        **{"eigenvalues of pairs": None if pairs is None else digest_of(pairs.values)},
    )
    total = round(evaluator.num_samples)
    sizes = sizes_of(batch_sizes, evaluator)
    if not isinstance(num_batches, int) or num_batches < 1:
        raise InputError(f"num_batches={num_batches}: expected a whole number, 1 or more")
    if at_once is not None and at_once < 1:
        raise InputError(f"at_once={at_once}: expected 1 or more")
    counts = [1 if size == total else num_batches for size in sizes]
    at_once = min(at_once or gradients_at_once(evaluator), max(counts))
    passes = sum(-(-count // at_once) for count in counts)
    operator = planned(operator, at_once, passes, kept=2 * at_once)  # gradients, and their units
    top = TopPairs.of(operator, pairs)
    own = numbers(evaluator)
    done, parts = 0, []
    for size, count in zip(sizes, counts):
        rows = []
        blocks = gradient_blocks(evaluator, operator.theta, size, count, seed, at_once, own)
        for gradients in blocks:
            rows.append(_measured(operator, gradients, top))
            done += len(gradients)
            if on_chunk:
                on_chunk(done)
        parts.append(_result(size, np.concatenate(rows), top, total, seed))
    return joined(parts)


def gradient_blocks(
    evaluator: Evaluator,
    theta: Tensor,
    size: int,
    count: int,
    seed: int,
    at_once: int,
    own: Sequence[Indices],
) -> Iterator[Tensor]:
    """Gradients of ``count`` random minibatches of ``size`` samples: blocks (at_once, n_local).

    Args:
        size: all the data is one minibatch, whatever ``count``.
        own: ``sample_gradients.numbers(evaluator)``.
    """
    total = round(evaluator.num_samples)
    if size == total:
        yield evaluator.layout.local(evaluator.gradient(theta)[None])
        return
    for start in range(0, count, at_once):
        indices = range(start, min(start + at_once, count))
        chosen = [draw(total, size, seed, i) for i in indices]
        yield minibatch_gradients(evaluator, theta, chosen, own)


def gradients_at_once(evaluator: Evaluator, memory: int | None = None) -> int:
    """The number of gradients that fit into ``memory`` bytes; default: a quarter of the free."""
    memory = memory or int(SHARE * available(evaluator.world))
    fitting = memory // (COPIES * evaluator.n * evaluator.dtype.itemsize)
    return max(1, min(evaluator.world.gather_objects(fitting)))


def sizes_of(batch_sizes: Sequence[int | str], evaluator: Evaluator) -> list[int]:
    """Batch sizes as numbers of samples, ascending.

    Raises:
        InputError: a size that the data does not have, or no size.
    """
    total = round(evaluator.num_samples)
    if isinstance(batch_sizes, (int, str)):
        batch_sizes = (batch_sizes,)
    found = set()
    for size in batch_sizes:
        if size == FULL:
            found.add(total)
            continue
        whole = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
        if not whole or not 1 <= int(size) <= total:
            raise InputError(
                f"batch size {size!r}: expected 1 to {total}, the number of samples, or 'full'"
            )
        found.add(int(size))
    if not found:
        raise InputError("batch_sizes is empty; expected sizes such as (100, 1000)")
    return sorted(found)


def _measured(operator: Curvature, gradients: Tensor, top: TopPairs) -> np.ndarray:
    """(b, 2 + k): |g|, g^T H g / |g|^2 and the cosines.

    All but |g| are NaN where g is zero or not finite. One block product, two small reductions.
    """
    world = operator.layout.world
    squares = world.sum(squares_of(gradients))
    usable = squares.isfinite() & (squares > 0)
    unit = gradients * squares.rsqrt().to(gradients)[:, None]
    unit = torch.where(usable[:, None], unit, 0.0)  # a batched product must not see NaN
    along = (unit * operator.products(unit)).sum(1, dtype=torch.float64)
    found = torch.stack([squares_of(unit), along], dim=1)
    if top.vectors is not None:
        found = torch.cat([found, (unit @ top.vectors.T).double()], dim=1)
    found = world.sum(found)
    if not bool(found.isfinite().all()):
        operator.raise_failure()
    # Column 0 is |unit|^2: 1 up to rounding, or 0 where g is unusable, so that the rest is NaN.
    rows = torch.cat(
        [squares.sqrt()[:, None], found[:, 1:2] / found[:, :1], found[:, 2:] / found[:, :1].sqrt()],
        dim=1,
    )
    return rows.cpu().numpy()


def _result(size: int, rows: np.ndarray, top: TopPairs, total: int, seed: int) -> Alignment:
    norm, along, cosine = rows[None, :, 0], rows[None, :, 1], rows[:, 2:]
    if top.vectors is None:
        cosine = np.full((len(rows), len(top.values)), np.nan)
    return Alignment(
        batch_sizes=np.array([size]),
        alignment=along,
        gradient_norm=norm,
        cosine=cosine[None],
        captured=top.captured(cosine)[None],
        eigenvalues=top.values,
        residuals=top.residuals,
        num_samples=total,
        seed=seed,
    )
