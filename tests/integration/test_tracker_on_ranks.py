"""A tracker on several ranks, under DistributedDataParallel; killed and resumed."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from launching import TORCHRUN, launch
from locations import HELPERS, ROOT
from tracker_worker import main

import hessian_spectrum as hs


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_records_are_those_of_one_process(tmp_path, ranks):
    main(str(tmp_path / "alone.h5"))
    launch([*TORCHRUN, str(ranks), str(HELPERS / "tracker_worker.py"), "run.h5"], tmp_path)
    with hs.open(tmp_path / "alone.h5") as alone, hs.open(tmp_path / "run.h5") as run:
        assert sorted(alone) == sorted(run) and run.finished
        one, many = alone["track"], run["track"]
        assert one.steps.tolist() == many.steps.tolist() == [1, 5, 10]
        for name in set(one.values) - {"seconds", "products"}:
            np.testing.assert_allclose(many[name], one[name], rtol=1e-7, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(many.eigenvalues, one.eigenvalues, rtol=1e-8)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_resumed_it_gives_the_file_of_one_run(tmp_path, ranks):
    """Killed after step 10 was written, gone on after step 8."""
    launcher = [sys.executable] if ranks == 1 else [*TORCHRUN, str(ranks)]
    command = [*launcher, str(HELPERS / "tracker_worker.py")]
    launch([*command, "whole.h5"], tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [*command, "run.h5", "10", "last.pt"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert killed.returncode == (-signal.SIGKILL if ranks == 1 else 1)
    with hs.open(tmp_path / "run.h5") as run:
        assert run["track"].steps.tolist() == [1, 5, 10] and not run.finished
    launch([*command, "run.h5", "0", "last.pt"], tmp_path)
    with hs.open(tmp_path / "whole.h5") as whole, hs.open(tmp_path / "run.h5") as run:
        assert sorted(whole) == sorted(run) and run.finished
        one, two = whole["track"], run["track"]
        for name in set(one.values) - {"seconds"}:
            np.testing.assert_array_equal(two[name], one[name], err_msg=name)
        for name in ("steps", "eigenvalues", "residuals", "lowest", "lowest_residuals"):
            np.testing.assert_array_equal(getattr(two, name), getattr(one, name), err_msg=name)
        at = "density/step-000010"
        np.testing.assert_array_equal(run[at].nodes, whole[at].nodes)
