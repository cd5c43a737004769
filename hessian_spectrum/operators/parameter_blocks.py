"""Diagonal blocks of a matrix: layers, attention heads, experts, parameters by pattern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.sharding import Layout, matches, require_matches

if TYPE_CHECKING:
    from hessian_spectrum.loss.evaluator import Evaluator

KINDS = ("layers", "heads", "experts")


def parameter_blocks(evaluator: Evaluator, kind: str | Sequence[str]) -> dict[str, Tensor]:
    """The entries of theta that belong to each block, by the block's name.

    For ``spectral_densities(H, blocks)``, ``Restricted(H, entries=blocks[name])``.

    Args:
        evaluator: its model, and which parameters are in theta.
        kind: "layers", one block for the parameters of each module; "heads", for each attention
            head its rows of the query, key and value weights (those of its group, where heads share
            keys and values) and biases, and its columns of the output's weight; "experts", for each
            expert of a mixture its entries; or shell-style patterns of names, a block for each.

    Returns:
        Indices into theta, ascending, int64. Heads that share keys and values overlap.

    Raises:
        InputError: no parameter in theta belongs to such a block; a pattern matches none.
    """
    layout, model = evaluator.layout, evaluator.model
    if isinstance(kind, str) and kind in KINDS:
        makers = {"layers": _layers, "heads": _heads, "experts": _experts}
        found = makers[kind](model, _Places(layout))
    else:
        patterns = (kind,) if isinstance(kind, str) else tuple(kind)
        named = [pattern for pattern in patterns if pattern in KINDS]
        if named:
            raise InputError(
                f"blocks {named[0]!r} among others; give it alone, or patterns of names"
            )
        require_matches(layout.names, patterns)
        places = _Places(layout)
        found = {
            pattern: [places.all(n) for n in layout.names if matches(n, (pattern,))]
            for pattern in patterns
        }
    blocks = {name: torch.cat(parts).unique() for name, parts in found.items() if parts}
    if not blocks:
        advice = {
            "heads": "known are torch's MultiheadAttention, GPT-2's, BERT's, T5's, and those with "
            "q_proj, k_proj, v_proj and o_proj",
            "experts": "known are lists of modules, and parameters whose first dimension counts "
            "experts, under a module named experts",
        }
        raise InputError(
            f"blocks {kind!r}: the model has none in theta; "
            + (advice.get(str(kind)) or "pass patterns of names")
        )
    return blocks


class _Places:
    """Where the entries of parameters are in theta."""

    def __init__(self, layout: Layout):
        self._start, self._shape = {}, dict(zip(layout.names, layout.shapes))
        at = 0
        for name, size in zip(layout.names, layout.sizes):
            self._start[name] = at
            at += size

    def all(self, name: str) -> Tensor:
        """Of a parameter; none if it is not in theta."""
        return self.some(name, 0, slice(None))

    def some(self, name: str, axis: int, part: slice) -> Tensor:
        """Of a slice of a parameter along one axis."""
        if name not in self._start:
            return torch.zeros(0, dtype=torch.int64)
        shape = self._shape[name]
        entries = torch.arange(shape.numel()).view(shape)
        chosen = entries[(slice(None),) * axis + (part,)] if shape else entries
        return chosen.reshape(-1) + self._start[name]

    def __contains__(self, name: str) -> bool:
        return name in self._start

    def __iter__(self) -> Iterator[str]:
        return iter(self._start)


Parts = dict[str, list[Tensor]]


def _layers(model: nn.Module, places: _Places) -> Parts:
    found: Parts = {}
    for name in places:
        found.setdefault(name.rpartition(".")[0] or name, []).append(places.all(name))
    return found


def _experts(model: nn.Module, places: _Places) -> Parts:
    found: Parts = {}
    for prefix, module in model.named_modules():
        if prefix.rpartition(".")[2] != "experts":
            continue
        for name in places:
            if not name.startswith(f"{prefix}."):
                continue
            if isinstance(module, nn.ModuleList):
                number = name.removeprefix(f"{prefix}.").partition(".")[0]
                found.setdefault(f"{prefix}.{number}", []).append(places.all(name))
                continue
            for index in range(len(module.get_parameter(name.removeprefix(f"{prefix}.")))):
                part = places.some(name, 0, slice(index, index + 1))
                found.setdefault(f"{prefix}.{index}", []).append(part)
    return found


# -- attention heads -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Projection:
    """A weight whose entries along ``axis``, from ``first`` on, are those of the heads in turn."""

    layer: str
    axis: int
    first: int = 0
    has_bias: bool = True  # along the same axis; an output's bias belongs to no head
    weight: str = "weight"
    bias: str = "bias"


@dataclass(frozen=True)
class _Attention:
    heads: int
    groups: int  # of keys and values
    size: int  # channels of a head
    queries: Sequence[_Projection]
    keys_and_values: Sequence[_Projection]
    output: _Projection


def _heads(model: nn.Module, places: _Places) -> Parts:
    found: Parts = {}
    for prefix, module in model.named_modules():
        known = _attention(module)
        if known is None:
            continue
        dot = f"{prefix}." if prefix else ""
        outer, size = prefix.rpartition(".")[0], known.size
        for head in range(known.heads):
            parts = [
                part
                for projections, number in (
                    ((*known.queries, known.output), head),
                    (known.keys_and_values, head * known.groups // known.heads),
                )
                for projection in projections
                for part in _of_head(projection, number * size, size, dot, outer, places)
            ]
            if any(len(part) for part in parts):
                found[f"{prefix or 'attention'}.head{head}"] = parts
    return found


def _of_head(
    p: _Projection, at: int, size: int, dot: str, outer: str, places: _Places
) -> Iterator[Tensor]:
    part = slice(p.first + at, p.first + at + size)
    # "^" is the module that holds this one.
    layer = f"{outer}.{p.layer[2:]}" if p.layer.startswith("^.") else f"{dot}{p.layer}"
    layer = layer.strip(".")
    join = f"{layer}." if layer else ""
    yield places.some(f"{join}{p.weight}", p.axis, part)
    if p.has_bias:
        yield places.some(f"{join}{p.bias}", 0, part)


def _attention(module: Any) -> _Attention | None:
    """The heads of a module that is an attention; None of any other."""
    if isinstance(module, nn.MultiheadAttention):
        size, width = module.head_dim, module.embed_dim
        heads, out = module.num_heads, _Projection("out_proj", 1, has_bias=False)
        if module.in_proj_weight is not None:
            q, k, v = (
                _Projection("", 0, i * width, True, "in_proj_weight", "in_proj_bias")
                for i in range(3)
            )
        else:
            q, k, v = (_Projection("", 0, 0, False, f"{n}_proj_weight") for n in ("q", "k", "v"))
        return _Attention(heads, heads, size, (q,), (k, v), out)
    children: dict[str, Any] = dict(module.named_children())
    if {"q_proj", "k_proj", "v_proj"} <= set(children):
        name = next((n for n in ("o_proj", "out_proj", "dense") if n in children), None)
        size = getattr(module, "head_dim", None)
        if name and size:
            q, k, v = (_Projection(n, 0) for n in ("q_proj", "k_proj", "v_proj"))
            heads, groups = (children[n].weight.shape[0] // size for n in ("q_proj", "k_proj"))
            return _Attention(heads, groups, size, (q,), (k, v), _Projection(name, 1, 0, False))
    if {"c_attn", "c_proj"} <= set(children) and hasattr(module, "num_heads"):  # GPT-2
        heads, width = int(module.num_heads), children["c_proj"].weight.shape[0]
        q, k, v = (_Projection("c_attn", 1, i * width) for i in range(3))
        out_of = _Projection("c_proj", 0, 0, False)
        return _Attention(heads, heads, width // heads, (q,), (k, v), out_of)
    if {"query", "key", "value"} <= set(children) and hasattr(module, "attention_head_size"):
        heads = int(module.num_attention_heads)
        q, k, v = (_Projection(n, 0) for n in ("query", "key", "value"))
        out_of = _Projection("^.output.dense", 1, 0, False)
        return _Attention(heads, heads, int(module.attention_head_size), (q,), (k, v), out_of)
    if {"q", "k", "v", "o"} <= set(children) and hasattr(module, "key_value_proj_dim"):  # T5
        heads = int(module.n_heads)
        q, k, v = (_Projection(n, 0) for n in ("q", "k", "v"))
        size = int(module.key_value_proj_dim)
        return _Attention(heads, heads, size, (q,), (k, v), _Projection("o", 1, 0, False))
    return None
