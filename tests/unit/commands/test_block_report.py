"""What ``density --blocks`` prints."""

import numpy as np
import pytest

import hessian_spectrum as hs
from hessian_spectrum.commands import report


def measure(scale, probes=2):
    weights = np.full((probes, 2), 0.5)
    nodes, residuals = scale * np.array([-1.0, 2.0]), scale * np.array([0.25, 0.5])
    return hs.SpectralMeasure(nodes, weights, 7, residuals, np.zeros(2, bool))


@pytest.mark.parametrize(("count", "lines"), [(3, 3), (21, 21), (22, 21), (60, 21)])
def test_ends_have_their_errors_and_no_single_block_is_left_out(count, lines):
    found = {f"block {i}": measure(i + 1.0) for i in range(count)}
    text = report.block_densities(found, {"loss": 1.0, "gradient_norm": 2.0}).splitlines()
    rows = text[2:-1]
    assert len(rows) == lines
    name, numbers = rows[0][:40].strip(), rows[0][40:].replace("(", " ").replace(")", " ").split()
    assert name == f"block {count - 1}" and numbers[0] == "7"
    smallest, within, largest, beside = map(float, numbers[1:5])
    assert (smallest, largest) == (-count, 2 * count)
    assert (within, beside) == pytest.approx((0.25 * count, 0.5 * count), rel=0.5)
    told = [row for row in rows if row.startswith("...")]
    assert told == ([f"... and {count - 20} blocks between these"] if count > 21 else [])


def test_one_probe_has_no_error_of_a_trace():
    one = report.block_densities({"a": measure(1.0, 1)}, {"loss": 1.0, "gradient_norm": 2.0})
    assert one.splitlines()[2].rstrip().endswith("nan)")
