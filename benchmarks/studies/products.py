"""What do Hessian products cost, in full-data gradients, here and in other packages?

Seconds and peak memory of one Hessian product for each of k vectors, in units of one full-data
gradient by torch alone, timed in the same process in turn with the products.

Networks: mlp (784-20-10, tanh, 10,000 samples in minibatches of 4096), resnet20 (minibatches of
128, BatchNorm by running statistics), lstm (2 layers of 128, 1000 words, sequences of 32),
transformer (4 layers of 128, 4 heads, 256 symbols, sequences of 64), and, at scale "gpu", resnet18
and resnet50 (224 x 224) and gpt2 (124M parameters, sequences of 512). Methods:
``benchmarks/suite/product_methods.py``; other packages where they are installed, or in the folder
that HESSIAN_SPECTRUM_PEERS names.

On a CPU each (network, method, k) runs in a process of its own. First, its products are compared
with reverse over reverse in float64 on a few samples, in uneven minibatches if those of all the
data are: the error shows whether a method is correct, and is the only one that the test judges.
Second, the memory of the first product is measured: the peak beyond the resident set after
construction (on a GPU: the allocator's peak). Third, times, by turns with gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.suite import Context, Finding, Outcome, Study, peers
from benchmarks.suite.product_cases import Case, attempt
from benchmarks.suite.product_methods import VARIANTS
from benchmarks.suite.timing import Ratio, spread

OURS = ("linearize-kept", "reverse-kept", "reverse")
PEERS = {
    "curvlinops": "curvlinops",
    "pyhessian": "pyhessian",
    "hessian-eigenthings": "hessian_eigenthings",
}
LIMIT = 900.0  # most seconds of one case in a process of its own
WRONG = 1e-6  # a peer with a larger error in float64 multiplies by another matrix


@dataclass(frozen=True)
class Options:
    """
    Args:
        vectors: k, multiplied at once.
        samples: of each network, in the order of the names; None: the network's own number.
        real: pictures of MNIST in place of random pixels, for mlp.
        apart: each case in a process of its own.
    """

    networks: tuple[str, ...] = ("mlp", "resnet20", "lstm", "transformer")
    methods: tuple[str, ...] = (*OURS, *PEERS)
    vectors: tuple[int, ...] = (1, 8)
    repeats: int = 3
    dtype: str = "float32"
    threads: int = 1
    samples: tuple[int | None, ...] = (3000, 16, 8, 4)
    real: bool = False
    apart: bool = True


def cases(context: Context, options: Options) -> Iterator[Case]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for network, samples in zip(options.networks, options.samples):
        for method in options.methods:
            if method in PEERS and not peers.is_installed(PEERS[method]):
                continue
            for k in options.vectors:
                yield Case(
                    network=network,
                    method=method,
                    vectors=k,
                    repeats=options.repeats,
                    dtype=options.dtype,
                    device=device,
                    threads=options.threads,
                    samples=samples,
                    steps=90,
                    data_root=context.data("mnist") if options.real else None,
                    tf32=False,
                )


def measured(case: Case, apart: bool) -> dict[str, Any]:
    """The case's result; on a CPU from a process of its own, whose peak memory is measured."""
    if case.device != "cpu" or not apart:
        return attempt(case)
    os.environ["OMP_NUM_THREADS"] = str(case.threads)  # read when torch is imported
    spawn = get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_answer, args=(case, sender))
    process.start()
    sender.close()  # so that recv() fails if the process dies
    try:
        if not receiver.poll(LIMIT):
            return {"failed": f"took longer than {LIMIT:.0f} s"}
        return receiver.recv()
    except EOFError:
        process.join()
        return {"failed": f"its process ended with {process.exitcode} (-9: killed, out of memory?)"}
    finally:
        process.kill()
        process.join()


def _answer(case: Case, sender: Connection) -> None:
    sender.send(attempt(case))


def of_ours(context: Context, case: Case, found: dict[str, Any]) -> Iterator[Finding]:
    what = f"{case.network}, {case.method}, k = {case.vectors}"
    error = found.get("error64", float("nan"))
    yield context.check(
        f"{what}: relative error of products in float64",
        *(error, 0.0, 1e-10),
        source="reverse over reverse by torch",
        judged_from="test",
    )
    if "failed" not in found:
        ratio = Ratio(np.array(found["ratios"]))
        yield context.check(
            f"{what}: gradients a vector",
            *(ratio.median, 0.0, 4.0),
            source="measured 2026-11-21: 0.46 to 3.5",
            uncertainty=ratio.spread,
        )


def beside_peers(
    context: Context,
    methods: tuple[str, ...],
    network: str,
    k: int,
    found: dict[tuple[str, str, int], dict[str, Any]],
) -> Iterator[Finding]:
    """Our fastest method in gradients a vector, over a peer's."""
    own = [
        median(found[network, method, k]["ratios"])
        for method in OURS
        if "ratios" in found.get((network, method, k), {})
    ]
    for peer, package in PEERS.items():
        if peer not in methods:
            continue
        claim = f"{network}, k = {k}: time of our fastest method over that of {peer}"
        row = found.get((network, peer, k))
        if row is None:
            yield peers.absent(package, claim)
        elif "failed" in row or not own:
            print(f"{claim}: {row}")
        else:
            is_wrong = row["error64"] is not None and row["error64"] > WRONG
            ratio = Ratio.of(min(own), row["ratios"])
            yield context.check(
                claim + (" (whose products are wrong)" if is_wrong else ""),
                *(ratio.median, 0.0, 1.1),
                source=peer,
                uncertainty=ratio.spread,
            )


def figure(options: Options, found: dict[tuple[str, str, int], dict[str, Any]]) -> Figure:
    """Gradients a vector of each method, a panel for each network."""
    picture = Figure(figsize=(3.2 * len(options.networks), 3.6), layout="constrained")
    axes = picture.subplots(1, len(options.networks), squeeze=False)[0]
    for ax, network in zip(axes, options.networks):
        for method in options.methods:
            rows = [(k, found.get((network, method, k), {})) for k in options.vectors]
            drawn = [(k, median(row["ratios"])) for k, row in rows if "ratios" in row]
            if drawn:
                ax.plot(*zip(*drawn), ".-", label=method)
        ax.set(title=network, xlabel="vectors at once", ylim=(0, None))
    axes[0].set_ylabel("gradients a vector")
    axes[0].legend(fontsize=6)
    return picture


def run(context: Context, options: Options) -> Outcome:
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for case in cases(context, options):
        row = measured(case, options.apart)
        key = case.network, case.method, case.vectors
        found[key] = row
        name = "/".join(map(str, key))
        if "failed" in row:
            print(f"{name}: {row['failed']}", flush=True)
        else:
            print(f"{name}: {spread(row['ratios'])} gradients a vector", flush=True)
            for quantity in ("ratios", "gradients", "peak", "kept", "error", "setup", "first"):
                values[f"{name}/{quantity}"] = row[quantity]
        if case.method in OURS:
            findings += of_ours(context, case, row)
    for network in options.networks:
        for k in options.vectors:
            findings += beside_peers(context, options.methods, network, k, found)
    versions = ", ".join(f"{name} {version}" for name, version in peers.versions().items())
    return Outcome(findings, values, figure(options, found), notes=versions)


STUDY = Study(
    title="What does a Hessian-vector product cost?",
    source="the package's own claims",
    run=run,
    scales={
        "test": Options(("mlp",), OURS, (2,), 1, samples=(50,), apart=False),
        "cpu": Options(),
        "gpu": Options(
            ("mlp", "resnet50", "gpt2"),
            (*OURS, "planned", *PEERS, *VARIANTS),
            vectors=(1, 8, 16),
            repeats=7,
            samples=(None, None, None),
            real=True,
        ),
    },
    group="speed",
    data=("mnist",),
)
