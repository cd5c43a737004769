"""How a process finds its place among others, and what it refuses."""

import pytest
import torch

import hessian_spectrum as hs
from hessian_spectrum.distributed import environment, launch, world


@pytest.mark.parametrize(
    ("text", "tasks"), [("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("1,3(x2)", [1, 3, 3]), ("", [])]
)
def test_slurms_short_form_of_tasks_is_one_number_a_node(text, tasks):
    assert environment.tasks_per_node(text) == tasks


def test_silent_singletons_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("PMIX_RANK", "0")  # an MPI launcher that mpi4py's library does not know
    monkeypatch.setattr(launch, "_join_mpi", lambda *_: launch.Seat())
    with pytest.raises(hs.InputError, match="SLURM_STEP_NUM_TASKS=4, but this process is alone"):
        world.start("cpu")


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(hs.InputError, match="device 'gpu' is not one that torch knows"):
        world.start("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(hs.InputError, match="torch sees no GPU here"):
            world.start("cuda")
