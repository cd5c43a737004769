"""Hessian products per point of a curvature map, compared with SciPy's eigsh at each point.

Both find the largest and the smallest eigenvalue to the same residual, relative to the larger
|eigenvalue|. eigsh finds the eigenvalue of largest magnitude, then the other end of the spectrum
from the matrix shifted by it, as in the code of Li et al. (2018). eigsh starts anew at each point;
ours starts from the eigenvectors of the point before ("warm") or anew ("cold"). True residuals of
both are computed afterwards, and the eigenvalues are compared.

    python benchmarks/map_products.py --network digits --grid 9
    python benchmarks/map_products.py --network digits --grid 51 --paths 8    # evenly spread
    python benchmarks/map_products.py --network mnist --grid 9 --data-root DATA --checkpoint c.pt
    python benchmarks/map_products.py --network resnet20 --data-root cifar10.npz --checkpoint c.pt \
        --no-batchnorm --no-shortcut --dtype float32 --samples 64 --paths 2 --length 5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum.analyses.curvature_map import LENGTH, map_task, segments
from hessian_spectrum.krylov.extremal import extremes


class Counted:
    """Counted products with one vector, as NumPy arrays."""

    def __init__(self, operator: hs.SymmetricOperator):
        self.operator, self.count = operator, 0

    def __call__(self, v: np.ndarray, shift: float = 0.0) -> np.ndarray:
        self.count += 1
        row = torch.from_numpy(v.reshape(1, -1)).to(self.operator.dtype)
        return self.operator.products(row).numpy()[0] - shift * v.reshape(-1)


def cold(operator: hs.SymmetricOperator, tol: float, seed: int) -> tuple[list, list, int]:
    """(values, true residuals, products) by SciPy, started from a random vector."""
    product = Counted(operator)
    v0 = np.random.default_rng(seed).standard_normal(operator.n)
    values, vectors, shift = [], [], 0.0
    for _ in range(2):
        shifted = LinearOperator(
            operator.shape, matvec=lambda v, s=shift: product(v, s), dtype=np.float64
        )
        try:
            found, vector = eigsh(shifted, 1, which="LM", tol=tol, v0=v0)
        except ArpackNoConvergence:
            return [], [], product.count
        values.append(found[0] + shift)
        vectors.append(vector[:, 0])
        shift = values[0]
    spent = product.count
    residuals = [np.linalg.norm(product(v, x)) for v, x in zip(vectors, values)]
    order = np.argsort(values)
    return np.array(values)[order], np.array(residuals)[order], spent


def problem(args: argparse.Namespace) -> hs.Evaluator:
    name = {"digits": "mlp-64-20-10", "mnist": "mlp-784-20-10"}.get(args.network, args.network)
    dataset = "arrays" if args.network == "resnet20" else args.network
    data = zoo.load_dataset(dataset, data_root=args.data_root, limit=args.samples)
    parts = {"shortcut": not args.no_shortcut, "batchnorm": not args.no_batchnorm}
    model = zoo.model_for(data, name, args.activation, 0, **parts)
    if args.checkpoint:
        zoo.load_checkpoint(model, args.checkpoint)
    else:  # some deterministic steps towards a minimum
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
            optimizer.step()
    dtype = getattr(torch, args.dtype)
    return hs.Evaluator(model, nn.CrossEntropyLoss(), data.tensors, dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=("digits", "mnist", "resnet20"), default="digits")
    parser.add_argument("--activation", choices=("tanh", "relu"), default="tanh")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--grid", type=int, default=9)
    parser.add_argument("--paths", type=int, help="number of paths, evenly spread; default: all")
    parser.add_argument("--length", type=int, help="points of each path; default: all")
    parser.add_argument("--no-batchnorm", action="store_true", help="resnet20 without it")
    parser.add_argument("--no-shortcut", action="store_true", help="resnet20 without it")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--span", type=float, default=1.0)
    parser.add_argument("--tol", type=float, nargs="+", default=[1e-5])
    args = parser.parse_args()

    ev = problem(args)
    along = hs.directions.random(ev)
    axis = np.linspace(-args.span, args.span, args.grid)
    task = map_task(ev, along, (axis, axis))
    plan = hs.ProductPlan("linearize", keep=True)
    paths = segments((args.grid, args.grid), LENGTH)
    if args.paths:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, args.paths).astype(int)]
    paths = [path[: args.length] for path in paths]
    points = sum(map(len, paths))
    of = f"{points} of {args.grid} x {args.grid} points"
    print(f"{args.network} {args.activation}, n = {ev.n}, {args.dtype}, {of}")
    print(
        "| tolerance | ours, cold | ours, warm | SciPy | ours / SciPy | worst residuals | values |"
    )
    print("|---|---|---|---|---|---|---|")
    for tol in args.tol:
        print(row(ev, task, plan, tol, paths), flush=True)


def row(ev: hs.Evaluator, task, plan: hs.ProductPlan, tol: float, paths: list[list[int]]) -> str:
    counts, worst, difference = [], np.zeros(2), 0.0
    for path in paths:
        known = None
        for index in path:
            operator = hs.Hessian(ev, task.points.rows(index, index + 1)[0], plan)
            alone = extremes(operator, tol=tol)
            known = found = extremes(operator, known, tol=tol)
            values, residuals, spent = cold(operator, tol, index)
            counts.append((alone.products, found.products, spent))
            true = (
                operator.products(found.vectors)
                - found.vectors * torch.tensor(found.values).to(ev.dtype)[:, None]
            )
            scale = np.abs(found.values).max()
            ours = true.norm(dim=1).max().item() / scale
            worst = np.maximum(worst, (ours, residuals.max() / scale))
            difference = max(difference, np.abs(values - found.values).max() / scale)
    counts = np.array(counts, float)
    ratio = counts[:, 1].sum() / counts[:, 2].sum()
    cells = [f"{np.mean(c):.1f} [{c.min():.0f}, {c.max():.0f}]" for c in counts.T]
    return (
        f"| {tol:.0e} | {' | '.join(cells)} | {ratio:.2f} | {worst[0]:.0e}, {worst[1]:.0e} | "
        f"{difference:.0e} |"
    )


if __name__ == "__main__":
    main()
