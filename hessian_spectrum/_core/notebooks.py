"""Results that show themselves in a notebook, by the pieces that a report is made of."""

from __future__ import annotations

import importlib


class ShownInNotebooks:
    """A result with a picture and sentences in place of its ``repr`` where HTML is shown."""

    def _repr_html_(self) -> str:
        # Named, and imported on use: results lie below the reports that are made of them.
        fragment = importlib.import_module("hessian_spectrum.reporting.fragment")
        return str(fragment.of_result(self))
