"""Small models of every supported kind, each with an independent reference for its operators.

A kind defines its loss twice: as arguments of ``hs.Evaluator``, and as two plain functions, the
model's outputs for all the data and the losses of single samples from these outputs. Everything is
float64 and small enough for dense matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import default_collate

N, BATCH = 7, 3  # minibatches of 3, 3 and 1


@dataclass
class Kind:
    """A model with its loss and data, as an evaluator's arguments and as plain functions."""

    model: nn.Module
    loss_fn: Callable
    data: Any
    outputs: Callable[[nn.Module], Tensor]  # plain: model -> outputs of all samples
    losses: Callable[[Tensor], Tensor]  # plain: outputs -> (N,), losses of the samples
    total: float = N  # the divisor of their sum
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of Evaluator
    modes: Callable = lambda model: model.eval()  # plain: sets train or eval mode

    def arguments(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "loss_fn": self.loss_fn,
            "data": self.data,
            "batch_size": BATCH,
            **self.options,
        }


class Plain(nn.Module):
    """The outputs of all samples as a function of the flat parameters."""

    def __init__(self, kind: Kind):
        super().__init__()
        self.model, self._kind = kind.model, kind

    def forward(self) -> Tensor:
        return self._kind.outputs(self.model)

    def at(self, theta: Tensor) -> Tensor:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        parts = theta.split([p.numel() for _, p in named])
        state = {name: part.view_as(p) for (name, p), part in zip(named, parts)}
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.functional_call(self, state, ())


@dataclass
class Oracle:
    """Dense matrices by reverse mode of torch.autograd, in float64."""

    hessian: Tensor
    gauss_newton: Tensor
    second_moment: Tensor  # of the gradients of single samples
    gradient: Tensor


def oracle(kind: Kind) -> Oracle:
    from torch.autograd.functional import hessian, jacobian

    plain = Plain(kind)
    modes = [(module, module.training) for module in kind.model.modules()]
    kind.modes(kind.model)
    theta = torch.cat([p.detach().reshape(-1) for p in plain.parameters() if p.requires_grad])
    outputs = plain.at(theta).detach()

    def mean(outputs: Tensor) -> Tensor:
        return kind.losses(outputs).sum() / kind.total

    j = jacobian(plain.at, theta).reshape(-1, len(theta))
    samples = jacobian(lambda t: kind.losses(plain.at(t)), theta)
    inner = hessian(mean, outputs).reshape(outputs.numel(), outputs.numel())
    found = Oracle(
        hessian(lambda t: mean(plain.at(t)), theta),
        j.T @ inner @ j,
        samples.T @ samples * len(samples) / kind.total**2,
        samples.sum(0) / kind.total,
    )
    for module, training in modes:
        module.training = training
    return found


# -- images and features ------------------------------------------------------------------------


def _classes(count: int = N) -> Tensor:
    return torch.arange(count) % 3


def _classifier(model: nn.Module, x: Tensor, **fields: Any) -> Kind:
    y = _classes()
    return Kind(
        model.double(),
        nn.CrossEntropyLoss(),
        (x, y),
        **{
            "outputs": lambda m: m(x),
            "losses": lambda z: F.cross_entropy(z, y, reduction="none"),
            **fields,
        },
    )


def _features(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), *layers, nn.Tanh(), nn.Linear(5, 3))


def mlp() -> Kind:
    return _classifier(_features(), torch.randn(N, 4).double())


def layer_norm() -> Kind:
    return _classifier(_features(nn.LayerNorm(5)), torch.randn(N, 4).double())


def _convolutions(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        norm,
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def _images() -> Tensor:
    return torch.randn(N, 2, 4, 4).double()


def group_norm() -> Kind:
    return _classifier(_convolutions(nn.GroupNorm(2, 4)), _images())


def _batch_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


def batch_norm_eval() -> Kind:
    return _classifier(_convolutions(_batch_norm()), _images())


def batch_norm_train() -> Kind:
    x = _images()

    def outputs(model: nn.Module) -> Tensor:
        with _no_updates(model):
            return torch.cat([model(batch) for batch in x.split(BATCH)])

    return _classifier(
        _convolutions(_batch_norm()),
        x,
        outputs=outputs,
        options={"batch_norm": "train"},
        modes=lambda model: model.train(),
    )


@contextmanager
def _no_updates(model: nn.Module):
    """Within the context train mode does not update running statistics."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    yield
    for norm in norms:
        norm.track_running_stats = True


def batch_norm_recalibrated() -> Kind:
    x = _images()
    norm = _batch_norm()
    model = _convolutions(norm).double()
    with torch.no_grad():
        inputs = model[0](x)
    mean, variance = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), unbiased=False)

    def outputs(model: nn.Module) -> Tensor:
        norm = model[1]
        h = (model[0](x) - mean[:, None, None]) * (variance[:, None, None] + norm.eps) ** -0.5
        h = h * norm.weight[:, None, None] + norm.bias[:, None, None]
        return model[2:](h)

    return _classifier(model, x, outputs=outputs, options={"batch_norm": "recalibrate"})


def frozen_dropout() -> Kind:
    from hessian_spectrum.loss.dropout import frozen

    x = torch.randn(N, 4).double()
    model = _features(nn.Dropout(0.4)).double()
    with frozen(model.eval(), 3, {}):
        mask = model[1](torch.ones(1, 5).double())
    return _classifier(
        model,
        x,
        outputs=lambda m: m[2:](m[0](x) * mask),
        options={"dropout": "frozen", "dropout_seed": 3},
    )


class TwoHeads(nn.Module):
    """Returns a dict with a mean and the logarithm of a standard deviation."""

    def __init__(self):
        super().__init__()
        self.body, self.mean, self.scale = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.body(x))
        return {"mean": self.mean(h), "log_std": self.scale(h)}


def regression() -> Kind:
    """Heteroscedastic regression: outputs and batches are dicts."""
    batches = {"x": torch.randn(N, 3).double(), "y": torch.randn(N, 2).double()}
    data = [{name: t[i] for name, t in batches.items()} for i in range(N)]

    def losses(mean: Tensor, log_std: Tensor, y: Tensor) -> Tensor:
        return (log_std + 0.5 * ((y - mean) / log_std.exp()) ** 2).sum(1)

    def plain(model: nn.Module) -> Tensor:
        out = model(batches["x"])
        return torch.cat([out["mean"], out["log_std"]], dim=1)

    return Kind(
        TwoHeads().double(),
        lambda out, batch: losses(out["mean"], out["log_std"], batch["y"]),
        data,
        plain,
        lambda z: losses(*z.chunk(2, dim=1), batches["y"]),
        options={"forward": lambda m, batch: m(batch["x"]), "reduction": "none"},
    )


# -- sequences ----------------------------------------------------------------------------------

VOCABULARY, LENGTH, IGNORED = 6, 4, -100


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 3)
        self.recurrence = kind(3, 3, num_layers=2, batch_first=True)
        self.head = nn.Linear(3, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.recurrence(self.embedding(tokens))[0]).transpose(1, 2)


def _tokens() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(VOCABULARY, (N, LENGTH + 1))
    targets = tokens[:, 1:].clone()
    targets[0, 2:] = targets[2, :1] = IGNORED  # sequences of uneven length: padding is ignored
    return tokens[:, :-1].contiguous(), targets


def _recurrent(kind: type[nn.RNNBase]) -> Kind:
    tokens, targets = _tokens()
    return Kind(
        Recurrent(kind).double(),
        nn.CrossEntropyLoss(),
        (tokens, targets),
        lambda m: m(tokens),
        lambda z: F.cross_entropy(z, targets, reduction="none").sum(1),
        total=(targets != IGNORED).sum().item(),
    )


def lstm() -> Kind:
    return _recurrent(nn.LSTM)


def gru() -> Kind:
    return _recurrent(nn.GRU)


class Transformer(nn.Module):
    """One pre-norm layer with fused causal attention; the output layer is the embedding."""

    def __init__(self, width: int = 4, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(torch.randn(LENGTH, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return self.head(x + self.down(F.gelu(self.up(self.norm2(x)))))


def transformer() -> Kind:
    tokens, targets = _tokens()
    samples = [{"input_ids": a, "labels": b} for a, b in zip(tokens, targets)]

    def loss_fn(logits: Tensor, batch: dict) -> Tensor:
        return F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")

    return Kind(
        Transformer().double(),
        loss_fn,
        samples,
        lambda m: m(tokens),
        lambda z: F.cross_entropy(z.transpose(1, 2), targets, reduction="none").sum(1),
        total=(targets != IGNORED).sum().item(),
        options={
            "forward": lambda m, batch: m(batch["input_ids"]),
            "reduction": "none",
            "count": lambda batch: (batch["labels"] != IGNORED).sum().item(),
        },
    )


def hugging_face() -> Kind:
    """Hugging Face's GPT-2, randomly initialized."""
    from hessian_spectrum.zoo.torchvision_compat import import_torchvision

    import_torchvision()  # transformers imports it, and fails if it was built for another torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=4, n_layer=1, n_head=2, n_inner=8
    )
    tokens, targets = _tokens()
    kind = transformer()
    kind.model = GPT2LMHeadModel(config).double().eval()
    kind.data = [{"input_ids": a, "labels": b} for a, b in zip(tokens, targets)]
    kind.outputs = lambda m: m(input_ids=tokens).logits
    kind.losses = lambda z: F.cross_entropy(z.transpose(1, 2), targets, reduction="none").sum(1)
    kind.total = (targets != IGNORED).sum().item()
    kind.options["forward"] = lambda m, batch: m(input_ids=batch["input_ids"]).logits
    return kind


# -- physics ------------------------------------------------------------------------------------


class Physics(nn.Module):
    """The residual u'' + sin(x) of a differential equation for a network u(x)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        def u(x: Tensor) -> Tensor:
            return self.net(x.reshape(1, 1)).reshape(())

        second = torch.func.vmap(torch.func.grad(torch.func.grad(u)))(x[:, 0])
        return second[:, None] + torch.sin(x)


def physics_informed() -> Kind:
    x = torch.linspace(-1, 1, N).double()[:, None]

    def outputs(model: nn.Module) -> Tensor:
        points = x.clone().requires_grad_()
        u = model.net(points)
        (du,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        (d2u,) = torch.autograd.grad(du.sum(), points, create_graph=True)
        return d2u + torch.sin(x)

    return Kind(
        Physics().double(),
        nn.MSELoss(),
        (x, torch.zeros_like(x)),
        outputs,
        lambda z: z.square().mean(1),
    )


KINDS: dict[str, Callable[[], Kind]] = {
    "perceptron": mlp,
    "LayerNorm": layer_norm,
    "GroupNorm": group_norm,
    "BatchNorm, eval": batch_norm_eval,
    "BatchNorm, train": batch_norm_train,
    "BatchNorm, recalibrated": batch_norm_recalibrated,
    "dropout, frozen": frozen_dropout,
    "dicts, two outputs": regression,
    "LSTM": lstm,
    "GRU": gru,
    "transformer, tied": transformer,
    "Hugging Face GPT-2": hugging_face,
    "physics-informed": physics_informed,
}


def collated(kind: Kind) -> list[Any]:
    """The evaluator's minibatches in the form that other packages take."""
    data = kind.data
    if isinstance(data, tuple):
        return list(zip(*(t.split(BATCH) for t in data)))
    return [default_collate(data[i : i + BATCH]) for i in range(0, N, BATCH)]
