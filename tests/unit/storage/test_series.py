"""All results of one kind in a file, on the axis of epochs."""

import numpy as np
import pytest
import torch

import hessian_spectrum as hs
from hessian_spectrum.storage import series


@pytest.fixture(scope="module")
def measure():
    matrix = torch.diag(torch.linspace(0, 1, 9, dtype=torch.float64))
    return hs.spectral_density(hs.Dense(matrix), 2, 3)


def of(measure, values):
    """The series of densities by label, with these ``values`` beside them."""
    run = {f"density/{label}": measure for label in values}
    run |= {f"values/{label}": found for label, found in values.items() if found}
    return series.of({**run, "eigenpairs/c": None}, "density")


@pytest.mark.parametrize(
    ("values", "labels", "places", "axis"),
    [
        # The stored epoch decides, and not the label.
        ({"epoch-9": {"epoch": 1}, "epoch-1": {"epoch": 20}}, "epoch-9 epoch-1", [1, 20], "epoch"),
        ({"epoch-10": {"loss": 1}, "epoch-9": {}}, "epoch-10 epoch-9", [0, 1], "index"),
        ({"a": {"epoch": 3}, "b": {}}, "a b", [0, 1], "index"),
        ({"b": {"epoch": 3}, "a": {"epoch": 3}}, "b a", [0, 1], "index"),
        # Iterates of one epoch, as a window of steps has them.
        (
            {"a": {"epoch": 3, "step": 900}, "b": {"epoch": 3, "step": 70}},
            *("b a", [70, 900], "step"),
        ),
        ({"a": {"index": 1, "step": 5}, "b": {"index": 0}}, "b a", [0, 1], "index"),
        ({"a": {"index": 1}, "b": {"index": 0}}, "b a", [0, 1], "index"),
    ],
)
def test_results_stand_at_their_stored_epochs(measure, values, labels, places, axis):
    found = of(measure, values)
    assert (" ".join(found.results), list(found.places), found.axis) == (labels, places, axis)
    assert found.keys == [f"density/{label}" for label in labels.split()]


def test_a_kind_without_results_is_an_empty_series(measure):
    assert len(series.of({"density": measure}, "curve")) == 0
    found = series.of({"density": measure, "density/late": measure}, "density")
    assert found.keys == ["density", "density/late"]
    assert np.array_equal(found.places, [0, 1])
