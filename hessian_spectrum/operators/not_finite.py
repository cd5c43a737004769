"""Find the sample and the operation whose second derivative is not finite."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.sharding import Layout
from hessian_spectrum.loss.batching import leading_size, take
from hessian_spectrum.loss.minibatch_loss import Part
from hessian_spectrum.operators.product_modes import reverse


def require_finite_product(
    layout: Layout,
    part: Part,
    theta: Tensor,
    u: Tensor,
    product: Tensor,
    named: Callable[[int], str],
) -> None:
    """InputError if H u of this part is not finite though loss and data are.

    Args:
        product: H u, shape (n,).
        named: the sample of this row of the part's batch, in words.
    """
    if product.isfinite().all():
        return
    where, single = _first_sample(part, theta, u, named)
    bad = layout.unflatten(~product.isfinite())
    names = [name for name, entries in bad.items() if entries.any()]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    raise InputError(
        f"the second derivative of the loss is not finite{where}{_operation(single, theta, u)}; "
        f"parameters concerned: {', '.join(names[:4])}{more}. Does it exist there? A norm or a "
        "square root has no derivative at 0, a power below 2 no second one; write the function "
        "so that it has (d.square().sum() instead of norm(d) ** 2), or remove the sample"
    )


def _first_sample(
    part: Part, theta: Tensor, u: Tensor, named: Callable[[int], str]
) -> tuple[str, Part]:
    """In words which of the part's samples is the first, and the part of it alone.

    Halves are searched: the logarithm of the number of samples in products.
    """
    first, count = 0, leading_size(part.batch)
    while count > 1:
        half = count // 2
        rows = take(part.batch, list(range(first, first + half)))
        if rows is None or part.function.is_whole:
            return f" for the minibatch from {named(0)} on", part
        if _is_finite(part.of(rows), theta, u):
            first, count = first + half, count - half
        else:
            count = half
    one = take(part.batch, [first])
    alone = part if one is None else part.of(one)
    return f" for {named(first)}", alone


def _is_finite(part: Part, theta: Tensor, u: Tensor) -> bool:
    if not part.function.weight(part.batch):
        return True
    return bool(reverse(part, theta)(u[None]).isfinite().all())


def _operation(part: Part, theta: Tensor, u: Tensor) -> str:
    """In words, the operation that autograd's anomaly detection finds, and its line of code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.set_detect_anomaly(True):
                reverse(part, theta)(u[None])
        except RuntimeError as error:
            message = str(error)
        else:
            return ""
    name = re.search(r"Function '(\w+?)(?:Backward\d*)+'", message)
    text = "".join(str(warning.message) for warning in caught)
    lines = [
        (file, line)
        for file, line in re.findall(r'File "([^"]+)", line (\d+), in \w+', text)
        if "/torch/" not in file and "/hessian_spectrum/" not in file
    ]
    at = f", {lines[-1][0].rsplit('/', 1)[-1]} line {lines[-1][1]}" if lines else ""
    return f" (operation {name.group(1)}{at})" if name else ""
