"""Run by test_sharded_models.py under torchrun: sharded models beside the whole one on each rank.

python sharded_worker.py OUT: rank 0 writes what it found, as JSON.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from sharded_models import fully_sharded, sequences, tensor_parallel, transformer
from torch import nn

import hessian_spectrum as hs

CASES = {  # samples, of which some ranks have none; options
    "fsdp": (3, {}),
    "fsdp, recomputed": (3, {"recompute": True}),
    "fsdp, in its layers": (3, {"units": ["blocks.*", "embedding", "head"]}),
    "tensor parallel": (2, {}),
    "whole": (1, {}),
    "some parameters": (2, {"parameters": ["blocks.1.*", "position"]}),
}

SPECTRA = ("tensor parallel", "whole")  # of these beside products


def model_of(case, model, ranks):
    if case.startswith("tensor"):
        return tensor_parallel(model, 2, ranks // 2) if ranks % 2 == 0 else None
    return fully_sharded(model) if case.startswith(("fsdp", "some")) else copy.deepcopy(model)


def compute(case, world):
    """Differences from the whole model, and what was gathered."""
    samples, options = CASES[case]
    model = transformer()
    sharded = model_of(case, model, world.size)
    if sharded is None:
        return None
    data, loss = sequences(samples), nn.CrossEntropyLoss()
    chosen = {k: v for k, v in options.items() if k == "parameters"}
    whole = hs.Evaluator(model, loss, data, world=hs.World(), weight_decay=0.01, **chosen)
    ev = hs.ShardedEvaluator(sharded, loss, data, batch_size=1, weight_decay=0.01, **options)
    exact, true = hs.ShardedHessian(ev), hs.Hessian(whole)
    v = torch.randn(ev.n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = true @ v
    found = {
        "kind": exact.kind,
        "doubts": ev.verification.doubts(),
        "theta": (ev.theta - ev.layout.local(whole.theta[None])[0]).abs().sum().item(),
        "loss": ev.loss().item() - whole.loss().item(),
        "gradient": ev.gradient_norm() - whole.gradient_norm(),
        "products": ((exact @ v - expected).norm() / expected.norm()).item(),
        "peak": min(peak_of(exact, v) for _ in range(3)),
        "units": [unit.size for unit in ev.units],
        "local": ev.layout.n_local,
        "n": ev.n,
    }
    return found | (spectra(exact, true) if case in SPECTRA else {})


def peak_of(exact, v):
    """Whole weights at most during products.

    The least of several counts: a thread that sends weights lets go of them a moment after they
    have arrived, and on a busy machine that moment is long.
    """
    exact.evaluator.weights.peak = 0
    exact @ v
    return exact.evaluator.weights.peak


def spectra(exact, true):
    """Densities and eigenvalues, which take many products, and one by differences."""
    measure, expected = (hs.spectral_density(h, 4, 5, seed=3) for h in (exact, true))
    t = torch.linspace(*expected.support, 100).numpy()
    sigma2 = (expected.support[1] - expected.support[0]) ** 2 * 1e-3
    density = expected.density(t, sigma2)
    values = [hs.eigenpairs(h, 1, tol=1e-4, seed=1, copies=False).values for h in (exact, true)]
    rough = hs.ShardedHessian(exact.evaluator, products="differences")
    v = torch.ones(exact.n, dtype=torch.float64) / exact.n**0.5
    return {
        "eigenvalues": abs(values[0] - values[1]).max().item(),
        "density": abs(measure.density(t, sigma2) - density).max().item() / density.max().item(),
        "differences": (rough @ v - true @ v).norm().item(),
        "stated": rough.product_error,
    }


def main(out):
    world = hs.distributed.start()
    found = {case: compute(case, world) for case in CASES}
    locals_ = world.gather_objects({case: r and r["local"] for case, r in found.items()})
    if world.rank == 0:
        Path(out).write_text(json.dumps({"found": found, "local": locals_}))
    world.barrier()
    hs.distributed.finish(world)


if __name__ == "__main__":
    main(sys.argv[1])
