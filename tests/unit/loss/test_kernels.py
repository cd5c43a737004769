"""Attention has the Hessian of its formula, whichever kernels torch would rather use."""

import pytest
import torch
from dense_oracles import dense_hessian
from precision_switches import FLOAT32
from small_networks import CLASSES, relative
from torch import backends, nn
from torch.backends import cuda, mha
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import hessian_spectrum as hs
from hessian_spectrum.loss.backends import differentiable_kernels
from hessian_spectrum.operators.product_modes import MODES

TOKENS, WIDTH = 3, 4


class Attention(nn.Module):
    """One head by torch's fused function, or as it is written in the paper."""

    fused = True

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        q, k, v = self.mix(x)[:, None].chunk(3, dim=-1)
        if self.fused:
            attended = F.scaled_dot_product_attention(q, k, v)
        else:
            attended = (q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1) @ v
        return self.head(attended[:, 0].mean(1))


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 5, activation="gelu", batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


NETWORKS = {"function": Attention, "heads": Heads, "encoder layer": Encoder}
CASES = [(name, mode) for name in NETWORKS for mode in MODES]


def sequences(n=5):
    x = torch.randn(n, TOKENS, WIDTH, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (n,))


def switches():
    """Which kernels torch may use, as its user has set them."""
    return (
        mha.get_fastpath_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_products_of_attention_are_those_of_the_dense_hessian(name, mode):
    model, (x, y) = NETWORKS[name]().double(), sequences()
    ev = hs.Evaluator(model, F.cross_entropy, (x, y), batch_size=3)
    hessian = hs.Hessian(ev, plan=hs.ProductPlan(mode))
    v = torch.randn(ev.n, 3, dtype=torch.float64)
    product = hessian @ v

    model.eval()
    model.fused = False
    with sdpa_kernel(SDPBackend.MATH):
        expected = dense_hessian(model, lambda m: F.cross_entropy(m(x), y)) @ v
        assert ev.loss().item() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-14)
    assert relative(product, expected) < 1e-10  # measured: 1e-15


@pytest.fixture(params=[True, False])
def preferred(request):
    """Switches that are not torch's own, so that setting them back to those would be seen."""
    before = switches()
    mha.set_fastpath_enabled(request.param)
    cuda.enable_flash_sdp(False)
    cuda.enable_cudnn_sdp(request.param)
    yield switches()
    mha.set_fastpath_enabled(before[0])
    cuda.enable_flash_sdp(before[1])
    cuda.enable_cudnn_sdp(before[4])


def test_torchs_switches_are_found_as_they_were(preferred):
    model, data = Encoder().double(), sequences()
    seen = []

    def loss_fn(outputs, y):
        seen.append(switches())
        return F.cross_entropy(outputs, y)

    ev = hs.Evaluator(model, loss_fn, data)
    hs.Hessian(ev) @ torch.ones(ev.n, dtype=torch.float64)
    assert set(seen) == {(False, False, False, True, False)}  # inside: the math kernel alone
    assert switches() == preferred
    with pytest.raises(hs.InputError, match="cannot be evaluated: ValueError: no loss"):
        hs.Evaluator(model, failing, data)
    assert switches() == preferred


def failing(outputs, y):
    raise ValueError("no loss")


SETTINGS = {  # what a user may have set, by torch's older or newer switches
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older convolution": lambda: setattr(backends.cudnn, "allow_tf32", False),
    "newer matmul": lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
    "newer convolution": lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
}


def settings():
    """All that can be read: torch refuses where its older and newer switches disagree."""
    found = [kernel.fp32_precision for kernel in FLOAT32]
    for read in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append("refused")
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_float32_means_float32_whatever_torch_was_told_and_it_stays_told(name):
    cpu, untouched = torch.device("cpu"), settings()
    try:
        SETTINGS[name]()
        before = settings()
        with differentiable_kernels(None, cpu):
            inside = settings()
        assert inside[:6] == ["ieee"] * 6
        for found, wanted, earlier in zip(inside[6:], ("highest", False), before[6:]):
            assert found == wanted or found == earlier == "refused"
        assert settings() == before
        with differentiable_kernels("tf32", cpu):
            assert settings()[:6] == ["tf32"] * 6
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = True
        for kernel, value in zip(FLOAT32, untouched):
            kernel.fp32_precision = value
    assert settings() == untouched
