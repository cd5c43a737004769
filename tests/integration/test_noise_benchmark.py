"""The benchmark of noise with and without BatchNorm runs, and says what it finds."""

import os
import subprocess
import sys

import pytest
from locations import ROOT


@pytest.mark.slow
def test_a_quick_run_measures_three_cases_and_says_what_holds(tmp_path):
    script = ROOT / "benchmarks" / "noise_and_batchnorm.py"
    words = [sys.executable, str(script), "--quick", "--out", str(tmp_path / "figure.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch   1, ") for line in lines) == 3
    assert sum(": holds, " in line or ": does not hold at this " in line for line in lines) == 5
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
