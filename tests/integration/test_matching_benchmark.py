"""The benchmark of matched networks runs, and says what it finds."""

import json
import os
import subprocess
import sys

import pytest
from locations import ROOT

import hessian_spectrum as hs


@pytest.mark.slow
def test_a_quick_run_judges_nothing_and_goes_on_where_it_was(tmp_path):
    out = tmp_path / "matching"
    words = [sys.executable, str(ROOT / "benchmarks" / "matching.py"), "--quick", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert (out / "matching.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((out / "findings.json").read_text())["findings"]
    assert {finding["verdict"] for finding in found} == {"cannot be judged at this size"}
    with hs.open(out / "width-1-weights.h5") as run:
        lines = hs.MatchedLines.of(run)
    ratio = lines.after.barrier() / lines.before.barrier()
    (ours,) = [f for f in found if "width 1, barrier of the loss matched by weights" in f["claim"]]
    assert ours["measured"] == pytest.approx(ratio)
    assert ratio < 0.9
    written = {path: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    again = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    said, before = (
        [line for line in text.splitlines() if line.startswith(("width", "barrier of"))]
        for text in (again.stdout, done.stdout)
    )
    assert said == before != []
    assert written == {path: path.stat().st_mtime_ns for path in out.glob("*.h5")}
