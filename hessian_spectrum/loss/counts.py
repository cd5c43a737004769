"""Work that an evaluator has done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """Work done so far on this rank, for provenance and for tests."""

    passes: int = 0  # over this rank's data
    graphs: int = 0  # first-order graphs, one a minibatch and pass
    products: int = 0  # Hessian-vector products over the whole data
    checks: int = 0  # passes that check derivatives on all the data; not in ``passes``
