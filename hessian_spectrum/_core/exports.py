"""What every result can be turned into: HTML in a notebook, an xarray Dataset, a pandas table."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    import xarray

# What makes these is named, and imported on use: results lie below the reports that are made of
# them, and need neither pandas nor xarray.
FRAGMENT = "hessian_spectrum.reporting.fragment"
TABLES = "hessian_spectrum._core.labelled_arrays"


class Exported:
    """A result that shows itself in a notebook, and gives its arrays to other libraries."""

    def _repr_html_(self) -> str:
        """A picture and sentences, in place of ``repr`` where HTML is shown."""
        return str(_of(FRAGMENT).of_result(self))

    def to_xarray(self) -> xarray.Dataset:
        """The arrays by name, with named dimensions, coordinates, descriptions and units.

        Names and dimensions are those of the result file; ``attrs`` has the numbers beside them,
        such as the count ``n`` of a density. Eigenvectors are left out.

        Raises:
            InputError: xarray is not installed.
        """
        found: xarray.Dataset = _of(TABLES).to_xarray(self)
        return found

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each point, eigenvalue, record or sample size, a column for each quantity.

        Rows are the entries of the axes of ``values``, or else of the first array's first axis. An
        array that has more axes gets a column for each entry of these: ``weights_0``,
        ``weights_1``. Arrays of other axes are left out; ``to_xarray`` has them. ``attrs`` has the
        numbers beside the arrays.

        Raises:
            InputError: pandas is not installed.
        """
        found: pandas.DataFrame = _of(TABLES).to_dataframe(self)
        return found


def _of(module: str) -> Any:
    return importlib.import_module(module)
