"""The networks on which products are measured: model, loss and data, made from a seed.

Labels are random and parameters are initial, since the cost of a product does not depend on them.
Only what could change the arithmetic is realistic: BatchNorm's running statistics come from data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hessian_spectrum.zoo import build_model, load_dataset
from hessian_spectrum.zoo.torchvision_compat import import_torchvision


class TokenCrossEntropy(nn.CrossEntropyLoss):
    """Mean cross entropy of logits (B T, V), a row a token, and tokens (B, T)."""

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return super().forward(logits, tokens.flatten())


@dataclass(frozen=True)
class Problem:
    """A model in eval mode, its mean loss, and all the data in minibatches of one size."""

    name: str
    model: nn.Module
    loss_fn: nn.Module
    inputs: Tensor
    targets: Tensor
    batch_size: int
    check_samples: int  # samples on which products are compared with float64
    fused: nn.Module | None = None  # the same function by a kernel without second derivatives
    data: str = "random"

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def n(self) -> int:
        return sum(p.numel() for p in self.parameters)

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Views of the data; the last minibatch may be smaller."""
        size = self.batch_size
        return list(zip(self.inputs.split(size), self.targets.split(size)))

    def first(self, samples: int) -> Problem:
        """The first samples, cut into minibatches in the proportions of the whole."""
        share = samples / len(self.inputs)
        return replace(
            self,
            inputs=self.inputs[:samples],
            targets=self.targets[:samples],
            batch_size=max(1, math.ceil(self.batch_size * share)),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Problem:
        """A copy with a copy of the model; labels and tokens stay integers."""
        inputs = self.inputs.to(device, dtype if self.inputs.is_floating_point() else None)
        return replace(
            self,
            model=copy.deepcopy(self.model).to(device, dtype),
            fused=self.fused and copy.deepcopy(self.fused).to(device, dtype),
            inputs=inputs,
            targets=self.targets.to(device),
        )


def build(name: str, samples: int | None = None, data_root: Path | None = None) -> Problem:
    """The problem of this name, float32 on the CPU; the same in every process.

    Args:
        name: a key of NETWORKS.
        samples: default: the network's own number; for language models, sequences.
        data_root: folder of MNIST, for ``mlp``; default: random pixels.
    """
    torch.manual_seed(0)
    problem = NETWORKS[name](samples, data_root)
    problem.model.eval()
    return problem


# -- the problems ----------------------------------------------------------------------------


def _mlp(samples: int | None, data_root: Path | None) -> Problem:
    samples, data = samples or 10_000, "random pixels"
    if data_root is None:
        inputs, targets = torch.rand(samples, 1, 28, 28), torch.randint(10, (samples,))
    else:
        inputs, targets = load_dataset("mnist", data_root=data_root, limit=samples).tensors
        data = "MNIST"
    model = build_model("mlp-784-20-10", activation="tanh")
    loss = nn.CrossEntropyLoss()
    return Problem("mlp", model, loss, inputs, targets, 4096, check_samples=100, data=data)


def _resnet20(samples: int | None, data_root: Path | None) -> Problem:
    model = build_model("resnet20", input_shape=(3, 32, 32))
    return _images("resnet20", model, samples or 256, 32, 10, batch_size=128, check_samples=8)


def _torchvision(name: str, samples: int, batch_size: int) -> Callable[..., Problem]:
    def make(given: int | None, data_root: Path | None) -> Problem:
        model = getattr(import_torchvision().models, name)()
        return _images(name, model, given or samples, 224, 1000, batch_size, check_samples=2)

    return make


def _images(
    name: str,
    model: nn.Module,
    samples: int,
    side: int,
    classes: int,
    batch_size: int,
    check_samples: int,
) -> Problem:
    inputs, targets = torch.randn(samples, 3, side, side), torch.randint(classes, (samples,))
    _settle_batch_norm(model, inputs[:32])
    loss = nn.CrossEntropyLoss()
    return Problem(name, model, loss, inputs, targets, batch_size, check_samples)


def _settle_batch_norm(model: nn.Module, inputs: Tensor) -> None:
    """Running statistics from these inputs, and scales and shifts other than 1 and 0."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    with torch.no_grad():
        for layer in layers:
            layer.momentum = 1.0
            layer.weight.add_(0.1 * torch.randn_like(layer.weight))
            layer.bias.add_(0.1 * torch.randn_like(layer.bias))
        model.train()
        model(inputs)
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum


def _lstm(samples: int | None, data_root: Path | None) -> Problem:
    vocabulary, width, layers, length = 1000, 128, 2, 32
    model = LSTMLanguageModel(vocabulary, width, layers)
    fused = FusedLSTMLanguageModel(model)
    inputs, targets = _tokens(vocabulary, samples or 64, length)
    loss = TokenCrossEntropy()
    return Problem("lstm", model, loss, inputs, targets, 32, check_samples=4, fused=fused)


def _transformer(samples: int | None, data_root: Path | None) -> Problem:
    model = Transformer(vocabulary=256, width=128, heads=4, layers=4, length=64)
    inputs, targets = _tokens(256, samples or 16, 64)
    return Problem("transformer", model, TokenCrossEntropy(), inputs, targets, 16, 4)


def _gpt2(samples: int | None, data_root: Path | None) -> Problem:
    model = Transformer(50257, width=768, heads=12, layers=12, length=1024, tied=True)
    inputs, targets = _tokens(50257, samples or 8, 512)
    return Problem("gpt2", model, TokenCrossEntropy(), inputs, targets, 4, check_samples=1)


def _tokens(vocabulary: int, sequences: int, length: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(vocabulary, (sequences, length + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


NETWORKS: dict[str, Callable[[int | None, Path | None], Problem]] = {
    "mlp": _mlp,
    "resnet20": _resnet20,
    "lstm": _lstm,
    "transformer": _transformer,
    "resnet18": _torchvision("resnet18", 64, 32),
    "resnet50": _torchvision("resnet50", 32, 32),
    "gpt2": _gpt2,
}
CUDA_ONLY = ("resnet18", "resnet50", "gpt2")


# -- language models -------------------------------------------------------------------------


class LSTMLanguageModel(nn.Module):
    """Tokens (B, T) -> logits (B T, V) through an LSTM written out cell by cell.

    The equations and the parameters' order of ``nn.LSTM``, whose fused kernels have no second
    derivative.
    """

    def __init__(self, vocabulary: int, width: int, layers: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.cells = nn.ModuleList(_Cell(width) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for cell in self.cells:
            x = cell(x)
        return self.head(x.flatten(0, 1))


class _Cell(nn.Module):
    """One LSTM layer: (B, T, width) -> (B, T, width), from a state of zeros."""

    def __init__(self, width: int):
        super().__init__()
        bound = width**-0.5
        shapes = ((4 * width, width), (4 * width, width), (4 * width,), (4 * width,))
        weights = [nn.Parameter(torch.empty(shape).uniform_(-bound, bound)) for shape in shapes]
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = weights

    def forward(self, x: Tensor) -> Tensor:
        # The inputs' part of all steps at once, as fused kernels do.
        inputs = F.linear(x, self.weight_ih, self.bias_ih + self.bias_hh)
        h = c = x.new_zeros(len(x), x.shape[-1])
        steps = []
        for given in inputs.unbind(1):
            i, f, g, o = (given + h @ self.weight_hh.T).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            steps.append(h)
        return torch.stack(steps, dim=1)


class FusedLSTMLanguageModel(nn.Module):
    """The same function by ``nn.LSTM``, with copies of the same parameters in the same order."""

    def __init__(self, model: LSTMLanguageModel):
        super().__init__()
        width = model.embedding.embedding_dim
        self.embedding = copy.deepcopy(model.embedding)
        self.lstm = nn.LSTM(width, width, len(model.cells), batch_first=True)
        self.head = copy.deepcopy(model.head)
        own = [p for cell in model.cells for p in cell.parameters()]
        with torch.no_grad():
            for p, value in zip(self.lstm.parameters(), own):
                p.copy_(value)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0].flatten(0, 1))


class Transformer(nn.Module):
    """A decoder-only transformer, pre-norm: tokens (B, T) -> logits (B T, V).

    Attention is written out, since fused attention has no second derivative. With width 768, 12
    heads, 12 layers and tied embeddings it is GPT-2's shape, 124M parameters.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        heads: int,
        layers: int,
        length: int,
        tied: bool = False,
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)).flatten(0, 1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        attention = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out((attention @ v).transpose(1, 2).flatten(2))
