"""Outliers, concentrated gradients and the overlap of H and C, with and without BatchNorm.

Ghorbani, Krishnan & Xiao (2019, "An investigation into neural net optimization via Hessian
eigenvalue density", sections 4 and 5) find that without BatchNorm a few eigenvalues stand far out
of the Hessian's spectrum and gradients lie in their span; that with BatchNorm neither is so; and
that the outliers come back where BatchNorm normalizes by constants.

A slim residual network is trained twice on CIFAR-10 pictures, averaged over squares of pixels, with
BatchNorm and without, with the same steps. At some epochs are computed, for the loss of all
training data:

- zeta = lambda_1 / lambda_K of the Hessian H, K = 10, which is also the number of classes;
- the part of |g|^2 in the span of the top 10 eigenvectors, of the gradient of all the data and of
  minibatches (mean and standard error);
- |P_H P_C|^2 / 10, the overlap with the top eigenvectors of the covariance C of the gradients of
  single samples, and sum of v^T C v / tr C over the top 10 eigenvectors v of H. tr C is that of the
  minibatches' deviations, E |g_B - g|^2 = (1/B) (N - B) / (N - 1) tr C.

With BatchNorm H is that of the function that is trained, in which each minibatch is normalized by
its own statistics ("train": derivatives go through them, samples have no gradient of their own, and
there is no C), and that of the same network with statistics of all the data, constants in
derivatives ("recalibrate"). Both have the same loss if all the data are one minibatch, which is
known exactly. The test has the shipped digits and a tiny network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from hessian_spectrum import zoo
from hessian_spectrum.analyses.noise_result import variance_factor

SOURCE = "Ghorbani et al. 2019, sections 4 and 5"
K = 10
PLAN = hs.ProductPlan(keep=True)  # reverse over reverse: the same products on every machine
WITHOUT, TRAIN, CONSTANT = "without BatchNorm", "BatchNorm, train", "BatchNorm, recalibrate"
COLORS = {WITHOUT: "#D55E00", TRAIN: "#0072B2", CONSTANT: "#56B4E9"}


@dataclass(frozen=True)
class Options:
    """
    Args:
        samples: CIFAR-10 pictures; 0: the first 60 shipped digits.
        pixels: side of a picture; divides 32.
        depth: of the residual network, 6 b + 2.
        width: of 16, 32 and 64 channels.
        epochs: at which networks are looked at; training ends with the last.
        train_batch: samples of a step.
        batch_size: samples of a minibatch of the loss.
        minibatch: samples of a gradient.
        num_batches: gradients of minibatches.
        tol: of eigenvalues.
    """

    samples: int = 2000
    pixels: int = 16
    depth: int = 8
    width: float = 0.25
    epochs: tuple[int, ...] = (10,)
    lr: float = 0.05
    train_batch: int = 50
    batch_size: int = 250
    minibatch: int = 50
    num_batches: int = 20
    tol: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """One network, at one epoch, with one kind of BatchNorm."""

    case: str
    epoch: int
    loss: float
    loss_at_once: float  # the same if all the data are one minibatch
    eigenvalues: np.ndarray  # (K,), descending
    whole: np.ndarray  # (K,), part of |g|^2 in the top 1..K eigenvectors, all the data
    shares: np.ndarray  # (minibatch, K), the same of minibatches
    overlap: np.ndarray  # (K,), |P_H P_C|^2 / k of the top k = 1..K; NaN without C
    noise_share: float  # sum of v^T C v / tr C

    @property
    def zeta(self) -> float:
        return float(self.eigenvalues[0] / self.eigenvalues[K - 1])

    @property
    def share(self) -> tuple[float, float]:
        """Of minibatches, in the top K: mean and standard error."""
        values = self.shares[:, -1]
        return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))

    def __str__(self) -> str:
        mean, error = self.share
        return (
            f"epoch {self.epoch:>3}, {self.case:<23} loss {self.loss:.3f}, "
            f"lambda_1 {self.eigenvalues[0]:.4g}, lambda_10 {self.eigenvalues[-1]:.4g}, "
            f"zeta {self.zeta:.2f}; |g|^2 in the top 10: {self.whole[-1]:.3f} (all), "
            f"{mean:.3f} +- {error:.3f} (minibatches); overlap {self.overlap[-1]:.3f}, "
            f"v^T C v {self.noise_share:.3f}"
        )


def pictures(context: Context, options: Options) -> TensorDataset:
    if not options.samples:
        return zoo.load_dataset("digits", limit=60)
    root = context.data("cifar10")
    x, y = zoo.load_dataset("arrays", data_root=root, limit=options.samples).tensors
    return TensorDataset(F.avg_pool2d(x, x.shape[-1] // options.pixels), y)


def checkpoints(
    data: TensorDataset, options: Options, batchnorm: bool
) -> Iterator[tuple[int, nn.Module]]:
    """(epoch, the network then) at each of ``options.epochs``."""
    parts = {"batchnorm": batchnorm, "width": options.width}
    model = zoo.model_for(data, f"resnet{options.depth}", "relu", options.seed, **parts)
    kept = {}

    def keep(result, model, _optimizer):
        if result.epoch in options.epochs:
            kept[result.epoch] = copy.deepcopy(model)

    zoo.train(
        model,
        data,
        epochs=max(options.epochs),
        batch_size=options.train_batch,
        lr=options.lr,
        seed=options.seed,
        on_epoch=keep,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    yield from sorted(kept.items())


def measured(
    context: Context,
    case: str,
    epoch: int,
    model: nn.Module,
    data: TensorDataset,
    options: Options,
) -> Measured:
    """As ``measure`` finds it, or has found it in an earlier run."""

    def make() -> Mapping[str, Any]:
        return vars(measure(case, epoch, model, data, options))

    kept = context.kept(f"{case}-{epoch}", options, make)
    return Measured(**{name: v if v.ndim else v.item() for name, v in kept.items()})


def measure(
    case: str, epoch: int, model: nn.Module, data: TensorDataset, options: Options
) -> Measured:
    batch_norm = {TRAIN: "train", CONSTANT: "recalibrate"}.get(case, "eval")
    ev = evaluator(model, data, options.batch_size, batch_norm)
    hessian = hs.Hessian(ev, plan=PLAN)
    pairs = hs.eigenpairs(hessian, K, "largest", options.tol, copies=False, seed=options.seed)
    if batch_norm == "train":
        gradients = list(minibatch_gradients(model, data, options))
        return Measured(
            case,
            epoch,
            ev.loss().item(),
            evaluator(model, data, len(data), "train").loss().item(),
            pairs.values[::-1],
            shares_of([ev.gradient()], pairs)[0],
            shares_of(gradients, pairs),
            np.full(K, math.nan),
            math.nan,
        )
    hessian.forget()  # its graphs take the memory of those of C
    covariance = hs.GradientCovariance(ev, plan=PLAN)
    noise_pairs = hs.eigenpairs(
        covariance, K, "largest", options.tol, copies=False, seed=options.seed
    )
    found = hs.noise(
        ev,
        (K,),
        (options.minibatch, "full"),
        options.num_batches,
        operator=hessian,
        covariance=covariance,
        pairs=pairs,
        noise_pairs=noise_pairs,
        seed=options.seed,
    )
    dimensions = range(1, K + 1)
    shares = np.array([found.gradient_share(k) for k in dimensions])  # (K, size, minibatch)
    trace = found.mean_deviation()[0] / variance_factor(found.num_samples, options.minibatch)
    return Measured(
        case,
        epoch,
        ev.loss().item(),
        ev.loss().item(),
        pairs.values[::-1],
        shares[:, 1, 0],
        shares[:, 0].T,
        np.array([found.subspace_overlap(k) for k in dimensions]),
        float(found.noise_along.sum() / trace),
    )


def evaluator(model: nn.Module, data, batch_size: int, batch_norm: str) -> hs.Evaluator:
    return hs.Evaluator(
        model, nn.CrossEntropyLoss(), data, batch_size=batch_size, batch_norm=batch_norm
    )


def minibatch_gradients(
    model: nn.Module, data: TensorDataset, options: Options
) -> Iterator[Tensor]:
    """As SGD sees them: each minibatch is normalized by its own statistics."""
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(options.num_batches):
        rows = torch.randperm(len(data), generator=generator)[: options.minibatch]
        chosen = tuple(t[rows] for t in data.tensors)
        yield evaluator(model, chosen, options.minibatch, "train").gradient()


def shares_of(gradients: list[Tensor], pairs: hs.EigenPairs) -> np.ndarray:
    """(gradient, K): the part of |g|^2 in the span of the top 1..K eigenvectors."""
    rows = torch.stack(gradients).double().cpu().numpy()
    cosines = rows @ pairs.vectors[::-1].T / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.cumsum(np.square(cosines), axis=1)


# -- what is found ------------------------------------------------------------------------------


def judged(context: Context, results: list[Measured]) -> list[Finding]:
    """The claims, at the last epoch."""
    last = max(result.epoch for result in results)
    without, train, constant = (
        next(r for r in results if (r.case, r.epoch) == (case, last))
        for case in (WITHOUT, TRAIN, CONSTANT)
    )
    error = math.hypot(without.share[1], train.share[1])

    def check(claim: str, measured: float, low: float, high: float, **more: Any) -> Finding:
        return context.check(claim, measured, low, high, **{"source": SOURCE, **more})

    return [
        check(
            "how far the largest eigenvalue stands out, lambda_1 / lambda_10, without BatchNorm "
            "over with it",
            *(without.zeta / train.zeta, 1.0, math.inf),
        ),
        check(
            "part of |g|^2 in the top 10 eigenvectors, all the data: without BatchNorm over with "
            "it",
            *(without.whole[-1] / train.whole[-1], 1.0, math.inf),
        ),
        check(
            "the same of minibatches: without BatchNorm minus with it, in standard errors",
            *((without.share[0] - train.share[0]) / error, 2.0, math.inf),
            uncertainty=1.0,
        ),
        check(
            "lambda_1 / lambda_10 with BatchNorm's statistics as constants in derivatives, over "
            "that with those of minibatches",
            *(constant.zeta / train.zeta, 1.0, math.inf),
        ),
        check(
            "overlap of the top 10 eigenvectors of H and of C, the smaller of both networks",
            *(min(without.overlap[-1], constant.overlap[-1]), 0.5, 1.0),
            source="ours; for random spans it is 10 / n",
        ),
        check(
            "loss with BatchNorm, all the data as one minibatch, over that with constant "
            "statistics",
            *(train.loss_at_once / constant.loss_at_once, 1 - 1e-5, 1 + 1e-5),
            source="the same statistics",
            judged_from="test",
        ),
    ]


def figure(results: list[Measured]) -> Figure:
    """The last epoch: eigenvalues, shares of gradients, overlaps, against the dimension."""
    last = [r for r in results if r.epoch == max(result.epoch for result in results)]
    picture = Figure(figsize=(12, 3.8), layout="constrained")
    spectra, shares, overlaps = picture.subplots(1, 3)
    k = np.arange(1, K + 1)
    for result in last:
        color = COLORS[result.case]
        label = rf"{result.case}: $\zeta$ = {result.zeta:.1f}"
        spectra.plot(k, result.eigenvalues / result.eigenvalues[-1], "o-", color=color, label=label)
        mean = result.shares.mean(axis=0)
        error = result.shares.std(axis=0, ddof=1) / math.sqrt(len(result.shares))
        shares.plot(k, result.whole, "o-", color=color)
        shares.errorbar(k, mean, error, color=color, linestyle=":", capsize=2)
        if np.isfinite(result.overlap).all():
            overlaps.plot(k, result.overlap, "o-", color=color, label=result.case)
    for axes in (spectra, overlaps):
        axes.legend(frameon=False, fontsize=8)
    shares.set_title("solid: all the data; dotted: minibatches", fontsize=9)
    spectra.set_yscale("log")
    spectra.set_ylabel(r"$\lambda_k / \lambda_{10}$")
    shares.set_ylabel("part of $|g|^2$ in the top k eigenvectors of H")
    overlaps.set_ylabel("$|P_H P_C|_F^2 / k$")
    for axes in (spectra, shares, overlaps):
        axes.set_xlabel("k")
        axes.grid(True, color="#DDDDDD", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (shares, overlaps):
        axes.set_ylim(0, 1)
    return picture


def run(context: Context, options: Options) -> Outcome:
    data = pictures(context, options)
    results = []
    for batchnorm in (False, True):
        for epoch, model in checkpoints(data, options, batchnorm):
            for case in (TRAIN, CONSTANT) if batchnorm else (WITHOUT,):
                results.append(measured(context, case, epoch, model, data, options))
                print(results[-1], flush=True)
    values = {
        f"{result.case}/epoch {result.epoch}/{name}": value
        for result in results
        for name, value in vars(result).items()
        if name not in ("case", "epoch")
    }
    size = sum(p.numel() for p in model.parameters())
    notes = f"{size:,} parameters with BatchNorm, {len(data):,} samples"
    return Outcome(judged(context, results), values, figure(results), notes)


STUDY = Study(
    title="What does BatchNorm do to outliers, gradients and their covariance?",
    source="Ghorbani, Krishnan & Xiao 2019, figures 5 to 8",
    run=run,
    scales={
        "test": Options(
            0, width=0.125, epochs=(1,), batch_size=60, minibatch=20, num_batches=3, tol=0.1
        ),
        "cpu": Options(),
        "gpu": Options(10_000, 32, 20, 1.0, (5, 20), batch_size=500, num_batches=40),
    },
    data=("cifar10",),
)
