"""How a process finds its place among others, and what it refuses."""

import os
import shutil
import subprocess

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


# The forms of SLURM's documentation.
@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7],m2", ["n1", "n2", "n3", "n7", "m2"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[001,099-101]", ["n001", "n099", "n100", "n101"]),
        ("rack[0-1]node[2,4]", ["rack0node2", "rack0node4", "rack1node2", "rack1node4"]),
        ("a-b.c[1-2],d", ["a-b.c1", "a-b.c2", "d"]),
        ("n[9-10]", ["n9", "n10"]),
    ],
)
def test_slurms_short_form_of_nodes_is_one_name_each(short, names):
    assert environment.node_names(short) == names
    if shutil.which("scontrol") and "SLURM_CONF" in os.environ:  # the oracle
        told = ["scontrol", "show", "hostnames", short]
        assert subprocess.run(told, capture_output=True, text=True).stdout.split() == names


@pytest.mark.parametrize("short", ["", "n[1", "n1]", "n[1-2-3]", "n[a-b]", "n[]", ",n1", "n1,,n2"])
def test_what_is_no_list_of_nodes_is_refused(short):
    with pytest.raises(hs.InputError, match="cannot be read"):
        environment.node_names(short)


def _in_a_group_of_its_own():
    os.setpgid(0, 0)


@pytest.mark.parametrize("own_group", [False, True])
def test_only_a_task_ends_its_step(monkeypatch, own_group):
    """What a shell with job control starts is in a process group of its own."""
    asked = []
    monkeypatch.setattr(world.subprocess, "run", lambda words, **_: asked.append(words))
    monkeypatch.setattr(world.os, "_exit", lambda code: None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    task = subprocess.Popen(
        ["sleep", "60"], preexec_fn=_in_a_group_of_its_own if own_group else None
    )
    monkeypatch.setenv("SLURM_TASK_PID", str(task.pid))
    world.leave(world.World(0, 2, launcher="slurm"), 75, silent=[1])
    task.kill()
    task.wait()
    assert asked == ([] if own_group else [["scancel", "--signal=KILL", "7.0"]])
