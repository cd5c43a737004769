"""The loss of a model that is sharded over ranks, as a function of sharded parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.agreement import CALL, MODELS, Digest, agreed, together
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.distributed.world import World, resolve_device
from hessian_spectrum.loss import digests, huggingface, loaders
from hessian_spectrum.loss.batching import pieces
from hessian_spectrum.loss.counts import Counts
from hessian_spectrum.sharded import checks
from hessian_spectrum.sharded import parameters as sources
from hessian_spectrum.sharded.function import GatheredFunction
from hessian_spectrum.sharded.placement import Placement
from hessian_spectrum.sharded.skeleton import attach, skeleton
from hessian_spectrum.sharded.units import ROOT, Unit, units_of
from hessian_spectrum.sharded.weights import Weights

COMPUTE = (torch.bfloat16, torch.float32, torch.float64)


class ShardedEvaluator:
    """Loss and gradient of a model whose parameters are shared out over all ranks.

    L(theta) is that of ``Evaluator``. No rank holds all parameters, nor a gradient of all of them:
    theta, gradients and Krylov vectors are (n_local,), this rank's part of ``layout``, 1 / P of n
    on P ranks. The weights of one block of the model are gathered when it works, in the forward
    pass and in backward passes, and freed again. Every rank evaluates its share of the data with
    them, whatever the model's own sharding is: of a model that is tensor-parallel, ranks of one
    group have different samples.

    Args:
        model: under FSDP2 (``fully_shard``), with DTensors as parameters (tensor parallelism, or
            both), or with parameters on the device meta and ``weights``. A model that is whole on
            each rank is sharded. The model is not changed; under FSDP2 it is resharded.
        loss_fn, data, forward, reduction, count, weight_decay, parameters, batch_size: as for
            ``Evaluator``. Ranks with fewer minibatches than others evaluate one again, with
            weight 0.
        weights: a .safetensors file, a model.safetensors.index.json, or a folder with either, or
            with a checkpoint of torch.distributed.checkpoint, from which each rank reads its part.
        units: shell-style patterns of module names whose parameters are gathered together. Default:
            the modules that FSDP2 shards by themselves or, without such, the entries of the
            outermost nn.ModuleLists. What is in none is gathered together.
        recompute: activations of these modules are computed again in backward passes
            (torch.utils.checkpoint), which takes a third of the time more.
        dtype: torch.float32 or torch.float64, of theta and of results; default: as the model,
            float32 for one in half precision.
        compute_dtype: of weights and activations; torch.bfloat16 halves what is gathered, and
            rounds derivatives to 1e-2. Default: ``dtype``.
        device, world, data_is_local: as for ``Evaluator``.

    Raises:
        InputError: as ``Evaluator``; or the loss of a few samples is not that of the model as it
            is given; its device mesh has not all ranks; buffers have no values.
        RankLost: another rank failed inside of a pass.

    Attributes:
        theta: the parameters at construction, (n_local,).

    Cost: construction reads the data once, and the parameters one at a time; a few forward passes
    over one minibatch, and one with the model itself.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable,
        data: Any,
        *,
        forward: Callable | None = None,
        reduction: str = "mean",
        count: Callable[[Any], float] | None = None,
        weight_decay: float = 0.0,
        parameters: Sequence[str] | None = None,
        batch_size: int = 512,
        weights: str | Path | None = None,
        units: Sequence[str] | None = None,
        recompute: bool = False,
        dtype: torch.dtype | None = None,
        compute_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        world: World | None = None,
        data_is_local: bool = False,
    ):
        ranks = world or World.current()

        def made() -> tuple[GatheredFunction, tuple[Unit, ...]]:
            if not isinstance(weight_decay, (int, float)) or not 0 <= weight_decay < math.inf:
                raise InputError(f"weight_decay={weight_decay}: expected a number, 0 or more")
            if compute_dtype not in (None, *COMPUTE):
                raise InputError(
                    f"compute_dtype={compute_dtype!r}: expected torch.bfloat16, torch.float32 or "
                    "torch.float64"
                )
            if not isinstance(model, nn.Module):
                raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
            sources.require(model, weights, ranks)
            patterns = (parameters,) if isinstance(parameters, str) else parameters
            place = resolve_device(device) if device is not None else ranks.device
            here = World(**{**vars(ranks), "device": place})
            bare = skeleton(model)
            layout = Layout.of_model(bare, patterns, here)
            found = units_of(bare if units is not None else model, layout, units)
            blocks = tuple(dict.fromkeys(u.name for u in found if u.name != ROOT))
            function = GatheredFunction(
                bare,
                loss_fn,
                here,
                forward=forward,
                compute=compute_dtype,
                blocks=blocks if recompute else (),
                reduction=reduction,
                count=count,
                parameters=parameters,
                dtype=dtype,
            )
            return function, found

        def facts(made: tuple[GatheredFunction, tuple[Unit, ...]]) -> dict[str, Any]:
            function, found = made
            return {
                CALL: "ShardedEvaluator",
                "parameters": list(zip(function.layout.names, function.layout.shapes)),
                "units": [unit.name for unit in found],
                "weight_decay": float(weight_decay),
                "reduction": reduction,
                "batch_size": batch_size,
                "recompute": recompute,
                "dtype": function.dtype,
                "compute_dtype": function.compute,
                "data_is_local": data_is_local,
                MODELS: Digest(sources.digest(model)),
                **({} if data_is_local else digests.of_source(data)),
            }

        self.function, self.units = agreed(ranks, made, facts)
        function = self.function
        self.layout, self.n = function.layout, function.layout.n
        self.world, self.device, self.dtype = self.layout.world, function.device, function.dtype
        self.model, self.loss_fn, self.weight_decay = model, loss_fn, float(weight_decay)
        self.counts = Counts()
        self.moving = [unit for unit in self.units if unit.moves]
        self.weights = Weights(self.units, self.world)
        attach(function.model, self.weights)
        self._placement = Placement(self.layout, self.moving)
        source = sources.source(model, weights, self.world)
        shards = [sources.shard(unit, source, self._type_of(unit)) for unit in self.units]
        sources.require_same(source, self.world)
        self._fixed = {i: t for i, t in enumerate(shards) if not self.units[i].moves}
        self.theta = self._placement.to_theta(
            [t for t, unit in zip(shards, self.units) if unit.moves]
        )
        del shards, source
        sources.require_finite(self.theta, self._fixed.values(), self.world)
        self.batches = together(
            self.world,
            lambda: loaders.deal(data, batch_size, self.world, self.dtype, data_is_local),
        )
        share = checks.read(self)
        self.num_rounds, self._spare = share.rounds, share.spare
        self.total_weight, self.num_samples = share.weight, share.samples
        self.fallbacks: tuple[str, ...] = ()
        self.batch_norm, self.dropout = function.batch_norm, function.dropout
        checks.require_function(self, next(iter(self.batches), share.spare))
        sample = self.world.from_first(share.spare)
        self.verification = checks.Doubts(checks.require_same_loss(self, sample), self.dtype)

    @classmethod
    def from_huggingface(
        cls,
        model: nn.Module,
        dataset: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 8,
        max_length: int | None = None,
        **options: Any,
    ) -> ShardedEvaluator:
        """The loss of a model of Hugging Face's transformers, as the model itself has it.

        The mean cross entropy of all targets that are not ignored, in all samples: uneven batches,
        padding and ranks do not change it. Dropout is off, the routers' auxiliary loss left out.

        Args:
            model: causal, masked or sequence-to-sequence, or a classifier of tokens or sequences;
                with adapters of peft these are the parameters.
            dataset: token ids (N, T), texts with their ``tokenizer``, columns as a tokenizer gives
                them, or a Dataset or list of samples that are dicts; padded on the right.
            batch_size: samples of a minibatch.
            max_length: longer samples are cut; of texts to 1,024 tokens by default.
            **options: other arguments of ``ShardedEvaluator``.

        Raises:
            InputError: as ``ShardedEvaluator``; or the model's own loss of two samples is another
                one.
        """
        made = huggingface.arguments(
            model, dataset, tokenizer, batch_size=batch_size, max_length=max_length
        )
        return cls(**made, **options)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"<ShardedEvaluator of {type(self.function.model).__name__}: {self.n:,} parameters in "
            f"{len(self.moving)} units over {self.world.size} ranks, {self.num_samples:,.0f} "
            f"samples, {dtype}>"
        )

    def _type_of(self, unit: Unit) -> torch.dtype:
        return self.dtype if unit.moves else self.function.compute

    # -- the function of theta ---------------------------------------------------------------------

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """L at this rank's entries of theta, (n_local,); a float64 scalar, the same on all ranks.

        One pass, forward only.
        """
        theta = self.checked(theta)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with torch.no_grad(), self.at(theta):
            for part in self.parts():
                total += part().double()
        squares = theta.double().square().sum()
        found, square = self.world.sum_together(total, squares)
        return found + self.weight_decay / 2 * square

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """This rank's entries of dL/dtheta, (n_local,). One pass."""
        theta = self.checked(theta)
        return self.data_gradient(theta).add_(theta, alpha=self.weight_decay)

    def gradient_norm(self, theta: Tensor | None = None) -> float:
        """|dL/dtheta|, the same on all ranks. One pass."""
        square = self.gradient(theta).double().square().sum()
        return math.sqrt(self.world.sum(square).item())

    def data_gradient(self, theta: Tensor) -> Tensor:
        """The gradient without the weight decay's part, (n_local,). One pass."""
        with self.at(theta) as shards:
            totals = [torch.zeros_like(shard) for shard in shards]
            for part in self.parts():
                found = torch.autograd.grad(part(), shards, allow_unused=True)
                for total, g in zip(totals, found):
                    if g is not None:
                        total += g
        return self.to_theta(totals)

    def checked(self, theta: Tensor | None) -> Tensor:
        """``theta`` on the device, detached; the model's own if it is None."""
        if theta is None:
            return self.theta
        if not isinstance(theta, Tensor) or theta.shape != self.theta.shape:
            shape = tuple(getattr(theta, "shape", ()))
            raise InputError(
                f"theta has shape {shape}; expected this rank's entries, ({self.layout.n_local},): "
                "layout.local of a whole vector"
            )
        return theta.detach().to(self.device, self.dtype)

    def in_float64(self) -> ShardedEvaluator:
        """The same loss in float64, of the same parameters; its theta is theirs, converted.

        Whole weights and activations take twice the memory.
        """
        other = copy.copy(self)
        other.function = copy.copy(self.function)
        casts = self.function.rounding > torch.finfo(self.function.compute).eps
        if not casts:
            other.function.rounding = torch.finfo(torch.float64).eps
        other.function.dtype = other.function.compute = other.dtype = torch.float64
        other.theta = self.theta.double()
        return other

    def digests(self) -> dict[str, str | None]:
        """Of the parameters, as they are at every sharding, and of the samples. For provenance."""
        found = sources.sums_of_bits(self.theta, self.layout)
        found += [n for t in self._fixed.values() for n in sources.sums_of_bits(t, None)]
        every = self.world.gather_objects(found)
        total = "".join(f"{sum(column) % 2**64:016x}" for column in zip(*every))
        return {"parameters": total, "data": digests.of_data(self.batches, self.world)}

    # -- for operators -----------------------------------------------------------------------------

    @contextmanager
    def at(self, theta: Tensor) -> Iterator[list[Tensor]]:
        """One pass: inside, weights are those of theta; yields its shards, leaves, of each unit."""
        shards = [shard.requires_grad_() for shard in self._placement.to_units(theta)]
        moving = iter(shards)
        every = [next(moving) if u.moves else self._fixed[i] for i, u in enumerate(self.units)]
        self.counts.passes += 1
        with self.function.evaluation_mode(), self.weights.at(every, self.function.compute):
            yield shards

    def parts(self) -> Iterator[Callable[[], Tensor]]:
        """Each minibatch's part of L, in as many rounds on every rank. Inside ``at``."""
        constants = self.function.constants()
        own = (piece for batch in self.batches for piece in pieces(batch, None))
        for _ in range(self.num_rounds):
            batch = next(own, None)
            while batch is not None and not self.function.weight(batch):
                batch = next(own, None)
            yield self._part(batch, constants)
            self.weights.release()

    def _part(self, batch: Any, constants: dict[str, Tensor]) -> Callable[[], Tensor]:
        if batch is None:
            return lambda: self.function.batch_loss(self._spare, constants) * 0.0
        share = self.function.scale(batch) / self.total_weight
        return lambda: self.function.batch_loss(batch, constants) * share

    def to_units(self, entries: Tensor) -> list[Tensor]:
        """(n_local,) -> this rank's entries of each unit that moves."""
        return self._placement.to_units(entries)

    def to_theta(self, shards: Sequence[Tensor]) -> Tensor:
        """The inverse of ``to_units``."""
        return self._placement.to_theta(shards)
