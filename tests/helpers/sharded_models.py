"""A transformer small enough for its dense Hessian, sharded in the ways that torch has."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, LENGTH = 13, 5


class Block(nn.Module):
    """Attention and a perceptron, each after a norm."""

    def __init__(self, size, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x):
        count, length, size = x.shape
        parts = self.qkv(self.norm1(x)).view(count, length, 3, self.heads, -1).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(count, length, size))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Token ids (B, T) -> logits (B, VOCABULARY, T); the embedding is the output layer's weight."""

    def __init__(self, size=6, layers=2, is_tied=True):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, size))
        self.blocks = nn.ModuleList(Block(size, 2) for _ in range(layers))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, VOCABULARY, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


def transformer(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return Transformer(**options).to(dtype)


def sequences(count=3):
    """Inputs and next tokens, (count, LENGTH) each."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (count, LENGTH + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def fully_sharded(model, mesh=None, used=True):
    """A copy under FSDP2, each block and the rest; used once, as in a training."""
    from torch.distributed.fsdp import fully_shard

    model = copy.deepcopy(model)
    options = {} if mesh is None else {"mesh": mesh}
    for block in model.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)
    if used:
        ids, targets = sequences(2)
        F.cross_entropy(model(ids), targets).backward()
    return model


def tensor_parallel(model, ranks, data_ranks=1):
    """A copy whose perceptrons are cut over ``ranks``; with more data ranks under FSDP2, too."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (data_ranks, ranks), mesh_dim_names=("data", "tensor"))
    for block in model.blocks:
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(block, mesh["tensor"], plan)
    return fully_sharded(model, mesh["data"], used=False) if data_ranks > 1 else model
