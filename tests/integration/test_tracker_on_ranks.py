"""A tracker on several ranks, under DistributedDataParallel: the records of one process."""

import numpy as np
import pytest
from launching import TORCHRUN, launch
from locations import HELPERS
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
