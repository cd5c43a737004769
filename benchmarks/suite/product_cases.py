"""One measurement: one network, one method of forming products, one number of vectors."""

from __future__ import annotations

import gc
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.suite import networks, peers
from benchmarks.suite.networks import Problem
from benchmarks.suite.product_methods import METHODS, Method, plain_gradient, reference
from hessian_spectrum.distributed.memory import PeakMemory

SHORT = 0.1  # seconds; shorter actions are repeated within one measurement
CHECKED_VECTORS = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured; picklable, so that it can be sent to a process of its own."""

    network: str  # key of networks.NETWORKS
    method: str  # key of methods.METHODS
    vectors: int  # multiplied at once
    repeats: int
    dtype: str
    device: str
    threads: int
    samples: int | None
    steps: int
    data_root: Path | None
    tf32: bool


@dataclass(frozen=True)
class Result:
    """Measured seconds, bytes and relative errors; all repeats in their order."""

    n: int  # parameters
    samples: int
    batch_size: int
    data: str
    gradients: tuple[float, ...]  # seconds of a full-data gradient, repeats + 1
    blocks: tuple[float, ...]  # seconds of one product of all vectors, between two gradients
    ratios: tuple[
        float, ...
    ]  # gradients per vector, each from a block and the two gradients beside it
    own_gradients: tuple[float, ...]  # time of the method's own gradient, in gradients
    first: float  # seconds of the first product, with tracing
    setup: float  # seconds of construction and, where it applies, of planning
    peak: int  # bytes of the first product beyond the resident set after construction
    kept: int  # bytes of it that remain allocated
    error: float  # |V H - reference| / |reference|, the worst row, on the first few samples
    error64: float | None  # the same with the method in float64; None if its dtype is fixed
    note: str


def measure(case: Case) -> Result:
    """Check the products, measure the memory of the first one, then time gradients and products.

    The check comes first because it also loads libraries, whose code is not part of the memory of
    a product.
    """
    _configure(case)
    dtype, device = getattr(torch, case.dtype), torch.device(case.device)
    method = METHODS[case.method]
    problem = networks.build(case.network, case.samples, case.data_root).to(device, dtype)
    error, error64 = _errors(method, problem, case)

    clock = time.perf_counter()
    prepared = method(problem, case.vectors, case.steps)
    _synchronize(device)
    setup = time.perf_counter() - clock
    vectors = _vectors(case.vectors, problem)
    with PeakMemory(device) as used:
        clock = time.perf_counter()
        prepared.products(vectors)
        _synchronize(device)
        first = time.perf_counter() - clock

    gradients, blocks, own = _interleaved(
        lambda: plain_gradient(problem),
        lambda: prepared.products(vectors),
        prepared.gradient,
        case.repeats,
        device,
    )
    units = [(before + after) / 2 for before, after in pairwise(gradients)]
    return Result(
        n=problem.n,
        samples=len(problem.inputs),
        batch_size=problem.batch_size,
        data=problem.data,
        gradients=tuple(gradients),
        blocks=tuple(blocks),
        ratios=tuple(block / unit / case.vectors for block, unit in zip(blocks, units)),
        own_gradients=tuple(seconds / unit for seconds, unit in zip(own, units)),
        first=first,
        setup=setup,
        peak=used.peak,
        kept=used.kept,
        error=error,
        error64=error64,
        note=prepared.note,
    )


def attempt(case: Case) -> dict:
    """The fields of the result; or, under "failed", the reason why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the peers
            return asdict(measure(case))
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        gc.collect()
        if case.device == "cuda":
            torch.cuda.empty_cache()


def _configure(case: Case) -> None:
    torch.set_num_threads(case.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = case.tf32
    peers.find()


def _errors(method: Method, problem: Problem, case: Case) -> tuple[float, float | None]:
    """The method's relative error in the case's dtype, and in float64."""
    part = problem.first(min(problem.check_samples, len(problem.inputs)))
    vectors = _vectors(min(case.vectors, CHECKED_VECTORS), part)
    if case.method.startswith("gradient"):
        plain = plain_gradient(part)
        found = method(part, 1, case.steps).products(vectors)
        return ((found - plain).norm() / plain.norm()).item(), None
    expected = reference(part, vectors)
    error = _difference(_checked(method, part, vectors, case), expected)
    if case.method.startswith("bfloat16"):
        return error, None
    double = part.to(part.inputs.device, torch.float64)
    return error, _difference(_checked(method, double, vectors.double(), case), expected)


def _checked(method: Method, part: Problem, vectors: Tensor, case: Case) -> Tensor:
    # A copy, since some methods leave gradients or graphs in the model.
    part = part.to(part.inputs.device, vectors.dtype)
    return method(part, len(vectors), case.steps).products(vectors).detach()


def _difference(found: Tensor, expected: Tensor) -> float:
    differences = (found.double() - expected).norm(dim=1) / expected.norm(dim=1)
    return differences.max().item()


def _vectors(count: int, problem: Problem) -> Tensor:
    """Gaussian rows (count, n), the same in every process."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(count, problem.n, generator=generator)
    return rows.to(problem.inputs.device, problem.parameters[0].dtype)


# -- times -----------------------------------------------------------------------------------


def _interleaved(
    gradient: Callable[[], object],
    block: Callable[[], object],
    own: Callable[[], object] | None,
    repeats: int,
    device: torch.device,
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of gradient, block (, own), gradient, block, ..., gradient.

    Interleaved, so that a change in the machine's speed affects all of them.
    """
    seconds = [_timer(action, device) if action else None for action in (gradient, block, own)]
    gradients, blocks, owns = [seconds[0]()], [], []
    for _ in range(repeats):
        blocks.append(seconds[1]())
        if own:
            owns.append(seconds[2]())
        gradients.append(seconds[0]())
    return gradients, blocks, owns


def _timer(action: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """A function that returns the seconds of one ``action``; for short actions, a mean."""

    def seconds(times: int) -> float:
        _synchronize(device)
        clock = time.perf_counter()
        for _ in range(times):
            action()
        _synchronize(device)
        return (time.perf_counter() - clock) / times

    seconds(1)  # warm up
    times = max(1, math.ceil(SHORT / seconds(1)))
    return lambda: seconds(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
