"""Operator -> spectral measure: stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hessian_spectrum import certified
from hessian_spectrum.certified import BlockRule
from hessian_spectrum.errors import InputError
from hessian_spectrum.krylov import block, lanczos
from hessian_spectrum.krylov.basis import Place
from hessian_spectrum.krylov.block import BlockSpace
from hessian_spectrum.krylov.lanczos import Recurrences
from hessian_spectrum.measure import EigenPairs, SpectralMeasure
from hessian_spectrum.operators import SymmetricOperator
from hessian_spectrum.probes import gaussian_probes
from hessian_spectrum.quadrature import gauss_rule
from hessian_spectrum.transforms import Restricted, products_of_blocks

Estimator = Literal["slq", "block"]


def spectral_density(
    operator: SymmetricOperator,
    num_probes: int = 10,
    num_steps: int = 90,
    seed: int = 0,
    *,
    estimator: Estimator = "slq",
    sigma2: float | None = None,
    basis: Place = "device",
    state: Recurrences | BlockSpace | None = None,
    on_step: Callable[[Recurrences | BlockSpace], None] | None = None,
) -> SpectralMeasure:
    """The operator's spectral measure, by Lanczos quadrature from random vectors.

    Each of the b probes z, uniform on the sphere, gives a Gauss rule of ``f -> z^T f(A) z``,
    whose mean over z is tr f(A) / n (Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38 (2017)).

    Args:
        num_probes: b.
        num_steps: m; at most the operator's size.
        seed: of the probes, below 2^64; the same seed gives the same answer at every world size.
        estimator: "slq": independent recurrences in lockstep (Ghorbani, Krishnan and Xiao 2019,
            algorithm 1, except that here every recurrence is reorthogonalized, in full). "block":
            all probes share one block Krylov space, and eigenvalues that it resolves weigh
            exactly 1/n (certified.py): for the same products a density several times as accurate.
        sigma2: of the block estimator: the variance of the smoothing that the density is meant
            for; what is resolved to a fraction of its root is certified. Default: that of
            ``SpectralMeasure.default_sigma2``.
        basis: where the Krylov vectors live: "device", "host", or a folder on a disk.
        state: what to go on from, as ``on_step`` was given it.
        on_step: called with the state after each step, on every rank.

    Cost: b m products in m passes over the data; b (m + 1) n / P entries on each of P ranks. The
    block estimator adds O(b m (b m)^2) flops of small dense algebra at the end.
    """
    _check(operator, num_probes, seed)
    if estimator not in ("slq", "block"):
        raise InputError(f"estimator={estimator!r}: expected 'slq' or 'block'")
    if sigma2 is not None and not 0 < sigma2 < np.inf:
        raise InputError(f"sigma2={sigma2}: expected a variance, more than 0")
    if estimator == "block":
        if state is None:
            probes = _probes(operator, num_probes, seed)
            state = block.start(operator, probes, num_steps, basis)
        while state.num_steps < num_steps and not state.is_invariant:
            state = block.step(operator, state)
            if on_step:
                on_step(state)
        return block_measure(state, operator, sigma2)
    if state is None:
        state = _start(operator, num_probes, num_steps, seed, basis)
    while state.num_steps < num_steps and state.active.any():
        state = lanczos.step(operator, state)
        if on_step:
            on_step(state)
    return measure(state, operator)


def spectral_densities(
    operator: SymmetricOperator,
    blocks: Mapping[str, str | Sequence[str]],
    num_probes: int = 10,
    num_steps: int = 90,
    seed: int = 0,
    *,
    basis: Place = "device",
    on_step: Callable[[int], None] | None = None,
) -> dict[str, SpectralMeasure]:
    """The spectral measures of many diagonal blocks of one operator, each pass serving all.

    ``{name: spectral_density(Restricted(operator, patterns))}``, with one block product a step for
    the probes of all blocks. A block smaller than ``num_steps`` takes as many steps as its size.

    Args:
        blocks: name patterns of parameters by label; ``layer_blocks(operator)`` gives one a layer.
        num_probes, num_steps, seed, basis: as for ``spectral_density``, for each block.
        on_step: called with the number of steps done, on every rank.

    Cost: b m products for each block, in m passes over the data; b (m + 1) n_block / P entries for
    each block.
    """
    if not isinstance(blocks, Mapping) or not blocks:
        raise InputError("blocks: expected name patterns by label, such as {'first': 'layer1.*'}")
    _check(operator, num_probes, seed)
    restricted = {name: Restricted(operator, patterns) for name, patterns in blocks.items()}
    states = {
        name: _start(block, num_probes, min(num_steps, block.n), seed, basis)
        for name, block in restricted.items()
    }
    for done in range(1, num_steps + 1):
        going = [
            name
            for name, state in states.items()
            if state.num_steps < restricted[name].n and state.active.any()
        ]
        if not going:
            break
        products = products_of_blocks(
            [restricted[name] for name in going],
            [lanczos.latest(states[name]).to(operator.device) for name in going],
        )
        for name, product in zip(going, products):
            states[name] = lanczos.extend(restricted[name], states[name], product)
        if on_step:
            on_step(done)
    return {name: measure(states[name], block) for name, block in restricted.items()}


def layer_blocks(operator: SymmetricOperator) -> dict[str, list[str]]:
    """The parameters of each layer, by the layer's name: ``fc.weight`` and ``fc.bias`` are "fc"."""
    blocks: dict[str, list[str]] = {}
    for name in operator.layout.names:
        blocks.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return blocks


def _check(operator: SymmetricOperator, num_probes: int, seed: int) -> None:
    if not isinstance(operator, SymmetricOperator):
        raise InputError(
            f"spectral_density of a {type(operator).__name__}; expected an operator such as "
            "hs.Hessian(evaluator)"
        )
    if not isinstance(num_probes, (int, np.integer)) or num_probes < 1:
        raise InputError(f"num_probes={num_probes}: expected a whole number, 1 or more")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise InputError(f"seed={seed}: expected a whole number, 0 or more and below 2^64")


def _start(
    operator: SymmetricOperator, num_probes: int, num_steps: int, seed: int, basis: Place
) -> Recurrences:
    return lanczos.start(operator, _probes(operator, num_probes, seed), num_steps, basis)


def _probes(operator: SymmetricOperator, num_probes: int, seed: int) -> Tensor:
    return gaussian_probes(
        operator.layout, range(num_probes), seed, operator.dtype, operator.device
    )


def block_measure(
    space: BlockSpace, operator: SymmetricOperator, sigma2: float | None = None
) -> SpectralMeasure:
    """What a block Krylov space knows of the spectrum so far, its certified eigenvalues at 1/n."""
    rule = BlockRule(space.t, space.first, space.off[-1], space.num_steps)
    # A residual below the error of a product is not known to be real.
    floor = max(torch.finfo(operator.dtype).eps, space.noise) * space.scale
    if sigma2 is None:
        sigma2 = certified.plain(rule, operator.n).default_sigma2
    return certified.certified(rule, operator.n, sigma2**0.5, floor)


def measure(state: Recurrences, operator: SymmetricOperator) -> SpectralMeasure:
    """The atoms that the recurrences know of so far: b Gauss rules side by side."""
    rules = [
        gauss_rule(alpha[:length], beta[:length])
        for alpha, beta, length in zip(state.alpha, state.beta, state.lengths)
    ]
    nodes = np.concatenate([rule.nodes for rule in rules])
    order = np.argsort(nodes, kind="stable")
    weights = np.zeros((len(rules), len(nodes)))
    first = 0
    for row, rule in zip(weights, rules):
        row[first : first + len(rule.nodes)] = rule.weights
        first += len(rule.nodes)
    # A residual below the error of a product is not known to be real.
    rounding = max(torch.finfo(operator.dtype).eps, state.noise) * state.scale
    residuals = np.maximum(np.concatenate([rule.residuals for rule in rules]), rounding)
    return SpectralMeasure(
        nodes=nodes[order],
        weights=weights[:, order],
        n=operator.n,
        residuals=residuals[order],
        certified=np.zeros(len(nodes), dtype=bool),
    )


def repeat_error(operator: SymmetricOperator, seed: int = 0) -> float:
    """|A q - (A q)'| / |A q| of one random vector multiplied twice; 0.0 if deterministic.

    Cost: two products.
    """
    q = gaussian_probes(operator.layout, [0], seed, operator.dtype, operator.device)
    once, again = operator.products(q), operator.products(q)
    squares = torch.stack([(once - again).double().square().sum(), once.double().square().sum()])
    difference, norm = operator.layout.world.sum(squares).sqrt().tolist()
    return difference / norm if norm else 0.0


def extremes(measure: SpectralMeasure, tol: float = 1e-3) -> EigenPairs:
    """The smallest and the largest Ritz value of a density run, with their residual bounds.

    Ritz values lie inside the spectrum, so lambda_min <= values[0] and values[1] <=
    lambda_max, and an eigenvalue lies within ``residuals`` of each. No products.

    Args:
        tol: converged where the residual is at most tol * |lambda|max.
    """
    ends = [0, len(measure.nodes) - 1]
    values, residuals = measure.nodes[ends], measure.residuals[ends]
    return EigenPairs(values, residuals, residuals <= tol * np.abs(values).max())
