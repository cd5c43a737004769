"""A process whose launcher's variables are wrong says so in one line, at once, with exit code 2."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from kills import free_port
from locations import ROOT

from hessian_spectrum.cli import dispatch  # noqa: F401, so that each row is quick
from hessian_spectrum.cli.main import main
from hessian_spectrum.distributed import launch

RUN = ["density", "--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "30"]
RUN += ["--num-products", "4", "--device", "cpu", "--out", "run.h5"]
LAUNCHERS = (
    "RANK",
    "LOCAL_",
    "WORLD_SIZE",
    "MASTER_",
    "PMI",
    "OMPI_",
    "MPI_",
    "SLURM_",
    "TORCHELAS",
)

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
SLURM = {
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_ID": "7",
}
SLURM |= {"SLURM_STEP_ID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "localhost"}
SLURM |= {"SLURM_TASK_PID": str(os.getpid()), "SLURM_STEP_TASKS_PER_NODE": "2"}

# What is wrong: variables (None: not set), the message.
WRONG = [
    (TORCHRUN, {"RANK": "x"}, "RANK is 'x'; expected a whole number, from 0 to 1"),
    (TORCHRUN, {"RANK": "2"}, "RANK is '2'; expected a whole number, from 0 to 1"),
    (TORCHRUN, {"RANK": "-1"}, "RANK is '-1'; expected a whole number, from 0 to 1"),
    (TORCHRUN, {"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; expected a whole number, 1 or more"),
    (TORCHRUN, {"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; expected a whole number, 1 or more"),
    (TORCHRUN, {"LOCAL_RANK": ""}, "LOCAL_RANK is ''; expected a whole number, from 0 to 1"),
    (TORCHRUN, {"LOCAL_RANK": "2"}, "LOCAL_RANK is '2'; expected a whole number, from 0 to 1"),
    # Of this rank alone: nobody else says it.
    (TORCHRUN, {"RANK": "1", "LOCAL_RANK": "z"}, "LOCAL_RANK is 'z'"),
    (TORCHRUN, {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE is '3'; expected"),
    (
        TORCHRUN,
        {"MASTER_PORT": "http"},
        "MASTER_PORT is 'http'; expected a whole number, from 1 to",
    ),
    (TORCHRUN, {"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'; expected"),
    (TORCHRUN, {"MASTER_PORT": None}, "MASTER_PORT is not set; expected"),
    (TORCHRUN, {"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
    (TORCHRUN, {"MASTER_ADDR": None}, "set MASTER_ADDR and MASTER_PORT to the host of rank 0"),
    (TORCHRUN, {"TORCHELASTIC_RESTART_COUNT": "?"}, "TORCHELASTIC_RESTART_COUNT is '?'"),
    (SLURM, {"SLURM_PROCID": "2"}, "SLURM_PROCID is '2'; expected a whole number, from 0 to 1"),
    (SLURM, {"SLURM_PROCID": "a"}, "SLURM_PROCID is 'a'"),
    (SLURM, {"SLURM_STEP_NUM_TASKS": "2(x1)"}, "SLURM_STEP_NUM_TASKS is '2(x1)'"),
    (SLURM, {"SLURM_LOCALID": None}, "SLURM_LOCALID is not set"),
    (SLURM, {"SLURM_NODEID": "n1"}, "SLURM_NODEID is 'n1'"),
    (SLURM, {"SLURM_STEP_NODELIST": None}, "SLURM_STEP_NODELIST is not set"),
    (SLURM, {"SLURM_STEP_NODELIST": "n[1-"}, "the list of nodes 'n[1-' cannot be read"),
    ({}, {"PMI_RANK": "0", "PMI_SIZE": "many"}, "PMI_SIZE is 'many'"),
    (
        {},
        {"PMI_RANK": "4", "PMI_SIZE": "4"},
        "PMI_RANK is '4'; expected a whole number, from 0 to 3",
    ),
    ({}, {"OMPI_COMM_WORLD_SIZE": "-"}, "OMPI_COMM_WORLD_SIZE is '-'"),
]


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Sets the variables of a launcher, and no others."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)

    def with_variables(*tables):
        for name, value in {key: v for table in tables for key, v in table.items()}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return with_variables


def line_of(capsys):
    said = capsys.readouterr().err.strip()
    assert said.startswith("hessian-spectrum: ") and "\n" not in said, said
    return said


@pytest.mark.parametrize("usual, wrong, message", WRONG, ids=[f"{w}" for _, w, _ in WRONG])
def test_a_wrong_environment_is_one_line_and_exit_code_2(launched, capsys, usual, wrong, message):
    launched(usual, wrong)
    before = time.monotonic()
    assert main(RUN) == 2
    assert message in line_of(capsys)
    assert time.monotonic() - before < 5
    assert not os.listdir()


@pytest.mark.parametrize("error", [ImportError("libmpi.so: no such file"), RuntimeError("no MPI")])
def test_an_mpi_library_that_is_not_there_is_one_line(launched, capsys, monkeypatch, error):
    class Nothing:
        rc = type("rc", (), {})

        def __getattr__(self, name):
            raise error

    monkeypatch.setitem(sys.modules, "mpi4py", Nothing())
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    launched({"PMI_RANK": "0", "PMI_SIZE": "2"})
    assert main(RUN) == 2
    assert f"PMI_SIZE is set, as by an MPI launcher, but mpi4py cannot be imported ({error})" in (
        line_of(capsys)
    )


def test_a_stray_world_size_or_rank_alone_changes_nothing(launched):
    launched({"RANK": "1"})
    assert launch.join(None, None) == launch.Seat()
    launched({"RANK": "0", "WORLD_SIZE": "1"})
    assert launch.join(None, None) == launch.Seat()


# -- a shell inside a step -----------------------------------------------------------------------


@pytest.mark.parametrize("task", [None, "a terminal"])
def test_the_shell_of_a_step_is_told_at_once_what_to_unset(launched, capsys, monkeypatch, task):
    """As of ``srun -n 4 --pty bash``; SLURM's programs are not called."""
    launched(SLURM, {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "4"})
    launched(
        {
            "SLURM_TASK_PID": None,
            "PMIX_RANK": "0" if task else None,
            "PATH": "/nothing",
            "SLURM_JOB_ID": f"7{os.getpid()}",
        }
    )
    job = [sys.executable, "-m", "hessian_spectrum", *RUN]
    streams = {"stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if task:  # a shell on a terminal, with job control, sees its own process number as the task's
        shell = 'export SLURM_TASK_PID=$$ SLURM_STEP_TASKS_PER_NODE="1(x4)"; set -m; "$@"; exit $?'
        job = ["/bin/bash", "-c", shell, "bash", *job]
        end, streams["stdin"] = os.openpty()
    done = subprocess.run(job, env=environment, timeout=60, **streams)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2, said
    (line,) = [line for line in said if "hessian-spectrum" in line]
    assert "SLURM_STEP_NUM_TASKS=4, but the other tasks of this step are gone" in line
    assert f"to run in it alone: unset SLURM_STEP_NUM_TASKS{' PMIX_RANK' * bool(task)}, or" in line
    launched({"SLURM_STEP_NUM_TASKS": None, "PMIX_RANK": None})
    assert launch.join(None, None) == launch.Seat()
    if task:
        os.close(end), os.close(streams["stdin"])


# -- a server that is none -----------------------------------------------------------------------


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["none", "http"])
def test_a_port_of_another_program_is_waited_for_no_longer_than_told(tmp_path, answer):
    held = []  # open, and silent

    def accept():
        while True:
            held.append(server.accept()[0])
            if answer:
                held[-1].sendall(answer)

    with socket.create_server(("127.0.0.1", free_port())) as server:
        threading.Thread(target=accept, daemon=True).start()
        place = {**TORCHRUN, "RANK": "1", "MASTER_PORT": str(server.getsockname()[1])}
        environment = {**os.environ, **place, "PYTHONPATH": str(ROOT)}
        job = [sys.executable, "-m", "hessian_spectrum", *RUN, "--timeout-minutes", "0.05"]
        done = subprocess.run(
            job, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 75, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert f"rank 0 of 2 does not answer at 127.0.0.1:{place['MASTER_PORT']}, for 3 s" in line
    assert "nothing was finished: start the same command again" in line
