"""Operators on small models of every kind, against dense float64 matrices.

The models of ``benchmarks/suite/kinds.py`` have 16 to 283 parameters and 7 samples in minibatches
of 3, 3 and 1. The dense matrices come from reverse-mode torch.autograd, without this package. An
error is the largest entry of the difference of two matrices, relative to the largest entry of the
exact one; ours is the worst error of all product modes that torch supports for the model.

curvlinops 3 gets the same minibatches, where it supports the loss; its errors are among the
values, and are not judged. Its Hessian was wrong on models with LayerNorm. On sequences it counts
ignored targets, so that its matrices are not those of the mean over all the data. Second moments of
sequence models are not compared, since a sample is a sequence here and a token there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.kinds import KINDS, Kind, Oracle, collated, oracle
from hessian_spectrum.operators.product_modes import MODES

BOUND = 1e-12  # largest error allowed for ours; measured: 1e-15
Matrix = Callable[[Oracle], Tensor]
OURS: dict[str, tuple[Callable[..., hs.SymmetricOperator], Matrix]] = {
    "Hessian": (hs.Hessian, lambda o: o.hessian),
    "Gauss-Newton": (hs.GaussNewton, lambda o: o.gauss_newton),
    "gradient covariance": (
        hs.GradientCovariance,
        lambda o: o.second_moment - torch.outer(o.gradient, o.gradient),
    ),
}
THEIRS: dict[str, tuple[str, Matrix]] = {
    "Hessian": ("HessianLinearOperator", lambda o: o.hessian),
    "Gauss-Newton": ("GGNLinearOperator", lambda o: o.gauss_newton),
    "second moment": ("EFLinearOperator", lambda o: o.second_moment),
}
# Samples whose BatchNorm has the statistics of a minibatch have no gradients of their own.
NONEXISTENT = {("BatchNorm, train", "gradient covariance")}
# Torch cannot form these products, and the package says so.
UNAVAILABLE = {
    ("GroupNorm", "Hessian", "reverse-batched"),  # vmap of its double backward
    ("physics-informed", "Hessian", "forward"),  # vmap of mse_loss's jvp
    ("physics-informed", "Gauss-Newton", "forward"),
}


@dataclass(frozen=True)
class Options:
    kinds: tuple[str, ...] = tuple(KINDS)


def ours(kind: Kind, title: str, expected: Tensor) -> tuple[dict[str, float], set[str]]:
    """The error of each mode, and the modes that torch does not support.

    Raises:
        hs.InputError: the matrix does not exist.
    """
    operator, _ = OURS[title]
    evaluator = hs.Evaluator(**kind.arguments())
    eye = torch.eye(evaluator.n, dtype=torch.float64)
    errors, missing = {}, set()
    for mode in MODES:
        try:
            found = operator(evaluator, plan=hs.ProductPlan(mode)) @ eye
        except hs.InputError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            print(f"{title}: not by {mode}: {' '.join(str(error).split())[:90]}")
            missing.add(mode)
            continue
        errors[mode] = relative(found, expected)
    return errors, missing


def theirs(kind: Kind, attribute: str, expected: Tensor) -> float | None:
    """The error of curvlinops; None if it is not installed or does not support the problem."""
    if "forward" in kind.options or kind.options.get("batch_norm", "eval") != "eval":
        return None
    if not isinstance(kind.loss_fn, nn.Module) or kind.options.get("dropout"):
        return None
    if attribute == "EFLinearOperator" and kind.data[1].ndim > 1:  # its samples are tokens
        return None
    try:
        import curvlinops

        kind.model.eval()
        parameters = [p for p in kind.model.parameters() if p.requires_grad]
        operator = getattr(curvlinops, attribute)(
            kind.model, kind.loss_fn, parameters, collated(kind)
        )
        return relative(operator @ torch.eye(len(expected), dtype=torch.float64), expected)
    except Exception as error:  # whatever another package raises
        print(f"curvlinops, {attribute}: {type(error).__name__}: {error}")
        return None


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def judged(context: Context, name: str, kind: Kind, exact: Oracle) -> tuple[list[Finding], dict]:
    """The findings on one kind of models, and the errors by name."""
    found, values = [], {}

    def check(claim: str, measured: float, low: float, high: float, source: str) -> None:
        claim = f"{name}, {claim}"
        found.append(context.check(claim, measured, low, high, source=source, judged_from="test"))

    for title, (_, matrix) in OURS.items():
        try:
            errors, missing = ours(kind, title, matrix(exact))
        except hs.InputError as error:
            print(f"{name}, {title}: refused: {error}")
            errors, missing = {}, set()
        if (name, title) in NONEXISTENT:
            check(f"{title} does not exist: modes that form it", len(errors), 0, 0, "definition")
            continue
        for mode, error in errors.items():
            values[f"{name}/{title}/{mode}"] = error
        worst = max(errors.values(), default=float("nan"))
        claim = f"{title}: worst error of {len(errors)} modes"
        check(claim, worst, 0.0, BOUND, "reverse mode of torch")
        known = {mode for one, other, mode in UNAVAILABLE if (one, other) == (name, title)}
        if missing - known:
            others = ", ".join(sorted(missing - known))
            check(f"{title}: modes that fail ({others})", len(missing - known), 0, 0, "torch")
    for title, (attribute, matrix) in THEIRS.items():
        error = theirs(kind, attribute, matrix(exact))
        if error is not None:
            values[f"{name}/curvlinops, {title}"] = error
    return found, values


def run(context: Context, options: Options) -> Outcome:
    warnings.simplefilter("ignore")  # torch's, of vmap without a batching rule
    findings: list[Finding] = []
    values: dict[str, Any] = {}
    absent = []
    for name in options.kinds:
        torch.manual_seed(0)
        try:
            kind = KINDS[name]()
        except ImportError as error:
            absent.append(f"{name}: not installed here ({error})")
            continue
        found, errors = judged(context, name, kind, oracle(kind))
        findings += found
        values |= errors
    peers = [error for name, error in values.items() if "curvlinops" in name]
    wrong = [
        f"{n.replace('/', ', ')} {e:.0e}"
        for n, e in values.items()
        if "curvlinops" in n and e > BOUND
    ]
    absent += [f"curvlinops is wrong on: {'; '.join(wrong)}"] if wrong else []
    absent += [] if peers else ["curvlinops: not installed here, or without a problem it supports"]
    return Outcome(findings, values, notes=". ".join(absent))


STUDY = Study(
    title="Are the operators right on each kind of model?",
    source="the definitions of the matrices, by reverse-mode torch.autograd",
    run=run,
    scales={
        "test": Options(("perceptron",)),
        "cpu": Options(),
        "gpu": Options(),
    },
    group="accuracy",
)
