"""Dense matrices with prescribed eigenvalues, and their block Krylov spaces."""

import numpy as np
import torch

import hessian_spectrum as hs
from hessian_spectrum.krylov import block_lanczos


def with_spectrum(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = (q * eigenvalues) @ q.T
    return (matrix + matrix.T) / 2


BULK = [*np.linspace(-0.01, 0.01, 40), *([0.0] * 20)]

OUTLIERS = [-1.0, 0.5, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0]


def space_of(matrix, b, steps, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    probes = torch.randn(b, len(matrix), generator=generator, dtype=torch.float64).to(dtype)
    operator = hs.Dense(matrix.to(dtype))
    space = block_lanczos.start(operator, probes, steps)
    while space.num_steps < steps and not space.is_finished:
        space = space.step(operator)
    return space, probes


def marchenko_pastur(n=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 100, generator=generator, dtype=torch.float64)
    return x @ x.T / 100 - 0.3 * torch.eye(n).double()  # two thirds rank, negative eigenvalues
