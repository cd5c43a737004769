"""In which arithmetic a measure was computed, and how wrong its products are. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field

from hessian_spectrum._core.stored_fields import stored_attribute, stored_flag


@dataclass(frozen=True)
class Arithmetic:
    """The rounding of products and vectors; what it does to answers is in rounding.py."""

    # root mean square of |E z| over unit vectors z, E the error of the products; units of the nodes
    product_error: float = field(
        metadata=stored_attribute("root mean square error of a product with a random unit vector")
    )
    # of the Krylov vectors' entries, relative
    vector_rounding: float = field(metadata=stored_attribute("rounding unit of the Krylov vectors"))
    # False: the error of products is what their rounding unit and asymmetry show
    compared_with_float64: bool = field(
        metadata=stored_flag("whether the error of products is at least that against float64")
    )
