"""Reference runs: small commands whose results must stay as they are, and what they gave.

python tests/golden/reference_runs.py record     write reference.npz anew, from this checkout
python tests/golden/reference_runs.py compare    bit for bit, on the processor that wrote it

Processors round differently, so that the test suite compares to a tolerance; a change that is
meant to change no number is compared bit for bit by hand, on one machine, before and after it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

HERE = Path(__file__).parent
REFERENCE = HERE / "reference.npz"
PROBLEM = ["--model", "mlp-64-5-10", "--dataset", "digits", "--limit", "101", "--batch-size", "40"]
NUMBERS = ["--num-probes", "3", "--num-steps", "7"]
SIZES = [*NUMBERS, "--hvp", "reverse"]
PAIRS = ["--k", "2", "--tol", "1e-8", "--hvp", "reverse"]
DOUBLE = ["--dtype", "float64"]
NETWORKS = [f"{HERE / 'networks' / name}.safetensors" for name in ("first", "second", "third")]

RUNS = {
    "density": ["density", *PROBLEM, *DOUBLE, *SIZES],
    "density-float32": ["density", *PROBLEM, *SIZES],
    "slq": ["density", *PROBLEM, *DOUBLE, *SIZES, "--estimator", "slq"],
    "lean": ["density", *PROBLEM, *DOUBLE, *SIZES, "--estimator", "lean"],
    "data-groups": ["density", *PROBLEM, *DOUBLE, *SIZES, "--data-groups", "3"],
    "linearize": ["density", *PROBLEM, *DOUBLE, *NUMBERS, "--hvp", "linearize"],
    "gauss-newton": ["density", *PROBLEM, *DOUBLE, *SIZES, "--operator", "gauss-newton"],
    "covariance": ["density", *PROBLEM, *DOUBLE, *SIZES, "--operator", "gradient-covariance"],
    "eigenpairs": ["eigenpairs", *PROBLEM, *DOUBLE, *PAIRS],
    "restarted": ["eigenpairs", *PROBLEM, *DOUBLE, *PAIRS, "--basis-size", "14"],
    "eigenpairs-float32": [
        *("eigenpairs", *PROBLEM, "--k", "2", "--tol", "1e-4", "--hvp", "reverse"),
    ],
    "alignment": [
        *("alignment", *PROBLEM, *DOUBLE, "--hvp", "reverse", "--k", "2"),
        *("--batch-sizes", "10", "full", "--num-batches", "4"),
    ],
    "interpolate": [
        "interpolate",
        *PROBLEM,
        *DOUBLE,
        "--between",
        *NETWORKS[:2],
        "--num-points",
        "5",
    ],
    "surface": ["surface", *PROBLEM, *DOUBLE, "--x-points", "3", "--y-points", "4"],
    "map": ["map", *PROBLEM, *DOUBLE, "--x-points", "3", "--y-points", "2", "--hvp", "reverse"],
    "track": ["track", *PROBLEM, *DOUBLE, "--checkpoints", *NETWORKS],
}
RANKS = {name: (1, 2) for name in RUNS}
PRODUCTS = "products, passes"  # of the first rank: exact, on every processor


def run(name: str, ranks: int, folder: Path) -> dict[str, np.ndarray]:
    """Every number of the results that this command writes on so many ranks."""
    out = folder / f"{name}-{ranks}.h5"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    command = [
        *(sys.executable, *(launcher if ranks > 1 else [])),
        *("-m", "hessian_spectrum", *RUNS[name], "--out", str(out)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return numbers(out)


def numbers(path: Path) -> dict[str, np.ndarray]:
    """Every array of numbers in a result file, by its path; and what it took to compute them."""
    import hessian_spectrum as hs

    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:

        def visit(name: str, data: object) -> None:
            if isinstance(data, h5py.Dataset) and data.dtype.kind in "biuf":
                found[name] = data[()]

        file.visititems(visit)
    with hs.open(path) as stored:
        found[PRODUCTS] = np.array([stored.provenance[n] for n in ("products", "passes")])
    return found


def recorded() -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """By (run, ranks): arrays by their paths in the result file."""
    found: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    with np.load(REFERENCE) as reference:
        for key in reference.files:
            name, ranks, path = key.split("|")
            found.setdefault((name, int(ranks)), {})[path] = reference[key]
    return found


def _every(folder: Path):
    for name in RUNS:
        for ranks in RANKS[name]:
            yield name, ranks, run(name, ranks, folder)


def record() -> None:
    with tempfile.TemporaryDirectory() as folder:
        arrays = {
            f"{name}|{ranks}|{path}": array
            for name, ranks, found in _every(Path(folder))
            for path, array in found.items()
        }
    np.savez_compressed(REFERENCE, **arrays)
    print(f"{len(arrays)} arrays of {len(RUNS)} runs in {REFERENCE}")


def compare() -> int:
    """How many runs are not the same bit for bit; new data sets are no difference."""
    different, before = 0, recorded()
    with tempfile.TemporaryDirectory() as folder:
        for name, ranks, found in _every(Path(folder)):
            wrong = [
                path
                for path, array in before[name, ranks].items()
                if path not in found or found[path].tobytes() != array.tobytes()
            ]
            print(
                f"{name} on {ranks}: {'the same' if not wrong else f'DIFFERENT {wrong}'}",
                flush=True,
            )
            different += bool(wrong)
    return different


if __name__ == "__main__":
    words = {"record": record, "compare": compare}
    if sys.argv[1:2] and sys.argv[1] in words:
        sys.exit(words[sys.argv[1]]())
    sys.exit(__doc__)
