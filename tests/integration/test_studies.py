"""All studies, at the scale of a test."""

import os
import subprocess
import sys

import pytest
from locations import ROOT

from benchmarks.suite import results
from benchmarks.suite.registry import Registry


@pytest.mark.timeout(900)
def test_all_studies_run_and_their_exact_checks_hold(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["run", "all", "--scale", "test", "--out", tmp_path, "--data", tmp_path / "none"]
    command = [sys.executable, "-m", "benchmarks", *map(str, words), "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    found = results.read(tmp_path / "test")
    assert set(found) == set(Registry().names())
    for name, result in found.items():
        assert result.status == "done", (name, result.error)
        assert "holds" in {finding.verdict for finding in result.findings}, name
