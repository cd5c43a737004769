"""Options of commands that can compute with a model whose parameters are shared out over ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config.curvature import KrylovConfig

PRODUCTS = ("exact", "differences")  # what --hvp may be with --sharded


@dataclass(frozen=True, kw_only=True)
class ShardedConfig(KrylovConfig):
    """Whether, and how, parameters are sharded."""

    sharded: bool = False
    """Share the parameters out over all ranks: each holds 1/P of them and of every vector, and
    gathers one block of layers at a time. For models under FSDP2 or tensor parallelism, on the
    device meta, or too large for one rank. Products (--hvp) are exact, by second derivatives, or
    differences of gradients, whose error is stated; default: exact where the model has them."""
    weights: Path | None = None
    """With --sharded: a .safetensors file, its index, or a folder with either or with a checkpoint
    of torch.distributed.checkpoint, from which each rank reads its part. Default: the problem's
    own parameters."""
    units: tuple[str, ...] = ()
    """With --sharded: patterns of module names whose parameters are gathered together. Default:
    what FSDP2 shards by itself, or each layer of the longest lists of layers."""
    recompute: bool = False
    """With --sharded: compute activations again in backward passes, which takes less memory and a
    third of the time more."""
    compute_dtype: Literal["float64", "float32", "bfloat16"] | None = None
    """With --sharded: floating-point type of weights and activations; vectors keep --dtype.
    Default: --dtype."""

    def check(self) -> None:
        """Raise InputError, naming the option, for a value that no run can use."""
        super().check()
        if not self.sharded:
            given = {
                "--weights": self.weights,
                "--units": self.units,
                "--recompute": self.recompute,
                "--compute-dtype": self.compute_dtype,
            }
            for name, value in given.items():
                if value:
                    raise InputError(f"{name} says how a model is sharded; add --sharded")
            if self.hvp in PRODUCTS:
                raise InputError(
                    f"--hvp {self.hvp} is a way to form products with --sharded; add it"
                )
            return
        if self.operator != "hessian":
            raise InputError(f"--operator {self.operator} with --sharded; expected hessian")
        if self.hvp not in (None, *PRODUCTS):
            raise InputError(
                f"--hvp {self.hvp} with --sharded; expected one of {', '.join(PRODUCTS)}"
            )
        for name, default in (("batch_norm", "eval"), ("dropout", "off")):
            if getattr(self, name) not in (None, default):
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} with --sharded; expected "
                    f"{default}"
                )
        if self.hvp_dtype is not None:
            raise InputError("--hvp-dtype with --sharded: use --compute-dtype")
        if getattr(self, "data_groups", None) is not None:
            raise InputError(
                "--data-groups with --sharded: the groups need a whole model; leave it out"
            )
        if getattr(self, "certify", False) and self.compute_dtype == "bfloat16":
            raise InputError(
                "--certify with --compute-dtype bfloat16, which has no products in float64"
            )
