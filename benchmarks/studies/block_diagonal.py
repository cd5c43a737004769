"""What a block-diagonal approximation of the Hessian leaves out.

Granziol & Juarev (2026, "Hessian Spectral Analysis at Foundation Model Scale") report that
approximations of the Hessian H by its diagonal blocks B have relative errors of order one, and
products that point elsewhere, in language models whose H nobody can write down. Here H is small
enough to be written down: a causal transformer that has learned some sentences of the Penn
Treebank, and a perceptron that has learned digits, before and after training, float64. Blocks are
modules (a weight and its bias), and for the transformer also its whole layers.

B is the orthogonal projection of H, so that |H - B|_F^2 = |H|_F^2 - |B|_F^2: a relative error is
at most 1. Of Gaussian vectors v it is the root mean square error of a product, (E |(H - B) v|^2 /
E |H v|^2)^(1/2), and sqrt(1 - error^2) is the cosine of H v and B v, of their mean squares. By
Cauchy's interlacing no eigenvalue of B is outside of the spectrum of H. Both are checked, and the
error that products alone give, without a matrix, which is what is left for large models.

Order one: at least 0.3; pointing elsewhere: a cosine of at most 0.9 (the bounds are ours). The test
takes random sentences and the shipped digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.exact import hessian_by_products
from benchmarks.suite.pictures import Digits, pooled
from benchmarks.suite.sharded_worker import LanguageModel
from hessian_spectrum import zoo

SOURCE = "Granziol & Juarev 2026"
ALGEBRA = "projection and interlacing"
PROBES = 40  # Gaussian vectors of an estimate by products


@dataclass(frozen=True)
class Options:
    """
    Args:
        vocabulary, width, layers, length, sequences: of the transformer and its sentences.
        text: of the Penn Treebank, or random words.
        side, samples: of pictures of digits.
        hidden: units of both hidden layers.
        steps: of Adam, with all data.
    """

    vocabulary: int = 61
    width: int = 12
    layers: int = 2
    length: int = 12
    sequences: int = 24
    text: bool = True
    data: Digits = "mnist"
    side: int = 7
    samples: int = 500
    hidden: int = 20
    steps: int = 300
    seed: int = 0


@dataclass(frozen=True)
class Problem:
    """A network with its data, and how its parameters are divided into blocks."""

    name: str
    model: nn.Module
    data: tuple[Tensor, Tensor]
    blocks: dict[str, str | tuple[str, ...]]  # kinds of ``hs.parameter_blocks``

    @property
    def evaluator(self) -> hs.Evaluator:
        return hs.Evaluator(self.model, nn.CrossEntropyLoss(), self.data, dtype=torch.float64)


@dataclass(frozen=True)
class Found:
    """One kind of blocks of one Hessian."""

    error: float  # |H - B|_F / |H|_F
    cosine: float  # of H v and B v
    cosines: np.ndarray  # of single Gaussian v
    estimate: float  # of the error, by products
    estimate_error: float  # standard deviation
    largest: float  # eigenvalue of B over that of H
    within: float  # of B's spectrum beyond that of H, over H's largest |eigenvalue|
    shares: np.ndarray  # (blocks, blocks), of |H|_F^2
    names: tuple[str, ...]


# -- problems ------------------------------------------------------------------------------------


def sentences(context: Context, options: Options) -> tuple[Tensor, Tensor]:
    """Ids of consecutive words and of the next ones, (sequences, length) each."""
    count = options.sequences * options.length + 1
    if not options.text:
        generator = torch.Generator().manual_seed(options.seed)
        ids = torch.randint(options.vocabulary, (count,), generator=generator)
    else:
        x, _ = zoo.load_dataset("ptb", data_root=context.data("ptb")).tensors
        words = x.flatten()[:20_000]
        common = words.bincount().argsort(descending=True, stable=True)[: options.vocabulary - 1]
        number = torch.full((int(words.max()) + 1,), options.vocabulary - 1)
        number[common] = torch.arange(options.vocabulary - 1)
        ids = number[words[:count]]
    shape = options.sequences, options.length
    return ids[:-1].view(shape), ids[1:].view(shape)


def problems(context: Context, options: Options) -> list[Problem]:
    torch.manual_seed(options.seed)
    o = options
    transformer = LanguageModel(o.vocabulary, o.width, o.layers, o.length)
    layers = tuple(f"blocks.{i}.*" for i in range(o.layers))
    others = ("embedding.*", "position", "norm.*")
    x, y = pooled(context, o.data, o.side, o.samples)
    perceptron = nn.Sequential(
        nn.Linear(x.shape[1], o.hidden),
        nn.ReLU(),
        nn.Linear(o.hidden, o.hidden),
        nn.ReLU(),
        nn.Linear(o.hidden, 10),
    )
    return [
        Problem(
            "transformer",
            transformer,
            sentences(context, o),
            {"modules": "layers", "layers": (*others, *layers)},
        ),
        Problem("perceptron", perceptron, (x, y), {"modules": "layers"}),
    ]


def trained(problem: Problem, steps: int) -> None:
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=3e-3)
    x, y = problem.data
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(problem.model(x), y).backward()
        optimizer.step()


# -- measurement ---------------------------------------------------------------------------------


def dense(hessian: hs.Hessian) -> Tensor:
    """(n, n), with the rows of parameters without effect."""
    part, live = hessian_by_products(hessian)
    whole = torch.zeros(hessian.n, hessian.n, dtype=torch.float64)
    whole[live[:, None], live] = part
    return whole


def look(hessian: hs.Hessian, matrix: Tensor, blocks: dict[str, Tensor]) -> Found:
    total = matrix.square().sum()
    shares = np.array(
        [
            [(matrix[a[:, None], b].square().sum() / total).item() for b in blocks.values()]
            for a in blocks.values()
        ]
    )
    values = torch.linalg.eigvalsh(matrix)
    ends = torch.stack(
        [torch.linalg.eigvalsh(matrix[e[:, None], e])[[0, -1]] for e in blocks.values()]
    )
    low, high = ends[:, 0].min(), ends[:, 1].max()
    beyond = torch.stack([values[0] - low, high - values[-1]]).max().clamp(min=0)
    # Without the matrix: each block's rows of a product with the block's part of the vector.
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(PROBES, hessian.n, dtype=torch.float64, generator=generator)
    product, kept = hessian.products(v), torch.zeros_like(v)
    for entries in blocks.values():
        kept[:, entries] = hs.Restricted(hessian, entries=entries).products(v[:, entries])
    squares, left = product.square().sum(1), (product - kept).square().sum(1)
    ratio = left.mean() / squares.mean()
    spread = (left - ratio * squares).std() / squares.mean() / PROBES**0.5
    estimate = ratio.sqrt().item()
    return Found(
        max(0.0, 1 - np.trace(shares)) ** 0.5,
        np.trace(shares) ** 0.5,
        F.cosine_similarity(product, kept).numpy(),
        estimate,
        spread.item() / (2 * estimate),
        (high / values[-1]).item(),
        (beyond / values.abs().max()).item(),
        shares,
        tuple(blocks),
    )


def judged(context: Context, name: str, found: Found) -> list[Finding]:
    # The estimate is one of few probes: four standard deviations.
    margin = 4 * found.estimate_error
    return [
        context.check(
            f"{name}: error of the blocks, |H - B| / |H| (Frobenius)",
            found.error,
            *(0.3, 1.0),
            source=SOURCE,
        ),
        context.check(
            f"{name}: cosine of products with H and with its blocks",
            found.cosine,
            *(0.0, 0.9),
            source=SOURCE,
            uncertainty=found.cosines.std(ddof=1) / len(found.cosines) ** 0.5,
        ),
        context.check(
            f"{name}: error by {PROBES} products, minus that of the matrix",
            found.estimate - found.error,
            *(-margin, margin),
            source=ALGEBRA,
            uncertainty=found.estimate_error,
            judged_from="test",
        ),
        context.check(
            f"{name}: spectrum of the blocks beyond that of H, over its largest |eigenvalue|",
            found.within,
            *(0.0, 1e-12),
            source=ALGEBRA,
            judged_from="test",
        ),
        context.check(
            f"{name}: largest eigenvalue of the blocks over that of H",
            found.largest,
            *(0.0, 0.9),
            source="the same bound as for cosines, ours",
            why_not="after training one layer has nearly all of it",
        ),
    ]


def measured(context: Context, options: Options, problem: Problem, steps: int) -> dict[str, Found]:
    """By kind of blocks; those of an earlier run where there are any."""
    trained(problem, steps)
    evaluator = problem.evaluator
    hessian = hs.Hessian(evaluator)
    matrices: list[Tensor] = []  # one, when it is needed
    found = {}
    for kind, chosen in problem.blocks.items():
        blocks = hs.parameter_blocks(evaluator, chosen)

        def make(blocks: dict[str, Tensor] = blocks) -> dict[str, Any]:
            if not matrices:
                matrices.append(dense(hessian))
            return vars(look(hessian, matrices[0], blocks))

        kept = context.kept(f"{problem.name}-{steps}-{kind}", options, make)
        fields = {name: v if v.ndim else v.item() for name, v in kept.items()}
        found[kind] = Found(**{**fields, "names": tuple(map(str, kept["names"]))})
    return found


def figure(found: dict[str, Found]) -> Figure:
    """Shares of |H|_F^2 by pairs of modules, after training."""
    chosen = {name: f for name, f in found.items() if "modules" in name and "trained" in name}
    picture = Figure(figsize=(11, 6), layout="constrained")
    for axes, (name, one) in zip(picture.subplots(1, len(chosen)), chosen.items()):
        image = axes.imshow(100 * one.shares, cmap="viridis", norm="log", interpolation="nearest")
        names = [n.removeprefix("blocks.").replace("self_attn", "attention") for n in one.names]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title(f"{name}: error {one.error:.2f}", fontsize=10)
        picture.colorbar(image, ax=axes, label="per cent of the squared norm of H", shrink=0.6)
    return picture


def run(context: Context, options: Options) -> Outcome:
    found: dict[str, Found] = {}
    for problem in problems(context, options):
        for when, steps in (("start", 0), ("trained", options.steps)):
            for kind, one in measured(context, options, problem, steps).items():
                found[f"{problem.name}, {when}, {kind}"] = one
    findings = [f for name, one in found.items() for f in judged(context, name, one)]
    values = {
        f"{name}/{field}": getattr(one, field)
        for name, one in found.items()
        for field in ("error", "cosine", "largest", "shares")
    }
    return Outcome(findings, values, figure(found))


STUDY = Study(
    title="How much of the Hessian is in its diagonal blocks?",
    source="Granziol & Juarev 2026, arXiv 2602.00816",
    run=run,
    scales={
        "test": Options(
            vocabulary=11,
            width=4,
            layers=1,
            length=5,
            sequences=4,
            text=False,
            data="digits",
            side=4,
            samples=60,
            hidden=5,
            steps=20,
        ),
        "cpu": Options(),
    },
    data=("mnist", "ptb"),
)
