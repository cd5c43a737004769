"""Shared oracles: the dense float64 Hessian of an independently written full-batch loss."""

import os
from pathlib import Path

# Before torch starts, and for the processes that tests start: test workers and ranks side by side
# would otherwise each use every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import backends, nn

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("HESSIAN_SPECTRUM_DATA", ROOT.parent / "shared" / "data"))


FLOAT32 = (
    *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
    *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
)


@pytest.fixture(autouse=True)
def _seed(monkeypatch, tmp_path_factory):
    torch.manual_seed(0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _torch_is_found_as_it_was():
    """Whatever a test computes, torch's switches are not left turned."""
    before = [kernel.fp32_precision for kernel in FLOAT32]
    yield
    assert [kernel.fp32_precision for kernel in FLOAT32] == before


@pytest.fixture
def data_root() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no data at {DATA}; set HESSIAN_SPECTRUM_DATA")
    return DATA


def dense_hessian(model, loss_of_model, parameters=None):
    """(n, n) of ``loss_of_model(model)``, one scalar over all data in one batch.

    Reverse over reverse by torch.autograd.functional: forward over ``jacrev`` is silently wrong
    with LayerNorm.
    """
    named = {
        name: p.detach()
        for name, p in model.named_parameters()
        if p.requires_grad and (parameters is None or name in parameters)
    }
    sizes = [p.numel() for p in named.values()]

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return loss_of_model(self.model)

    def loss(theta):
        parts = zip(named.items(), theta.split(sizes))
        state = {f"model.{name}": part.view_as(p) for (name, p), part in parts}
        return torch.func.functional_call(Loss(), state, ())

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    return torch.autograd.functional.hessian(loss, theta)


def with_spectrum(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = (q * eigenvalues) @ q.T
    return (matrix + matrix.T) / 2
