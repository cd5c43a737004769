"""One rank of the study ``sharded_models``: bytes and seconds of a transformer under FSDP2."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LanguageModel(nn.Module):
    """Token ids (B, T) -> logits (B, vocabulary, T): torch's encoder layers with a causal mask."""

    def __init__(self, vocabulary: int, width: int, layers: int, length: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                *(width, 4, 4 * width),
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=self.position.dtype)
        x = self.embedding(ids) + self.position[:length]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x)).transpose(1, 2)


def language_model(
    vocabulary: int, width: int, layers: int, length: int, sequences: int, steps: int = 0
) -> tuple[LanguageModel, tuple[Tensor, Tensor]]:
    """The model after some steps of Adam, and its data: random sequences."""
    torch.manual_seed(0)
    model = LanguageModel(vocabulary, width, layers, length)
    ids = torch.randint(vocabulary, (sequences, length + 1))
    data = ids[:, :-1], ids[:, 1:]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    return model, data


def worker(args: argparse.Namespace) -> None:
    """Measures; the first rank writes the result."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    import hessian_spectrum as hs
    from hessian_spectrum.distributed.memory import PeakMemory

    torch.set_num_threads(1)
    world = hs.distributed.start("cpu")
    sizes = (args.vocabulary, args.width, args.layers, args.length, args.sequences)
    model, data = language_model(*sizes)
    if world.size > 1:
        mesh = init_device_mesh("cpu", (world.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    ev = hs.ShardedEvaluator(model, nn.CrossEntropyLoss(), data, batch_size=args.batch_size)
    found: dict[str, Any] = {
        "ranks": world.size,
        "n": ev.n,
        "local": ev.layout.n_local,
        "units": [unit.size for unit in ev.units],
        "rounds": ev.num_rounds,
        "gradient": seconds(ev.gradient, world, args.repeats),
    }
    v = torch.ones(1, ev.layout.n_local)
    for kind in ("exact", "differences"):
        operator = hs.ShardedHessian(ev, products=kind, max_error=0.5)  # type: ignore[arg-type]
        before = ev.weights.gathers
        operator.products(v)
        found[f"{kind} gathers"] = ev.weights.gathers - before
        found[kind] = seconds(lambda operator=operator: operator.products(v), world, args.repeats)
        if kind == "exact":
            with PeakMemory(ev.device) as memory:
                hs.spectral_density(operator, 4, args.steps)
            found["memory"] = memory.peak
    found["gathered"] = ev.weights.peak
    every = world.gather_objects(found)
    if world.rank == 0:
        found["memory"] = max(f["memory"] for f in every)
        found["gathered"] = max(f["gathered"] for f in every)
        args.result.write_text(json.dumps(found))
    world.barrier()
    hs.distributed.finish(world)


def seconds(action: Any, world: Any, repeats: int) -> float:
    """The median; ranks start together."""
    action()
    taken = []
    for _ in range(repeats):
        world.barrier()
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("vocabulary", "width", "layers", "length", "sequences", "batch-size", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--result", type=Path, required=True)
    worker(parser.parse_args())
