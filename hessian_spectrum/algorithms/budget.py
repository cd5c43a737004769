"""The numbers of probes and steps of a density, chosen from its cost or target error."""

from __future__ import annotations

import math
from typing import Literal, get_args

from hessian_spectrum._core.errors import InputError, require_whole

Estimator = Literal["block", "slq", "lean"]
ESTIMATORS = get_args(Estimator)

DEFAULT_PRODUCTS = 180
MAX_PRODUCTS = 1800  # with a target error
# Block steps: enough to resolve a hundredth of a trained network's spectrum. A larger block finds
# more of it in each.
STEPS = {"block": (15, 10), "lean": (15, 15), "slq": (45, 90)}
STEPS_BETWEEN = 240, 360  # products up to which, and from which, these are the defaults
# The number of eigenvalues outside the bulk that no probe has found varies by 1 / sqrt(b); blocks
# of this many over the target reached it, on the networks of benchmarks/studies/exact_density.py.
PER_TARGET = 0.015
PROBES_FOR_TARGET = 8, 72  # least, most
LEAST_CHOSEN = 4  # probes, and steps
LEAST_PROBES, LEAST_STEPS = 6, 10  # where the other one is given, but no number of products
MAX_PROBES = 96  # that are chosen by default: multiplying more together gains nothing


def choose(
    n: int,
    estimator: Estimator = "block",
    num_probes: int | None = None,
    num_steps: int | None = None,
    num_products: int | None = None,
    target_error: float | None = None,
) -> tuple[int, int]:
    """(num_probes, num_steps); with a target, as many steps as the products allow.

    Given sizes are kept. Among the others steps come first: too few leave the density unresolved,
    while too few probes make it noisy, which its error bars show.

    Raises:
        InputError: an argument is of no use, or the three sizes contradict each other.
    """
    if estimator not in ESTIMATORS:
        raise InputError(f"estimator={estimator!r}: expected one of {', '.join(ESTIMATORS)}")
    sizes = {"num_probes": num_probes, "num_steps": num_steps, "num_products": num_products}
    require_whole(1, **{name: value for name, value in sizes.items() if value is not None})
    if target_error is not None and not 0 < target_error < math.inf:
        raise InputError(f"target_error={target_error}: expected an L1 error, more than 0")
    if num_steps is not None and num_steps > n:
        raise InputError(
            f"num_steps={num_steps} must lie between 1 and the operator's size {n}, a whole "
            f"number; use num_steps <= {n}"
        )
    least = (num_probes or 1) * (num_steps or 1)
    if num_products is not None and least > num_products:
        given = {"num_probes": num_probes, "num_steps": num_steps, "num_products": num_products}
        said = ", ".join(f"{name}={value}" for name, value in given.items() if value)
        raise InputError(f"{said}: that takes {least} products or more; leave one of them out")
    if None not in (num_probes, num_steps, num_products) and least != num_products:
        raise InputError(
            f"num_probes={num_probes}, num_steps={num_steps}, num_products={num_products}: these "
            f"are {least} products; leave one of them out"
        )
    probes_given, steps_given = num_probes is not None, num_steps is not None
    products = num_products or (DEFAULT_PRODUCTS if target_error is None else MAX_PRODUCTS)
    if num_probes is None:
        if target_error is not None:
            fewest, most = PROBES_FOR_TARGET
            num_probes = min(max(math.ceil(PER_TARGET / target_error), fewest), most)
            num_probes = min(num_probes, max(2, products // (num_steps or STEPS[estimator][1])))
        else:
            num_probes = max(1, products // (num_steps or _steps(estimator, products)))
            num_probes = min(num_probes, MAX_PROBES)
    if target_error is not None and min(num_probes, products) < 2:
        raise InputError(
            f"target_error={target_error} with one probe, which does not know its error; use two "
            "num_probes or more, and num_products enough for them"
        )
    if num_steps is None:
        num_steps = max(1, products // num_probes)
    if num_products is None and target_error is None and probes_given != steps_given:
        # The default number of products is no wish of the user: more may be spent.
        num_steps = num_steps if steps_given else max(num_steps, LEAST_STEPS)
        num_probes = num_probes if probes_given else max(num_probes, LEAST_PROBES)
    return int(num_probes), int(min(num_steps, n))


def _steps(estimator: Estimator, products: int) -> int:
    few, many = STEPS[estimator]
    fewest, most = STEPS_BETWEEN
    share = (min(max(products, fewest), most) - fewest) / (most - fewest)
    # Four probes at least: one has no error bars, and those of two are hardly known.
    return min(round(few + share * (many - few)), max(LEAST_CHOSEN, products // LEAST_CHOSEN))
