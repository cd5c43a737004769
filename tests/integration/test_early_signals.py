"""A signal before the work begins: nothing is lost, and a batch system starts it again."""

import os
import signal
import subprocess
import sys
import time

import pytest
from locations import ROOT

RUN = ["density", "--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "30"]
RUN += ["--num-products", "4", "--device", "cpu", "--out", "run.h5"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

# A package that is imported on the way reports where the process is, and waits.
REACHED = """
import sys, time
class Reached:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            print("reached", flush=True)
            time.sleep({seconds})
sys.meta_path.insert(0, Reached())
sys.argv = ["hessian-spectrum", *{words!r}]
import hessian_spectrum.cli.main as cli
sys.exit(cli.main())
"""


def start(name, words, folder, seconds=60, **more):
    script = REACHED.format(name=name, words=words, seconds=seconds)
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**ENVIRONMENT, "HESSIAN_SPECTRUM_EXIT": str(folder / "code"), **more},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize(
    "name",
    [
        "hessian_spectrum.cli.dispatch",
        "tyro",
        "torch",
        "torch.nn",
        "hessian_spectrum.commands.runner",
    ],
)
def test_a_signal_while_modules_are_imported_says_that_nothing_was_begun(tmp_path, name, number):
    process = start(name, RUN, tmp_path)
    assert process.stdout.readline() == "reached\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 75
    (line,) = said.splitlines()
    assert line == (
        f"hessian-spectrum: stopped by {signal.Signals(number).name} before anything was begun; "
        "start the same command again"
    )
    assert os.listdir(tmp_path) == ["code"]
    assert (tmp_path / "code").read_text() == "75"


def test_only_the_first_rank_says_it(tmp_path):
    ranks = [
        start("torch", RUN, tmp_path, RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost")
        for rank in range(2)
    ]
    for process in ranks:
        assert process.stdout.readline() == "reached\n"
        process.terminate()
    said = [process.communicate(timeout=20)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [75, 75]
    assert len(said[0].splitlines()) == 1 and not said[1]


def test_a_signal_that_ends_a_reader_is_one_line(tmp_path):
    process = start("h5py", ["info", "run.h5"], tmp_path)
    assert process.stdout.readline() == "reached\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, len(said.splitlines())) in [(1, 1), (75, 1)], said


def test_a_signal_after_the_command_keeps_its_code(tmp_path):
    """The interpreter takes a while to end, here in a thread that it waits for."""
    script = """
import sys, threading, time
sys.argv = ["hessian-spectrum", "info", "none.h5"]
from hessian_spectrum.cli.main import main
code = main()
print("reached", flush=True)
threading.Thread(target=time.sleep, args=[60]).start()
sys.exit(code)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"reached\n"
    time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=20) == 2


@pytest.mark.slow
def test_a_signal_at_any_instant_of_a_command_ends_it_with_75(tmp_path):
    """From the first instant at which the interpreter runs our code: 0.1 s on an idle machine."""
    job = [sys.executable, "-m", "hessian_spectrum", *RUN[:-4], "--num-products", "400"]
    job += ["--batch-size", "1", "--hvp", "reverse", "--device", "cpu", "--out", "run.h5"]
    for seconds in (0.3, 0.5, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 4.0):
        process = subprocess.Popen(
            [*job, "--overwrite"], env=ENVIRONMENT, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        time.sleep(seconds)
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75, (seconds, said)
        lines = [line for line in said.splitlines() if line.startswith("hessian-spectrum:")]
        assert len(lines) == 1, (seconds, said)
