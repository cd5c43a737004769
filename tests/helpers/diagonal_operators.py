"""Diagonal operators with prescribed spectra, and their block quadrature rules."""

import numpy as np
import torch
from scipy.integrate import trapezoid

import hessian_spectrum as hs
from hessian_spectrum.distributed.random_vectors import gaussian_probes
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.krylov import block_lanczos
from hessian_spectrum.spectral.quadrature import BlockRule

N = 400


class Diagonal(hs.SymmetricOperator):
    """Gaussian probes make every matrix of this spectrum equivalent."""

    def __init__(self, values, dtype=torch.float64):
        self.values = torch.as_tensor(values).to(dtype)
        self.layout, self.dtype = Layout.of_size(len(self.values)), dtype

    def products(self, vectors):
        return vectors * self.values


def rng():
    return np.random.default_rng(0)


OUTLIERS = np.array([-0.6, 0.3, 0.5, 0.8, 1.0, 1.7, 2.0, 3.0])

SPECTRA = {
    "outliers": np.r_[0.005 * rng().standard_normal(N - 8), OUTLIERS],
    "a gap": np.r_[np.linspace(-0.1, 0.1, N // 2), np.linspace(1, 1.2, N - N // 2)],
    "clusters": np.r_[np.zeros(N - 40), 1 + 1e-4 * rng().standard_normal(40)],
    "multiplicities": np.r_[np.zeros(N - 9), [0.5] * 3, [1.0] * 6],
    "all zero": np.zeros(N),
    "low rank": np.r_[np.zeros(N - 5), [1.0, 2.0, 3.0, 4.0, 5.0]],
    "power law": np.arange(1, N + 1) ** -1.2,
    "no outliers": np.sort(rng().standard_normal((N, 2 * N)) @ np.ones(2 * N)) / N,
    "Marchenko-Pastur": np.linalg.eigvalsh(np.cov(rng().standard_normal((N, 2 * N)))),
}

SIGMA2 = 1e-3


def l1(measure, exact, sigma2=SIGMA2):
    t = measure.grid(sigma2, 1500)
    true = np.exp(-((t[:, None] - exact) ** 2) / (2 * sigma2)).mean(1) / np.sqrt(2 * np.pi * sigma2)
    return trapezoid(np.abs(measure.density(t, sigma2) - true), t)


def rule_of(operator, b, m, seed):
    """What m steps from b probes know of the operator."""
    z = gaussian_probes(operator.layout, range(b), seed, operator.dtype)
    space = block_lanczos.start(operator, z, m)
    while space.num_steps < m and not space.is_finished:
        space = space.step(operator)
    return BlockRule(space.t, space.first, space.off[-1], space.num_steps)


class Noisy(Diagonal):
    """Each product is wrong by a hundredth of its length, in no particular direction."""

    def __init__(self, values, seed):
        super().__init__(values)
        self.generator = torch.Generator().manual_seed(seed)

    def products(self, vectors):
        exact = super().products(vectors)
        noise = torch.randn(exact.shape, generator=self.generator, dtype=exact.dtype)
        return exact + 1e-2 * exact.norm(dim=1, keepdim=True) * noise / self.n**0.5


def rules(values, b, m, seeds):
    return (rule_of(Diagonal(values), b, m, seed) for seed in range(seeds))


def check_mean(found, exact, slack=1e-12):
    """The mean over seeds is the exact value within four of its standard errors."""
    error = np.std(found, axis=0, ddof=1) / len(found) ** 0.5
    assert (np.abs(np.mean(found, axis=0) - exact) < 4 * error + slack).all()
    return error
