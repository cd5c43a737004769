"""Small problems of gradient alignment, with eigenpairs of their dense Hessian."""

import numpy as np
import torch
from small_networks import NETWORKS, data
from torch.nn import functional as F

import hessian_spectrum as hs

N = 23


def evaluator(network="mlp", samples=N, batch_size=5, **options):
    torch.manual_seed(0)
    return hs.Evaluator(
        NETWORKS[network](), F.cross_entropy, data(samples), batch_size=batch_size, **options
    )


def eigenpairs(matrix, k):
    values, vectors = torch.linalg.eigh(matrix)
    zeros = np.zeros(k)
    return hs.EigenPairs(values[-k:].numpy(), zeros, zeros == 0, vectors[:, -k:].T.numpy())
