"""The Hessian's density before, during and after training, and at a drop of the learning rate.

Ghorbani, Krishnan & Xiao (2019, "An Investigation into Neural Net Optimization via Hessian
Eigenvalue Density", ICML) look at the whole spectrum along the training of residual networks. A
residual network of depth 8, slim, learns pictures by SGD with momentum; its learning rate drops
tenfold. The same without shortcuts, and without BatchNorm. At each checkpoint: a density and the
ten largest eigenvalues of the Hessian of the loss of the first pictures, which are one minibatch:
BatchNorm normalizes by the statistics of these, as in training, and derivatives go through them.

Claims, of the authors unless said otherwise (those on the drop and on shortcuts as we remember
them):

1. Most eigenvalues are near 0: 90 % of them within 2 % of the largest.
2. The start has large negative eigenvalues, which training removes: |lambda_min| / lambda_max
   falls to less than half of what it was.
3. Without BatchNorm isolated eigenvalues appear fast: lambda_1 / lambda_10 doubles within the first
   epochs; with it there are none, lambda_1 / lambda_10 is at no checkpoint as large as that.
4. A drop of the learning rate shrinks the negative part: its share of sum lambda^2 falls.
5. Shortcuts smooth the surface (a hypothesis of Li et al. 2018): lambda_max over the loss, at the
   end, is larger without them.

The test takes the shipped digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.pictures import small_pictures

SOURCE = "Ghorbani et al. 2019"
CASES: dict[str, tuple[str, ...]] = {
    "residual": (),
    "no shortcuts": ("--no-shortcut",),
    "no BatchNorm": ("--no-batchnorm",),
}
K = 10  # eigenvalues at the upper end; the number of classes
NEAR = 0.02  # of the largest |eigenvalue|: near 0


@dataclass(frozen=True)
class Options:
    """
    Args:
        samples: pictures that are learned; 0: digits.
        looked_at: pictures of the Hessian's loss.
        at: epochs at which spectra are looked at.
        drop: the epoch after which the learning rate is a tenth.
        lr: of networks with BatchNorm; those without take ``lr_plain``.
        num_products: of a density.
        tol: of eigenvalues.
        how: options of products; tracing is most of the time of a test.
    """

    samples: int = 2000
    looked_at: int = 250
    width: float = 0.25
    at: tuple[int, ...] = (0, 1, 2, 4, 8, 14)
    drop: int = 8
    lr: float = 0.1
    lr_plain: float = 0.02
    num_products: int = 48
    tol: float = 1e-3
    how: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Spectra:
    """Of one network, at its checkpoints."""

    epochs: np.ndarray  # (c,)
    losses: np.ndarray  # (c,)
    largest: np.ndarray  # (c, K), descending
    lowest: np.ndarray  # (c,)
    near: np.ndarray  # (c,), share of eigenvalues near 0
    near_error: np.ndarray  # (c,), standard error
    negative: np.ndarray  # (c,), share of sum lambda^2 of the negative ones
    densities: tuple[hs.SpectralMeasure, ...]

    @property
    def ratio(self) -> np.ndarray:
        """|lambda_min| / lambda_max, 0 where no eigenvalue is negative."""
        return np.maximum(-self.lowest, 0.0) / self.largest[:, 0]

    @property
    def zeta(self) -> np.ndarray:
        return self.largest[:, 0] / self.largest[:, K - 1]

    def at(self, epoch: int) -> int:
        return int(np.flatnonzero(self.epochs == epoch)[0])


def problem(context: Context, options: Options, case: str) -> list[object]:
    model: list[object] = ["--model", "resnet8", "--width", options.width, *CASES[case]]
    if not options.samples:
        return [*model, "--dataset", "digits"]
    pictures = small_pictures(context, options.samples)
    return [*model, "--dataset", "arrays", "--data-root", pictures]


def spectra(context: Context, options: Options, case: str) -> Spectra:
    words = problem(context, options, case)
    limit = ("--limit", options.looked_at)
    is_normalized = case != "no BatchNorm"
    folder = context.network(
        *words,
        *(() if options.samples else limit),
        *("--batch-size", 50, "--epochs", max(options.at), "--every", 1, "--seed", options.seed),
        *("--lr", options.lr if is_normalized else options.lr_plain),
        *("--lr-drop", f"{options.drop}:0.1", "--keep-steps", "1:1"),
    )
    statistics = ("--batch-norm", "train") if is_normalized else ()
    with context.computed(
        context.folder / f"{case.replace(' ', '-')}.h5",
        "track",
        *words,
        *(*limit, "--batch-size", options.looked_at, *statistics, *options.how),
        *("--density", "--num-products", options.num_products),
        *("--largest", K, "--smallest", 1, "--tol", options.tol),
        "--checkpoints",
        *(folder / f"{label}.pt" for label in labels(options)),
    ) as run:
        return read(run, options)


def labels(options: Options) -> list[str]:
    """Of checkpoints, as ``train`` names them; the start is that of the first step."""
    return [f"epoch-{epoch:04}" if epoch else "step-000000" for epoch in options.at]


def read(run: hs.Run, options: Options) -> Spectra:
    densities = tuple(run[f"density/{label}"] for label in labels(options))
    pairs = [run[f"eigenpairs/{label}"] for label in labels(options)]
    near, errors, negative = [], [], []
    for measure, found in zip(densities, pairs):
        scale = np.abs(found.values).max()
        near.append(measure.mass(-NEAR * scale, NEAR * scale))
        errors.append(measure.standard_error("mass", -NEAR * scale, NEAR * scale))
        negative.append(measure.energy(-np.inf, 0.0) / measure.frobenius_norm**2)
    return Spectra(
        np.array(options.at),
        np.asarray(run["trajectory"].values["loss"]),
        np.stack([found.values[::-1][:K] for found in pairs]),
        np.array([found.values[0] for found in pairs]),
        np.array(near),
        np.array(errors),
        np.array(negative),
        densities,
    )


def judged(context: Context, options: Options, case: str, found: Spectra) -> list[Finding]:
    """Of one network alone."""
    last = len(found.epochs) - 1
    before, after = found.at(options.drop), last
    # Both bound eigenvalues from within, the one more closely than the other.
    nodes = np.array([measure.nodes[-1] for measure in found.densities])
    return [
        context.check(
            f"{case}: largest node of a density beyond the largest eigenvalue, over it",
            (nodes / found.largest[:, 0] - 1).max(),
            *(-np.inf, 2 * options.tol),
            source="Ritz values",
            judged_from="test",
        ),
        context.check(
            f"{case}: share of eigenvalues within {NEAR:.0%} of the largest, at the end",
            found.near[last],
            *(0.9, 1.0),
            source=SOURCE,
            uncertainty=found.near_error[last],
            why_not="of few pictures: with 500 it is 0.96",
        ),
        context.check(
            f"{case}: |lambda_min| / lambda_max at the end, over that at the start",
            found.ratio[last] / found.ratio[0],
            *(0.0, 0.5),
            source=SOURCE,
        ),
        context.check(
            f"{case}: negative share of sum lambda^2 after the drop of the learning rate, over "
            "that before it",
            found.negative[after] / found.negative[before],
            *(0.0, 1.0),
            source=f"{SOURCE}, as we remember it",
            why_not="of few pictures, 0.3 % before and after: with 500 it falls to 0.12 times",
        ),
    ]


def between(context: Context, found: dict[str, Spectra]) -> list[Finding]:
    """What differs between networks."""
    plain, residual = found["no BatchNorm"], found["residual"]
    without = found["no shortcuts"]
    early = plain.zeta[1:4].max()
    sharpness = {name: s.largest[-1, 0] / s.losses[-1] for name, s in found.items()}
    return [
        context.check(
            "no BatchNorm: largest lambda_1 / lambda_10 in the first epochs, over that of the "
            "start",
            early / plain.zeta[0],
            *(2.0, np.inf),
            source=SOURCE,
        ),
        context.check(
            "residual, with BatchNorm: largest lambda_1 / lambda_10 of all epochs, over that "
            "without BatchNorm",
            residual.zeta[1:].max() / plain.zeta[1:].max(),
            *(0.0, 1.0),
            source=SOURCE,
        ),
        context.check(
            "lambda_max over the loss, at the end: without shortcuts over with",
            sharpness["no shortcuts"] / sharpness["residual"],
            *(1.0, np.inf),
            source="Li et al. 2018, which Ghorbani et al. 2019 look at",
        ),
        context.check(
            "training loss at the end: without shortcuts over with",
            without.losses[-1] / residual.losses[-1],
            *(1.0, np.inf),
            source="He et al. 2016, by Ghorbani et al. 2019",
            why_not="eight layers train as well without them",
        ),
    ]


def figure(found: dict[str, Spectra], options: Options) -> Figure:
    picture = Figure(figsize=(11, 6), layout="constrained")
    axes = picture.subplots(2, len(found), sharex="row")
    for column, (case, spectrum) in zip(axes.T, found.items()):
        top, bottom = column
        for epoch in (options.at[0], options.at[1], options.drop, options.at[-1]):
            i = spectrum.at(epoch)
            t, values = density_over_largest(spectrum, i)
            top.semilogy(t, values, lw=1, label=f"epoch {epoch}")
        top.set(title=case, ylim=(1e-3, 1e3), xlabel="eigenvalue / largest")
        bottom.semilogy(spectrum.epochs, spectrum.largest[:, 0], "o-", ms=3, label="largest")
        bottom.semilogy(spectrum.epochs, spectrum.largest[:, -1], "o-", ms=3, label="tenth")
        bottom.semilogy(spectrum.epochs, -spectrum.lowest, "o-", ms=3, label="-(smallest)")
        bottom.semilogy(spectrum.epochs, spectrum.losses, "k--", lw=1, label="loss")
        bottom.axvline(options.drop, color="0.7", lw=1)
        bottom.set_xlabel("epoch; the line: learning rate / 10")
    axes[0, 0].set_ylabel("density")
    axes[0, 0].legend(fontsize=8)
    axes[1, 1].legend(fontsize=8, loc="lower right")
    return picture


def density_over_largest(found: Spectra, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues in units of the largest one, smoothed by a hundredth of it."""
    scale = found.largest[i, 0]
    t = np.linspace(-1.1, 1.1, 1200)
    return t, scale * found.densities[i].density(t * scale, (scale / 100) ** 2)


def run(context: Context, options: Options) -> Outcome:
    found: dict[str, Spectra] = {}
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    for case in CASES:
        found[case] = spectra(context, options, case)
        findings += judged(context, options, case, found[case])
        for name in ("epochs", "losses", "largest", "lowest", "near", "negative"):
            values[f"{case}/{name}"] = getattr(found[case], name)
        for i, epoch in enumerate(found[case].epochs):
            s = found[case]
            print(
                f"{case}, epoch {epoch}: loss {s.losses[i]:.4g}, largest {s.largest[i, 0]:.4g}, "
                f"tenth {s.largest[i, -1]:.4g}, smallest {s.lowest[i]:.4g}, near 0 "
                f"{s.near[i]:.3f}, negative share of sum lambda^2 {s.negative[i]:.3g}"
            )
    return Outcome(findings + between(context, found), values, figure(found, options))


STUDY = Study(
    title="What does training do to the spectrum?",
    source="Ghorbani et al. 2019, sections 3 and 4; Li et al. 2018",
    run=run,
    scales={
        "test": Options(
            samples=0,
            looked_at=20,
            width=0.125,
            at=(0, 1, 2),
            drop=1,
            num_products=8,
            tol=0.3,
            how=("--hvp", "reverse"),
        ),
        "cpu": Options(),
        "gpu": Options(samples=10_000, looked_at=2000, width=1.0, num_products=180),
    },
    data=("cifar10",),
)
