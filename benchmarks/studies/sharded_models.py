"""Models whose parameters are sharded: exactness, stated errors, memory on 1, 2 and 4 ranks, cost.

A small transformer after some steps of Adam. Products with random vectors and with eigenvectors of
the largest eigenvalues, exact and by differences of gradients, in float64, float32 and bfloat16,
are compared with the dense arithmetic of the whole model in float64; whether their stated error
covers the true one is counted, and eigenvalues are compared with their intervals. Under torchrun
(``suite/sharded_worker.py``) the same transformer, larger, is put under FSDP2: bytes of a rank,
seconds of a gradient and of products, gathers counted. A cost model (``suite/sharded_model.py``),
whose count of gathers is compared with the one measured, is extrapolated to 7B and 70B parameters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study, sharded_model
from benchmarks.suite.sharded_worker import language_model

ROOT = Path(__file__).resolve().parents[2]
OURS = "the package's own claims"
ARITHMETIC = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "bfloat16": (torch.float32, torch.bfloat16),
}
WAYS = ("exact", "differences")
RANKS = (8, 32, 128, 512)  # GPUs of the cost model


@dataclass(frozen=True)
class Options:
    """
    Args:
        vocabulary, width, layers, length, sequences: of the small transformer.
        training: steps of Adam.
        vectors: random ones; and as many eigenvectors.
        large: the same sizes of the transformer that is sharded.
        ranks: of the jobs.
        steps: of a density with four probes, whose memory is measured.
    """

    vocabulary: int = 61
    width: int = 16
    layers: int = 2
    length: int = 8
    sequences: int = 8
    training: int = 50
    vectors: int = 10
    large: tuple[int, ...] = (2000, 256, 4, 16, 4)
    ranks: tuple[int, ...] = (1, 2, 4)
    steps: int = 8
    repeats: int = 3


def compared(context: Context, options: Options) -> tuple[list[Finding], dict[str, Any]]:
    """Products in each way and arithmetic beside those of the whole model in float64."""
    sizes = (options.vocabulary, options.width, options.layers, options.length, options.sequences)
    model, data = language_model(*sizes, options.training)
    loss = nn.CrossEntropyLoss()
    true = hs.Hessian(hs.Evaluator(model, loss, data, dtype=torch.float64))
    top = hs.eigenpairs(true, (options.vectors // 2, options.vectors - options.vectors // 2))
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(true.n, options.vectors, dtype=torch.float64, generator=generator)
    v = torch.cat([random / random.norm(dim=0), torch.from_numpy(top.vectors.T.copy())], dim=1)
    expected, scale = true @ v, float(np.abs(top.values).max())
    ends = np.array([top.values[0], top.values[-1]])
    findings: list[Finding] = []
    values: dict[str, Any] = {"eigenvalues": top.values}
    for name, (dtype, compute) in ARITHMETIC.items():
        ev = hs.ShardedEvaluator(model, loss, data, dtype=dtype, compute_dtype=compute)
        for way in WAYS:
            what = f"{way}, {name}"
            try:
                operator = hs.ShardedHessian(ev, products=way, max_error=0.2)  # type: ignore[arg-type]
                errors = ((operator @ v.to(dtype)).double() - expected).norm(dim=0).numpy()
            except hs.InputError as refused:
                findings.append(of_refusal(context, what, name, refused))
                continue
            values[what] = errors
            findings += of_errors(context, what, operator, errors, scale, name)
            tol = 1e-8 if name == "float64" and way == "exact" else 1e-2
            found = hs.eigenpairs(operator, 1, tol=tol, vectors=False, copies=False)
            findings.append(
                context.check(
                    f"{what}: largest |error| of the two extreme eigenvalues over their residuals",
                    *(float((np.abs(found.values - ends) / found.residuals).max()), 0.0, 1.0),
                    source=OURS,
                    judged_from="test",
                )
            )
    return findings, values


def of_refusal(context: Context, what: str, name: str, refused: Exception) -> Finding:
    """Differences in half precision say nothing of sharp directions, and are refused."""
    print(f"{what}: refused: {refused}")
    return context.check(
        f"{what}: refused (1), since errors would be a fifth of the largest product or more",
        *(1.0, float(name == "bfloat16"), 1.0),
        source=OURS,
        judged_from="test",
    )


def of_errors(
    context: Context,
    what: str,
    operator: hs.ShardedHessian,
    errors: np.ndarray,
    scale: float,
    name: str,
) -> Iterator[Finding]:
    if operator.kind == "differences":
        yield context.check(
            f"{what}: share of products whose error is at most the stated one",
            *(float((errors <= operator.product_error).mean()), 0.95, 1.0),
            source=OURS,
            judged_from="test",
        )
    most = {"exact, float64": 1e-9, "exact, float32": 1e-4, "exact, bfloat16": 1.0}
    most |= {"differences, float64": 1e-7, "differences, float32": 1e-2}
    yield context.check(
        f"{what}: largest error of a product over the largest |eigenvalue|",
        *(float(errors.max() / scale), 0.0, most.get(what, 0.2)),
        source=OURS,
        judged_from="test",
    )


def launched(context: Context, options: Options, ranks: int) -> dict[str, Any]:
    """What the worker measures on so many ranks."""
    result = context.folder / f"ranks-{ranks}.json"
    if result.exists():
        return json.loads(result.read_text())
    names = ("vocabulary", "width", "layers", "length", "sequences")
    words = [w for n, s in zip(names, options.large) for w in (f"--{n}", str(s))]
    words += ["--batch-size", "1", "--steps", str(options.steps), "--repeats", str(options.repeats)]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "benchmarks.suite.sharded_worker", *words]
        + ["--result", str(result.resolve())],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(result.read_text())


def of_ranks(context: Context, options: Options, jobs: list[dict[str, Any]]) -> Iterator[Finding]:
    alone, layers = jobs[0], options.large[2]
    for job in jobs:
        ranks, what = job["ranks"], f"{job['ranks']} ranks"
        yield context.check(
            f"{what}: parameters of a rank over their even share",
            *(job["local"] * ranks / job["n"], 1.0, 1.0 + 1e-3),
            source="a rank holds at most one entry more than another",
            judged_from="test",
        )
        yield context.check(
            f"{what}: entries of whole weights at the peak over two of the largest unit",
            *(job["gathered"] / (2 * max(job["units"])), 0.0, 1.001),
            source=OURS,
            judged_from="test",
        )
        yield context.check(
            f"{what}: gathers of an exact product and minibatch over those of the cost model",
            *(job["exact gathers"] / job["rounds"] / sharded_model.gathers(layers), 1.0, 1.0),
            source="suite/sharded_model.py",
            judged_from="test",
        )
        for way in WAYS:
            print(f"{what}: {way} product {job[way] / job['gradient']:.2f} gradients")
        if ranks > 1:
            # Whole weights of two units and activations do not shrink.
            fixed = 2 * max(job["units"]) * 4
            yield context.check(
                f"{what}: memory of a density on a rank without two whole units, times the ranks, "
                "over that of one rank",
                *((job["memory"] - fixed) * ranks / (alone["memory"] - fixed), 0.8, 1.6),
                source="a rank holds 1 / P of parameters, gradients and Krylov vectors",
            )


def figure(jobs: list[dict[str, Any]], values: dict[str, Any]) -> Figure:
    """Errors of products; memory of a rank; the cost model."""
    picture = Figure(figsize=(11, 3.4), layout="constrained")
    errors, memory, model = picture.subplots(1, 3)
    for name in (name for name in values if ", " in name):
        errors.semilogy(np.maximum(values[name], 1e-17), ".", label=name)
    errors.set(title="|error| of products", xlabel="vector: random, then eigenvectors")
    errors.legend(fontsize=6)
    ranks = [job["ranks"] for job in jobs]
    memory.plot(ranks, [job["memory"] / 2**20 for job in jobs], "ko-")
    memory.set(
        title="memory of a density on each rank", xlabel="ranks", ylabel="MiB", ylim=(0, None)
    )
    for name, language in sharded_model.MODELS.items():
        costs = [sharded_model.product(language, count) for count in RANKS]
        model.loglog(RANKS, [cost.memory / 1e9 for cost in costs], "o-", label=f"{name}: GB a GPU")
        model.loglog(RANKS, [cost.seconds for cost in costs], "x--", label=f"{name}: s a product")
    model.axhline(sharded_model.MEMORY / 1e9, color="C7", linewidth=0.8)
    model.set(title="cost model, 1e6 tokens", xlabel="GPUs")
    model.legend(fontsize=6)
    return picture


def run(context: Context, options: Options) -> Outcome:
    findings, values = compared(context, options)
    jobs = [launched(context, options, ranks) for ranks in options.ranks]
    findings += of_ranks(context, options, jobs)
    for job in jobs:
        for name in ("gradient", *WAYS, "memory", "gathered"):
            values[f"{job['ranks']} ranks/{name}"] = job[name]
    for name, language in sharded_model.MODELS.items():
        for count in RANKS:
            cost = sharded_model.product(language, count)
            values[f"model/{name}/{count}"] = [cost.memory, cost.seconds]
            print(f"{name} on {count}: {cost.memory / 1e9:.0f} GB, {cost.seconds:.0f} s a product")
    return Outcome(findings, values, figure(jobs, values))


STUDY = Study(
    title="Are spectra of sharded models right, and what do they take?",
    source=OURS,
    run=run,
    scales={
        "test": Options(
            *(11, 8, 1, 4, 2, 5, 4),
            large=(11, 8, 1, 4, 2),
            ranks=(1,),
            steps=1,
            repeats=1,
        ),
        "cpu": Options(),
    },
    group="accuracy",
)
