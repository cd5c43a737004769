"""Results are read, queried and drawn in processes that do not import torch."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from alignment_problems import N, eigenpairs, evaluator
from dense_oracles import dense_hessian
from landscape_results import results_of_all_analyses
from locations import ROOT
from small_networks import data
from torch.nn import functional as F

import hessian_spectrum as hs


@pytest.mark.parametrize("module", ["spectral.measure", "storage.run_file", "plotting.density"])
def test_results_are_read_queried_and_drawn_without_torch(module):
    code = (
        f"import sys, hessian_spectrum.{module}; "
        "bad = {'torch', 'matplotlib.pyplot'} & set(sys.modules); sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_files_are_read_where_torch_is_not_installed(tmp_path):
    results = results_of_all_analyses()
    path = tmp_path / "run.h5"
    hs.save(path, **results)
    code = f"""
import sys
sys.modules["torch"] = None
import hessian_spectrum as hs
with hs.open({str(path)!r}) as run:
    print(run["surface"].minimum().value, run["curve"].barrier(), run["trajectory"].length)
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    surface, curve, trajectory = (float(word) for word in done.stdout.split())
    assert surface == results["surface"].minimum().value
    assert (curve, trajectory) == (results["curve"].barrier(), results["trajectory"].length)


def test_it_is_stored_and_read_without_torch(tmp_path):
    ev = evaluator()
    x, y = data(N)
    pairs = eigenpairs(dense_hessian(ev.model, lambda m: F.cross_entropy(m(x), y)), 2)
    for options in ({"pairs": pairs}, {}):
        found = hs.alignment(ev, (2, "full"), 3, **options)
        hs.save(tmp_path / "run.h5", found, late=found, overwrite=True)
        code = (
            "import sys, hessian_spectrum as hs; run = hs.open(sys.argv[1]);"
            "print(run['alignment'].mean(), run['alignment/late'].share.shape);"
            "assert 'torch' not in sys.modules"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "run.h5")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        assert f"{found.mean()} (2, 3)" in subprocess.check_output(
            command, text=True, env=environment
        )
        with hs.open(tmp_path / "run.h5") as run:
            again = run["alignment"]
        for field in dataclasses.fields(hs.Alignment):
            np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
