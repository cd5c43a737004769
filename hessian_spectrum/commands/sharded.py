"""Commands with ``--sharded``: their evaluator, their operator, and what a run of it costs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from hessian_spectrum.config.curvature import CurvatureConfig, KrylovConfig
from hessian_spectrum.config.sharding import ShardedConfig
from hessian_spectrum.distributed.memory import PeakMemory, available
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.operators.base import SymmetricOperator
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.planning import product_planner
from hessian_spectrum.planning.product_planner import MEMORY_SHARE, Estimate
from hessian_spectrum.sharded.evaluator import ShardedEvaluator
from hessian_spectrum.sharded.hessian import ShardedHessian
from hessian_spectrum.zoo import language_model

SEED = 0x71E  # of the vectors whose products are timed
VECTORS = 6  # of a rank's length, beside activations: theta, units, a product, its sums


def evaluator(config: CurvatureConfig, problem: Problem, world: World) -> ShardedEvaluator:
    """The problem's loss, its parameters over these ranks."""
    assert isinstance(config, ShardedConfig)
    shared = {
        f.name: getattr(problem, f.name)
        for f in dataclasses.fields(problem)
        if f.name not in ("batch_norm", "dropout", "dropout_seed")
    }
    return ShardedEvaluator(
        **shared,
        weights=config.weights or language_model.folder_of(config),
        units=config.units or None,
        recompute=config.recompute,
        compute_dtype=config.compute_dtype and getattr(torch, config.compute_dtype),
        world=world,
    )


def operator(config: CurvatureConfig, found: Any) -> ShardedHessian:
    """The Hessian of a sharded evaluator, its products formed as ``--hvp`` says."""
    return ShardedHessian(found, products=config.hvp or "auto")  # type: ignore[arg-type]


def plan(
    config: KrylovConfig, of: SymmetricOperator, vectors: int, steps: int, kept: int, folder: Path
) -> Estimate:
    """How products of ``vectors`` vectors are formed in each of ``steps`` steps, and the cost.

    Products of a whole model are planned; a sharded one's are timed, once with one vector and once
    with two. Called by every rank.
    """
    if isinstance(of, Curvature):
        return product_planner.plan(
            of.evaluator,
            of.theta,
            vectors,
            steps,
            kept=kept,
            form=of.form,
            mode=config.hvp,
            precision=config.hvp_dtype,
            memory=config.memory_bytes,
            folder=folder,
        )
    assert isinstance(of, ShardedHessian)
    ev, layout, world = of.evaluator, of.layout, of.layout.world
    rows = gaussian_probes(layout, range(2), SEED, of.dtype, of.device)
    seconds, peak = [], 0
    for count in (1, min(2, vectors)):
        world.barrier()
        started = time.perf_counter()
        with PeakMemory(of.device) as memory:
            of.products(rows[:count])
        seconds.append(time.perf_counter() - started)
        peak = max(peak, memory.peak)
    one, more = seconds[0], max(0.0, seconds[1] - seconds[0])
    itemsize = of.dtype.itemsize
    basis = kept * layout.chunk * itemsize
    working = peak + (VECTORS + 2 * vectors) * layout.chunk * itemsize
    budget = config.memory_bytes or int(MEMORY_SHARE * available(world))
    seconds_of_all = steps * (one + (vectors - 1) * more)
    place = product_planner.place_of(ev, basis, budget, working, folder)
    found = world.from_first((basis, working, budget, seconds_of_all, place))
    basis, working, budget, seconds_of_all, place = found
    return Estimate(
        plan=ProductPlan(),
        place=place,
        products=vectors * steps,
        passes=steps if of.kind == "exact" else 4 * vectors * steps,
        basis=basis,
        working=working,
        budget=budget,
        seconds=seconds_of_all,
        calibrated=True,
        how=_how(of),
    )


def _how(of: ShardedHessian) -> str:
    ev = of.evaluator
    largest = max(unit.size for unit in ev.units)
    compute = str(ev.function.compute).removeprefix("torch.")
    text = (
        f"parameters over {ev.world.size} rank(s), {ev.layout.chunk:,} each; at most "
        f"{2 * largest:,} gathered at a time, in {compute}; products "
    )
    if of.kind == "exact":
        return text + "by second derivatives"
    return text + (
        f"by differences of gradients, step {of.differences.rho:.1e} |theta|, stated error "
        f"{of.product_error or of.differences.noise:.1e}"
    )
