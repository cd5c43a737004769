"""Residuals of a curvature map include what the arithmetic of its products adds."""

import numpy as np
import torch
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum.landscape.direction_grid import grid_task

GRID = 3


def evaluator(dtype):
    torch.manual_seed(0)
    x, y = torch.randn(60, 8), torch.randint(3, (60,))
    model = nn.Sequential(
        nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 3)
    )
    return hs.Evaluator(model, nn.CrossEntropyLoss(), (x, y), dtype=dtype)


def test_the_true_eigenvalues_lie_within_the_residuals_in_low_precision():
    ev, exact = evaluator(torch.float32), evaluator(torch.float64)
    plane = hs.directions.random(ev, count=2, seed=0)
    plan = hs.ProductPlan(precision="bfloat16")
    found = hs.curvature_map(
        ev, plane, GRID, tol=1e-5, max_products=200, operator=lambda ev, t: hs.Hessian(ev, t, plan)
    ).values
    eye = torch.eye(ev.n, dtype=torch.float64)
    true = np.array(
        [
            torch.linalg.eigvalsh(hs.Hessian(exact, theta.double()) @ eye)[[0, -1]].numpy()
            for theta in grid_task(ev, plane, GRID).points.rows(0, GRID**2)
        ]
    )
    for column, name in enumerate(("smallest", "largest")):
        error = np.abs(found[name].reshape(-1) - true[:, column])
        assert error.max() > 1e-4 * true.max()  # ten times the tolerance
        assert (error <= found[f"{name}_residual"].reshape(-1)).all()
