"""Are the operators right? Each on each kind of model, against dense float64 matrices.

    python benchmarks/accuracy.py            # the table of benchmarks/README.md, two minutes

The models of ``kinds.py`` have 16 to 283 parameters and 7 samples in minibatches of 3, 3 and 1.
The dense matrices come from reverse-mode torch.autograd, without this package. An error is the
largest entry of the difference of two matrices, relative to the largest entry of the exact one.
Ours is the worst error of all product modes that torch supports for the model; the other modes are
listed below the table. curvlinops 3 gets the same minibatches, where it supports the loss. Its
Hessian is wrong on models with LayerNorm. On sequences it counts ignored targets, so that its
matrices are not those of the mean over all the data. Second moments of sequence models are not
compared, since a sample is a sequence here and a token there.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from kinds import KINDS, Kind, collated, oracle
from torch import Tensor, nn

import hessian_spectrum as hs
from hessian_spectrum.operators.product_modes import MODES

BOUND = 1e-9  # largest error allowed for ours
OURS = {
    "Hessian": (hs.Hessian, lambda o: o.hessian),
    "Gauss-Newton": (hs.GaussNewton, lambda o: o.gauss_newton),
    "gradient covariance": (
        hs.GradientCovariance,
        lambda o: o.second_moment - torch.outer(o.gradient, o.gradient),
    ),
}
THEIRS = {
    "Hessian": ("HessianLinearOperator", lambda o: o.hessian),
    "Gauss-Newton": ("GGNLinearOperator", lambda o: o.gauss_newton),
    "second moment": ("EFLinearOperator", lambda o: o.second_moment),
}


def main() -> int:
    names = [*OURS, *(f"curvlinops: {name}" for name in THEIRS)]
    print("| model | n | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 2) + "|")
    notes, worst = [], 0.0
    for name, make in KINDS.items():
        torch.manual_seed(0)
        try:
            kind = make()
        except ImportError as error:
            notes.append(f"{name}: not installed ({error})")
            continue
        exact = oracle(kind)
        cells = []
        for title, (operator, matrix) in OURS.items():
            error = ours(kind, operator, matrix(exact), f"{name}, {title}", notes)
            worst = max(worst, error or 0.0)
            cells.append(_cell(error))
        for attribute, matrix in THEIRS.values():
            cells.append(_cell(theirs(kind, attribute, matrix(exact))))
        print(f"| {name} | {len(exact.gradient)} | " + " | ".join(cells) + " |", flush=True)
    print("\n" + "\n".join(f"- {note}" for note in notes))
    print(f"\nworst of ours: {worst:.1e}, bound {BOUND:.0e}")
    return int(worst > BOUND)


def ours(
    kind: Kind, operator: Callable, expected: Tensor, what: str, notes: list[str]
) -> float | None:
    """The worst error of all modes; None where the matrix does not exist."""
    evaluator = hs.Evaluator(**kind.arguments())
    eye = torch.eye(evaluator.n, dtype=torch.float64)
    errors = []
    for mode in MODES:
        try:
            found = operator(evaluator, plan=hs.ProductPlan(mode)) @ eye
        except hs.InputError as error:
            notes.append(f"{what}: refused: {error}")
            return None
        except (RuntimeError, NotImplementedError) as error:
            notes.append(f"{what}: not by {mode}: {' '.join(str(error).split())[:90]}")
            continue
        errors.append(_relative(found, expected))
    return max(errors)


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
        return _relative(operator @ torch.eye(len(expected), dtype=torch.float64), expected)
    except Exception as error:
        print(f"curvlinops, {attribute}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _cell(error: float | None) -> str:
    return "" if error is None else f"{error:.0e}" if error < 1e-6 else f"**{error:.0e}**"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    raise SystemExit(main())
