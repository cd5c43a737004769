"""The estimated density is unbiased over many seeds."""

import numpy as np
import torch
from prescribed_spectra import marchenko_pastur

import hessian_spectrum as hs


def test_the_estimate_is_unbiased_over_seeds():
    matrix = marchenko_pastur()
    exact = torch.linalg.eigvalsh(matrix).numpy()
    counts = [hs.spectral_density(hs.Dense(matrix), 1, 40, seed=s).count(1, 9) for s in range(60)]
    error = np.std(counts, ddof=1) / np.sqrt(60)
    assert abs(np.mean(counts) - (exact >= 1).sum()) < 3 * error
