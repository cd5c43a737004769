"""Run by test_distributed.py under a launcher: the same computations on however many ranks.

python ranks_worker.py FOLDER
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from conftest import with_spectrum
from test_evaluator import NETWORKS, data
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.krylov import lanczos
from hessian_spectrum.recurrence_store import RecurrenceStore

SAMPLES = {"ragged": 10, "two samples": 2, "one sample": 1}  # the last two leave ranks empty


def hessian(name, samples, world):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    # BatchNorm in eval mode: samples may be dealt in any way.
    return hs.Hessian(
        hs.Evaluator(model, F.cross_entropy, data(samples), batch_size=4, world=world)
    )


def compute(world):
    """Numbers that must not depend on the world, as lists."""
    results = {}
    for name in NETWORKS:
        for label, samples in SAMPLES.items():
            operator = hessian(name, samples, world)
            ev = operator.evaluator
            measure = hs.spectral_density(operator, 3, 12, seed=4)
            t = torch.linspace(*measure.support, 200).numpy()
            v = torch.arange(2.0 * ev.n, dtype=torch.float64).reshape(-1, 2).sin()
            results[f"{name}, {label}"] = {
                "loss": ev.loss().tolist(),
                "gradient": ev.gradient().tolist(),
                "product": (operator @ v).flatten().tolist(),
                "density": measure.density(t, 1e-4).tolist(),
                "data": ev.digests()["data"],
            }
    matrix = with_spectrum(torch.tensor([-1.0, 0.0, 0.5, 2.0, 2.0]))  # fewer rows than 2 a rank
    measure = hs.spectral_density(hs.Dense(matrix, world), 4, 5)
    results["dense"] = {"moments": [measure.moment(p) for p in range(6)]}
    return results


def fails_together(world):
    """A rank that fails alone takes the others with it, and is named."""
    error = hs.InputError("the disk is full") if world.rank == world.size - 1 else None
    try:
        world.raise_together(error)
    except hs.InputError as raised:
        return str(raised)


def state(world, folder):
    """Recurrences saved after 4 and after 7 of 12 steps, for a resume on other numbers of ranks."""
    operator = hessian("mlp", 10, world)
    store = RecurrenceStore(folder, world)
    hs.spectral_density(
        operator,
        3,
        12,
        on_step=lambda s: s.num_steps in (4, 7) and store.save(s, operator.layout, {"mark": 1}),
    )


def main():
    folder = Path(sys.argv[1])
    world = hs.distributed.start("cpu", timeout=timedelta(seconds=60))
    lanczos_bytes = None
    operator = hessian("mlp", 10, world)
    probes = torch.ones(2, operator.layout.n_local, dtype=torch.float64)
    basis = lanczos.start(operator, probes, 9).basis
    lanczos_bytes = world.gather_objects(basis.numel())
    results = {
        "world": [world.size, world.launcher],
        "basis": [operator.n, lanczos_bytes],
        "error": fails_together(world),
        "results": compute(world),
    }
    state(world, folder / "state")
    if world.rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    world.barrier()
    hs.distributed.finish()


if __name__ == "__main__":
    main()
