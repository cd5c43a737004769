"""Outliers, concentrated gradients and the overlap of H and C, with and without BatchNorm.

Ghorbani, Krishnan & Xiao (2019, "An investigation into neural net optimization via Hessian
eigenvalue density", sections 4 and 5) find that without BatchNorm a few eigenvalues stand far out
of the Hessian's spectrum and gradients lie in their span; that with BatchNorm neither is so; and
that the outliers come back where BatchNorm normalizes by constants.

A slim residual network is trained twice on CIFAR pictures, with BatchNorm and without, with the
same steps. At some epochs this script computes, for the loss of all training data:

- zeta = lambda_1 / lambda_K of the Hessian H, K = 10, which is also the number of classes;
- the part of |g|^2 in the span of the top 10 eigenvectors, of the gradient of all the data and of
  minibatches (mean and standard error);
- |P_H P_C|^2 / 10, the overlap with the top eigenvectors of the covariance C of the gradients of
  single samples, and sum of v^T C v / tr C over the top 10 eigenvectors v of H. tr C is that of the
  minibatches' deviations, E |g_B - g|^2 = (1/B) (N - B) / (N - 1) tr C.

With BatchNorm H is that of the function that is trained, in which each minibatch is normalized by
its own statistics ("train": derivatives go through them, samples have no gradient of their own, and
there is no C), and that of the same network with statistics of all the data, constants in
derivatives ("recalibrate").

    python benchmarks/noise_and_batchnorm.py --data-root cifar10_jpeg.npz --out noise.png
    python benchmarks/noise_and_batchnorm.py --quick                       # digits, seconds
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum.analyses.noise_result import variance_factor

K = 10
PLAN = hs.ProductPlan(keep=True)  # reverse over reverse: the same products on every machine
WITHOUT, TRAIN, CONSTANT = "without BatchNorm", "BatchNorm, train", "BatchNorm, recalibrate"
COLORS = {WITHOUT: "#D55E00", TRAIN: "#0072B2", CONSTANT: "#56B4E9"}


@dataclass(frozen=True)
class Measured:
    """One network, at one epoch, with one kind of BatchNorm."""

    case: str
    epoch: int
    loss: float
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


def pictures(args: argparse.Namespace) -> TensorDataset:
    """Digits with --quick; else CIFAR pictures, averaged over squares of pixels."""
    if args.quick:
        return zoo.load_dataset("digits", limit=200)
    data = zoo.load_dataset("arrays", data_root=args.data_root, limit=args.samples)
    x, y = data.tensors
    return TensorDataset(F.avg_pool2d(x, x.shape[-1] // args.pixels), y)


def network(data: TensorDataset, args: argparse.Namespace, batchnorm: bool) -> nn.Module:
    options = {"batchnorm": batchnorm, "width": args.width}
    return zoo.model_for(data, f"resnet{args.depth}", "relu", args.seed, **options)


def checkpoints(
    data: TensorDataset, args: argparse.Namespace, batchnorm: bool
) -> Iterator[tuple[int, nn.Module]]:
    """(epoch, the network then) at each of ``args.epochs``."""
    model, kept = network(data, args, batchnorm), {}

    def keep(result, model, _optimizer):
        if result.epoch in args.epochs:
            kept[result.epoch] = copy.deepcopy(model)

    zoo.train(
        model,
        data,
        epochs=max(args.epochs),
        batch_size=args.train_batch,
        lr=args.lr,
        seed=args.seed,
        on_epoch=keep,
    )
    yield from sorted(kept.items())


def measured(case: str, epoch: int, model: nn.Module, data: TensorDataset, args) -> Measured:
    batch_norm = {TRAIN: "train", CONSTANT: "recalibrate"}.get(case, "eval")
    ev = evaluator(model, data, args.batch_size, batch_norm)
    hessian = hs.Hessian(ev, plan=PLAN)
    pairs = hs.eigenpairs(hessian, K, "largest", args.tol, copies=False, seed=args.seed)
    if batch_norm == "train":
        gradients = list(minibatch_gradients(model, data, args))
        return Measured(
            case,
            epoch,
            ev.loss().item(),
            pairs.values[::-1],
            shares_of([ev.gradient()], pairs)[0],
            shares_of(gradients, pairs),
            np.full(K, math.nan),
            math.nan,
        )
    hessian.forget()  # its graphs take the memory of those of C
    covariance = hs.GradientCovariance(ev, plan=PLAN)
    noise_pairs = hs.eigenpairs(covariance, K, "largest", args.tol, copies=False, seed=args.seed)
    found = hs.noise(
        ev,
        (K,),
        (args.minibatch, "full"),
        args.num_batches,
        operator=hessian,
        covariance=covariance,
        pairs=pairs,
        noise_pairs=noise_pairs,
        seed=args.seed,
    )
    dimensions = range(1, K + 1)
    shares = np.array([found.gradient_share(k) for k in dimensions])  # (K, size, minibatch)
    trace = found.mean_deviation()[0] / variance_factor(found.num_samples, args.minibatch)
    return Measured(
        case,
        epoch,
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


def minibatch_gradients(model: nn.Module, data: TensorDataset, args) -> Iterator[Tensor]:
    """As SGD sees them: each minibatch is normalized by its own statistics."""
    generator = torch.Generator().manual_seed(args.seed)
    for _ in range(args.num_batches):
        rows = torch.randperm(len(data), generator=generator)[: args.minibatch]
        chosen = tuple(t[rows] for t in data.tensors)
        yield evaluator(model, chosen, args.minibatch, "train").gradient()


def shares_of(gradients: list[Tensor], pairs: hs.EigenPairs) -> np.ndarray:
    """(gradient, K): the part of |g|^2 in the span of the top 1..K eigenvectors."""
    rows = torch.stack(gradients).double().numpy()
    cosines = rows @ pairs.vectors[::-1].T / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.cumsum(np.square(cosines), axis=1)


# -- what is found ------------------------------------------------------------------------------


def findings(results: list[Measured]) -> list[str]:
    """A sentence each, at the last epoch: holds, or does not hold at this size."""
    last = max(result.epoch for result in results)
    without, train, constant = (
        next(r for r in results if (r.case, r.epoch) == (case, last))
        for case in (WITHOUT, TRAIN, CONSTANT)
    )

    def sentence(holds: bool, claim: str, numbers: str) -> str:
        return f"{claim}: {'holds' if holds else 'does not hold at this size'}, {numbers}."

    shares = {r.case: r.share[0] for r in (without, train, constant)}
    return [
        sentence(
            without.zeta > train.zeta,
            "Without BatchNorm the largest eigenvalue stands out further (lambda_1 / lambda_10)",
            f"{without.zeta:.2f} without and {train.zeta:.2f} with BatchNorm",
        ),
        sentence(
            without.whole[-1] > train.whole[-1],
            "Without BatchNorm the gradient of all the data lies more in the top 10 eigenvectors",
            f"{without.whole[-1]:.1%} of |g|^2 without and {train.whole[-1]:.1%} with BatchNorm",
        ),
        sentence(
            shares[WITHOUT] > shares[TRAIN] + 2 * math.hypot(without.share[1], train.share[1]),
            "Without BatchNorm so do those of minibatches, by more than two standard errors",
            f"{shares[WITHOUT]:.1%} +- {without.share[1]:.1%} without and {shares[TRAIN]:.1%} +- "
            f"{train.share[1]:.1%} with BatchNorm",
        ),
        sentence(
            constant.zeta > train.zeta,
            "Statistics that are constants in derivatives bring the outliers back",
            f"lambda_1 / lambda_10 is {constant.zeta:.2f} with constant statistics and "
            f"{train.zeta:.2f} with those of minibatches",
        ),
        sentence(
            min(without.overlap[-1], constant.overlap[-1]) > 0.5,
            "The spans of the top 10 eigenvectors of H and of C overlap by more than a half",
            f"by {without.overlap[-1]:.2f} without BatchNorm, {constant.overlap[-1]:.2f} with "
            "it and constant statistics",
        ),
    ]


def draw(results: list[Measured], out: Path) -> None:
    """The last epoch: eigenvalues, shares of gradients, overlaps, against the dimension."""
    last = [r for r in results if r.epoch == max(result.epoch for result in results)]
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    spectra, shares, overlaps = figure.subplots(1, 3)
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
    figure.savefig(out, dpi=80)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("HESSIAN_SPECTRUM_DATA", "../shared/data")) / "cifar10_jpeg.npz"
    parser.add_argument("--data-root", type=Path, default=data, help="arrays of CIFAR pictures")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--pixels", type=int, default=16, help="side of a picture; divides 32")
    parser.add_argument("--depth", type=int, default=8, help="6 b + 2")
    parser.add_argument("--width", type=float, default=0.25, help="of 16, 32 and 64 channels")
    parser.add_argument("--epochs", type=int, nargs="+", default=[10])
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--train-batch", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=250, help="minibatches of the loss")
    parser.add_argument("--minibatch", type=int, default=50, help="samples of a gradient")
    parser.add_argument("--num-batches", type=int, default=20)
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("noise_and_batchnorm.png"))
    parser.add_argument("--quick", action="store_true", help="digits and a tiny network")
    args = parser.parse_args()
    if args.quick:
        args.width, args.epochs, args.num_batches = 0.125, [1], 3
        args.batch_size, args.minibatch = 100, 50
    return args


def main() -> None:
    args, started = options(), time.perf_counter()
    data, results = pictures(args), []
    for batchnorm in (False, True):
        for epoch, model in checkpoints(data, args, batchnorm):
            for case in (TRAIN, CONSTANT) if batchnorm else (WITHOUT,):
                results.append(measured(case, epoch, model, data, args))
                print(results[-1], flush=True)
    draw(results, args.out)
    print("\n".join(findings(results)))
    size = sum(p.numel() for p in network(data, args, True).parameters())
    print(
        f"{size:,} parameters with BatchNorm, {len(data):,} samples, "
        f"{torch.get_num_threads()} threads, {time.perf_counter() - started:.0f} s; {args.out}"
    )


if __name__ == "__main__":
    main()
