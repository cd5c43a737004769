"""The study of straight lines from start to end runs, and says what it finds."""

import json
import os
import subprocess
import sys

import pytest
from locations import ROOT

import hessian_spectrum as hs


@pytest.mark.slow
def test_a_quick_run_draws_the_line_its_zooms_and_its_control(tmp_path):
    script = ROOT / "benchmarks" / "goodfellow_et_al.py"
    words = [sys.executable, str(script), "--quick", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr

    zooms = {"line": (0, 1), "first-0.01": (0, 0.01), "last-0.01": (0.99, 1)}
    for name, (low, high) in zooms.items():
        with hs.open(tmp_path / f"ReLU-0-{name}-to-ReLU-0.h5") as run:
            curve = run["curve"]
        assert (curve.t[0], curve.t[-1], len(curve.t)) == (low, high, 20)
    # The ends of the zooms are the ends of the line: the same two networks.
    with hs.open(tmp_path / "ReLU-0-line-to-ReLU-0.h5") as run:
        assert run["curve"].loss[-1] == pytest.approx(curve.loss[-1], rel=1e-6)

    stored = json.loads((tmp_path / "findings.json").read_text())["findings"]
    assert len(stored) == 6
    assert {finding["verdict"] for finding in stored} == {"cannot be judged at this size"}
    walk = next(f["measured"] for f in stored if "10000 dimensions" in f["claim"])
    assert walk == pytest.approx(0.5, abs=0.01)  # sqrt(t (1 - t)) at t = 1/2
    assert (tmp_path / "goodfellow.png").read_bytes()[:4] == b"\x89PNG"
