"""Evaluation of one minibatch at many points in one call: vmap over the parameters.

Two optimizations of dense layers:

- A layer whose input is the data is linear in its weights. At points that are combinations of k
  vectors its outputs are the same combinations of k outputs, so that p points take k products
  with the inputs instead of p. For a perceptron on images this is nearly all of the work.
- Narrow layers are computed as W x^T, since matrix multiplication is several times faster with
  many columns and few rows than with many rows and few columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.minibatch_loss import Part

# torch has no public way to ask whether a tensor depends on what vmap maps over.
_depends = torch._C._functorch.is_batchedtensor

NARROW = 32  # most outputs of a narrow layer; wider layers are as fast either way


def evaluated(
    ev: Evaluator,
    part: Part,
    theta: Tensor,
    weights: Tensor,
    vectors: Tensor | None,
    known: list[Tensor],
) -> tuple[Tensor, Any]:
    """This part of L and the network's outputs at p points, (p,) and (p, B, ...).

    Args:
        theta: the points, (p, n).
        weights: (p, k), theta = weights @ vectors.
        vectors: (k, n), for first layers by linearity; None: every layer at every point.
        known: outputs of first layers at the vectors. The first call for a part fills it, later
            calls read it.

    Raises:
        RuntimeError: vmap does not support an operation.
    """

    def one(row: Tensor, combination: Tensor) -> Any:
        named = ev.function.named(row)
        at_vectors = {} if vectors is None else ev.function.named(vectors)
        with _Layers(named, combination, at_vectors, known):
            return at(named)

    # A loss under vmap takes several times as long as the loss of all points' samples in a batch.
    apart = part.is_sample_by_sample
    at = part.network_outputs if apart else part.evaluated
    found = vmap(one)(theta, weights)
    if not apart:
        return found
    if not isinstance(found, Tensor):
        raise RuntimeError(f"the network returns a {type(found).__name__}, not one tensor")
    return part.losses_of(found), found


class _Layers(TorchFunctionMode):
    """Replaces dense layers: first layers by linearity, and narrow layers as W x^T."""

    def __init__(
        self,
        named: dict[str, Tensor],
        combination: Tensor,
        vectors: dict[str, Tensor],
        known: list[Tensor],
    ):
        super().__init__()
        self._known, self._calls = known, 0
        self._vectors = {id(named[name]): t for name, t in vectors.items()}
        self._named = named  # keeps ids unique
        self._combination = combination

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and not kwargs:
            inputs, weight, bias = (*args, None)[:3]
            known = id(weight) in self._vectors and (bias is None or id(bias) in self._vectors)
            if known and not _depends(inputs):
                return self._superposed(inputs, weight, bias)
            if _depends(inputs) and inputs.ndim == 2 and len(weight) <= NARROW:
                product = (weight @ inputs.mT).mT
                return product if bias is None else product + bias
        return func(*args, **(kwargs or {}))

    def _superposed(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, ..., in) -> (B, ..., out): sum_j c_j (W_j x + b_j)."""
        if self._calls == len(self._known):
            weights = self._vectors[id(weight)]
            biases = [None] * len(weights) if bias is None else self._vectors[id(bias)]
            self._known.append(
                torch.stack([F.linear(inputs, w, b) for w, b in zip(weights, biases)])
            )
        layers = self._known[self._calls]  # every evaluation calls the layers in the same order
        self._calls += 1
        # Under vmap this is a matrix product, (p, k) times (k, B out).
        return (self._combination @ layers.flatten(1)).view(layers.shape[1:])
