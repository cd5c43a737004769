"""Run by test_distributed.py under a launcher: the same computations on however many ranks.

python ranks_worker.py FOLDER SAVED: what one process saved is in the second.
"""

import json
import sys
import threading
from datetime import timedelta
from pathlib import Path

import torch
from prescribed_spectra import with_spectrum
from small_networks import NETWORKS, data
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset

import hessian_spectrum as hs
from hessian_spectrum.krylov import lanczos
from hessian_spectrum.storage.krylov_state import RecurrenceStore

OUTLIERS = [-1.0, 0.5, 0.5, 1.0, 2.0, 5.0]
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
            independent = hs.spectral_density(operator, 3, 12, seed=4, estimator="slq")
            v = torch.arange(2.0 * ev.n, dtype=torch.float64).reshape(-1, 2).sin()
            results[f"{name}, {label}"] = {
                "loss": ev.loss().tolist(),
                "gradient": ev.gradient().tolist(),
                "product": (operator @ v).flatten().tolist(),
                "density": measure.density(t, 1e-4).tolist(),
                "independent": independent.density(t, 1e-4).tolist(),
                "data": ev.digests()["data"],
            }
    for batch_norm in ("train", "recalibrate"):  # minibatches are dealt whole, or do not matter
        for samples in (10, 1):
            results[f"{batch_norm}, {samples}"] = of_batch_norm(batch_norm, samples, world)
    for label, samples in SAMPLES.items():
        results[f"operators, {label}"] = of_operators(samples, world)
        results[f"points, {label}"] = of_points(samples, world)
        results[f"alignment, {label}"] = of_alignment(data(samples), samples, world)
        results[f"dead units, {label}"] = of_dead_units(samples, world)
    results["alignment, stream"] = of_alignment(Stream(), 10, world)  # batches are dealt in turn
    results["noise, ragged"] = of_noise(data(10), world)
    results["noise, stream"] = of_noise(Stream(), world)
    for estimator in ("block", "slq"):
        results[f"groups, {estimator}"] = of_groups(estimator, world)
    matrix = with_spectrum(torch.tensor([-1.0, 0.0, 0.5, 2.0, 2.0]))  # fewer rows than 2 a rank
    measure = hs.spectral_density(hs.Dense(matrix, world), 4, 5)
    results["dense"] = {"moments": [measure.moment(p) for p in range(6)]}
    # 41 rows: an uneven share for each number of ranks.
    matrix = with_spectrum(torch.cat([torch.linspace(-0.1, 0.1, 35), torch.tensor(OUTLIERS)]))
    for estimator in ("block", "slq", "lean"):
        # A QR and an SVD of each block: the signs of its rows, and T's, are no property of A.
        results[estimator] = described(
            hs.spectral_density(hs.Dense(matrix, world), 4, 6, estimator=estimator)
        )
    for options in ({}, {"basis_size": 26}, {"which": "largest", "block_size": 1}):
        pairs = hs.eigenpairs(hs.Dense(matrix, world), 3, tol=1e-9, **options)
        projector = pairs.vectors.T @ pairs.vectors  # two alike have no vectors of their own
        results[f"eigenpairs, {options}"] = {
            "values": pairs.values.tolist(),
            "projector": projector.flatten().tolist(),
            "converged": pairs.converged.astype(float).tolist(),
        }
    return results


def described(measure):
    """What a measure says, as lists."""
    t = torch.linspace(-2, 6, 200).numpy()
    return {
        "nodes": measure.nodes.tolist(),
        "weights": measure.weights.flatten().tolist(),
        "certified": measure.certified.astype(float).tolist(),
        "density": measure.density(t, 1e-2).tolist(),
        "truncation": [measure.truncation("mass", -1, x) for x in (-0.05, 0.01, 0.3)],
        "error": list(measure.density_error(1e-2)),
    }


def of_groups(estimator, world):
    """Samples are left out by what they are, whichever rank has them."""
    operator = hessian(next(iter(NETWORKS)), 10, world)
    measure = hs.spectral_density(operator, 3, 6, 1, estimator=estimator, data_groups=2)
    asked = [("trace",), ("moment", 2), ("moment", 3), ("effective_dimension", 0.1)]
    return {
        "nodes": measure.replicates.nodes.flatten().tolist(),
        "shares": measure.replicates.shares.tolist(),
        "errors": [measure.data_error(*query) for query in asked],
    }


def of_batch_norm(batch_norm, samples, world):
    torch.manual_seed(0)
    model = NETWORKS["batch norm, dropout"]()
    options = {"batch_size": 3, "batch_norm": batch_norm, "world": world}
    ev = hs.Evaluator(model, F.cross_entropy, data(samples), **options)
    v = torch.arange(float(ev.n), dtype=torch.float64).cos()
    return {
        "loss": ev.loss().tolist(),
        "gradient": ev.gradient().tolist(),
        "product": (hs.Hessian(ev) @ v).tolist(),
        "data": ev.digests()["data"],
    }


def of_operators(samples, world):
    """Products of every other operator with one vector, and a linear system."""
    hessian_ = hessian("mlp", samples, world)
    ev, n = hessian_.evaluator, hessian_.n
    gauss_newton = hs.GaussNewton(ev)
    v = torch.arange(float(n), dtype=torch.float64).cos()
    block = hs.Restricted(hessian_, "*.bias")
    deflated = torch.linalg.qr(torch.stack([v.roll(1), v.roll(2)]).T)[0].T
    measures = hs.spectral_densities(hessian_, {"all": "*", "bias": "*.bias"}, 2, 4)
    return {
        "gauss-newton": (gauss_newton @ v).tolist(),
        # Centred, the covariance of one sample is zero.
        "covariance": (hs.GradientCovariance(ev, centered=samples > 1) @ v).tolist(),
        "residual": (hs.GaussNewtonResidual(ev) @ v).tolist(),
        "likelihood": (hs.LikelihoodCurvature(ev) @ v).tolist(),
        "outer product": (hs.GradientOuterProduct(ev) @ v).tolist(),
        "block": (block @ v[: block.n]).tolist(),
        "shifted": (hs.Shifted(hessian_, 0.3) @ v).tolist(),
        "deflated": (hs.Deflated(hessian_, deflated) @ v).tolist(),
        "preconditioned": (hs.Preconditioned(hessian_, v.square() + 1) @ v).tolist(),
        "solved": hs.solve(gauss_newton, v, damping=1.0, tol=1e-12).x.tolist(),
        "blocks": [float(m.moment(p)) for m in measures.values() for p in (1, 2)],
    }


def of_points(samples, world):
    """Values at many points, one by one and together, and distances between outputs."""
    ev = hessian("mlp", samples, world).evaluator
    random = hs.directions.random(ev, seed=2)
    found = {"random": random.vectors.flatten().tolist()}
    for name, plan in (
        ("loop", hs.PointPlan(chunk=2)),
        ("together", hs.PointPlan(chunk=4, together=3, superposed=True)),
    ):
        surface = hs.surface(ev, random, (3, 2), plan=plan)
        found[name] = surface.loss.flatten().tolist()
        found[f"{name}, accuracy"] = surface.values["accuracy"].flatten().tolist()
    networks = {"a": ev.theta, "b": -ev.theta}
    distances = hs.functional_distances(ev, networks)
    found["distances"] = [*distances.distance.flatten(), distances.disagreement[0, 1]]
    found["measured"] = hs.interpolate(ev, ev.theta, -ev.theta, 5).loss.tolist()
    return found


class Stream(IterableDataset):
    def __iter__(self):
        return zip(*data(10))


def of_alignment(source, samples, world):
    """Minibatches of samples that live on several ranks."""
    torch.manual_seed(0)
    ev = hs.Evaluator(NETWORKS["mlp"](), F.cross_entropy, source, batch_size=3, world=world)
    operator = hs.Hessian(ev)
    values, vectors = torch.linalg.eigh(operator @ torch.eye(ev.n, dtype=torch.float64))
    zeros = torch.zeros(2).numpy()
    pairs = hs.EigenPairs(values[-2:].numpy(), zeros, zeros == 0, vectors[:, -2:].T.numpy())
    sizes = (1, min(4, samples), "full")
    found = hs.alignment(ev, sizes, 3, pairs=pairs, operator=operator, at_once=2)
    known = torch.from_numpy(found.alignment).isfinite().numpy()
    return {
        "alignment": found.alignment[known].tolist(),
        "norm": found.gradient_norm[known].tolist(),
        "cosine": (found.cosine[known] ** 2).flatten().tolist(),
        "captured": found.captured[known].tolist(),
    }


def of_dead_units(samples, world):
    """Units that the samples of one rank alone activate are alive on every rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    with torch.no_grad():
        model[0].bias -= 0.8
    ev = hs.Evaluator(model, F.cross_entropy, data(samples), batch_size=4, world=world)
    (layer,) = hs.dead_units(ev).layers
    return {"activity": layer.activity.tolist(), "dead": layer.dead.astype(float).tolist()}


def of_noise(source, world):
    """Gradients and eigenvectors of two matrices; signs of eigenvectors are no property of them."""
    torch.manual_seed(0)
    ev = hs.Evaluator(NETWORKS["mlp"](), F.cross_entropy, source, batch_size=3, world=world)
    found = hs.noise(ev, (1, "classes", 3), (1, 4, "full"), 3, at_once=2)
    known = torch.from_numpy(found.gradient_norm).isfinite().numpy()
    return {
        "norm": found.gradient_norm[known].tolist(),
        "deviation": found.deviation[known].tolist(),
        "cosine": (found.cosine[known] ** 2).flatten().tolist(),
        "overlap": (found.overlap**2).flatten().tolist(),
        "along": [*found.noise_along, *found.curvature_along],
        "angles": [*found.principal_angles(2), *found.principal_angles(3)],
    }


def told(action):
    """What this rank hears: [the class of the error, its text, the class of its cause]."""
    try:
        action()
    except Exception as error:
        return [type(error).__name__, str(error), type(error.__cause__).__name__]


def failures(world, folder):
    """What each rank hears where ranks fail or disagree; each must leave the world usable."""
    is_last = world.rank == world.size - 1

    class Strange(Exception):  # neither pickled nor made from one text
        def __init__(self, where, why):
            super().__init__(where, why)
            self.lock = threading.Lock()

    mine = Strange("layer 3", 7)
    same = hessian("mlp", 10, world).evaluator

    def spoiled_buffer():
        torch.manual_seed(0)
        model = NETWORKS["batch norm, dropout"]()
        model.body[2].running_mean += is_last
        hs.Evaluator(model, F.cross_entropy, data(10), world=world)

    def own_seed():
        torch.manual_seed(world.rank)
        hs.Evaluator(NETWORKS["mlp"](), F.cross_entropy, data(10), world=world)

    def own_theta():
        theta = same.theta
        theta[-1] += 1e-15 * is_last
        hs.Hessian(same, theta)

    def no_room():
        place = folder / "nowhere" if is_last else folder
        hs.spectral_density(hs.Hessian(same), 2, 3, basis=place)

    cases = {
        "input": lambda: world.raise_together(hs.InputError("too small") if is_last else None),
        "strange": lambda: world.raise_together(mine if is_last else None),
        "all strange": lambda: world.raise_together(mine),
        "system": lambda: world.raise_together(FileNotFoundError(2, "gone") if is_last else None),
        "own seed": own_seed,
        "buffer": spoiled_buffer,
        "theta": own_theta,
        "no room": no_room,
    }
    return {name: world.gather_objects(told(case)) for name, case in cases.items()}


def save(world, folder):
    """States after 4 and after 7 of 12 steps, for a resume on other numbers of ranks."""
    operator = hessian("mlp", 10, world)
    for estimator in ("block", "slq", "lean"):
        store = RecurrenceStore(folder / estimator, world)
        hs.spectral_density(
            operator,
            3,
            12,
            estimator=estimator,
            on_step=lambda s, to=store: s.num_steps in (4, 7) and to.save(s, operator.layout, {}),
        )


def resume(world, folder):
    """Those states, taken up by this world and brought to the end."""
    operator, results = hessian("mlp", 10, world), {}
    for estimator in ("block", "slq", "lean"):
        store = RecurrenceStore(folder / estimator, world)
        state = store.load(store.manifest(), operator.layout, torch.float64, 12)
        assert state.num_steps == 7
        results[estimator] = described(
            hs.spectral_density(operator, 3, 12, estimator=estimator, state=state)
        )
    return results


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
        "local sizes": world.gather_objects([world.local_size, hs.World.current().local_size]),
        "failures": failures(world, folder),
        "results": compute(world),
        "resumed": resume(world, Path(sys.argv[2])),
    }
    save(world, folder / "state")
    if world.rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    world.barrier()
    hs.distributed.finish()


if __name__ == "__main__":
    main()
