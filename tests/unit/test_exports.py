"""Results as xarray Datasets and as pandas tables, every kind that a file can hold."""

import dataclasses
import sys

import numpy as np
import pytest
from locations import ROOT

import hessian_spectrum as hs
from hessian_spectrum.landscape.results import Curve, MatchedLines, Surface

GOLDEN = sorted((ROOT / "tests" / "golden" / "schema1").glob("*.h5"))


def stored_results():
    for path in GOLDEN:
        with hs.open(path) as run:
            for key in run:
                if dataclasses.is_dataclass(run[key]) and hasattr(run[key], "to_xarray"):
                    yield pytest.param(run[key], id=f"{path.stem}-{key}")


STORED = list(stored_results())


def test_every_kind_is_looked_at():
    kinds = {type(param.values[0]).__name__ for param in STORED}
    assert kinds >= {"SpectralMeasure", "EigenPairs", "Alignment", "Curve", "Surface", "Trajectory"}


@pytest.mark.parametrize("result", STORED)
def test_a_dataset_has_the_arrays_under_the_names_of_the_file(result):
    dataset = result.to_xarray()
    values = dict(getattr(result, "values", {})) if isinstance(result, Curve | Surface) else {}
    assert set(values) <= set(dataset)
    for name in dataset.variables:
        expected = values[name] if name in values else getattr(result, "values", {})
        if name not in values:
            is_field = hasattr(result, name) and not isinstance(getattr(result, name), type(None))
            expected = getattr(result, name) if is_field else expected[name]
        found = dataset[name].values
        part = found[tuple(map(slice, np.shape(expected)))]
        assert np.array_equal(part, expected, equal_nan=part.dtype.kind == "f"), name
        assert dataset[name].attrs["description"]


@pytest.mark.parametrize("result", STORED)
def test_a_table_has_each_entry_in_its_row(result):
    table, dataset = result.to_dataframe(), result.to_xarray()
    plain = [name for name in table.columns if name in dataset.variables]
    assert plain
    for name in plain:
        entries = dataset[name].values
        if entries.size == len(table):
            assert np.array_equal(table[name], entries.ravel(), equal_nan=entries.dtype.kind == "f")


def test_the_table_of_a_surface_has_a_row_for_each_point():
    a, b = np.array([0.0, 1.0]), np.array([-1.0, 0.0, 2.0])
    loss = np.arange(6.0).reshape(2, 3)
    table = Surface(a, b, {"loss": loss}).to_dataframe()
    assert list(table.columns) == ["a", "b", "loss"]
    assert table["a"].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert table["b"].tolist() == [-1.0, 0.0, 2.0] * 2
    assert table["loss"].tolist() == loss.ravel().tolist()
    assert table.loc[table["loss"].idxmin(), "b"] == -1.0


def test_probes_are_columns_and_have_coordinates():
    measure = hs.SpectralMeasure(
        np.array([0.0, 1.0, 3.0]),
        np.array([[0.5, 0.25, 0.25], [0.6, 0.2, 0.2]]),
        8,
        np.zeros(3),
        np.zeros(3, bool),
    )
    table = measure.to_dataframe()
    assert table.attrs == measure.to_xarray().attrs
    assert (table.attrs["kind"], table.attrs["n"]) == ("SpectralMeasure", 8)
    assert len(table) == 3 and table["weights_1"].tolist() == [0.6, 0.2, 0.2]
    dataset = measure.to_xarray()
    assert dataset["weights"].dims == ("probe", "node") and dataset["nodes"].dims == ("node",)
    assert "nodes" in dataset.coords and dataset["nodes"].attrs["units"] == "eigenvalue"
    assert float((dataset["weights"].mean("probe") * dataset["nodes"]).sum()) == pytest.approx(
        measure.moment(1)
    )


def test_what_cannot_be_one_table_says_what_to_take():
    line = Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), {"loss": np.zeros(2)})
    with pytest.raises(hs.InputError, match=r"holds several results; .* by_key\(\)\['curve/"):
        MatchedLines(line, line).to_xarray()


@pytest.mark.parametrize(
    ("library", "method"), [("pandas", "to_dataframe"), ("xarray", "to_xarray")]
)
def test_a_missing_library_is_named(library, method, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(hs.InputError, match=rf"{method}\(\) needs {library}; pip install"):
        getattr(STORED[0].values[0], method)()
