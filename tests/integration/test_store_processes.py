"""Run files and locks where processes are killed, or rival each other."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
from locks import content, dead_pid

from hessian_spectrum.storage import run_file

# A process for each path that it reads, so that modules are imported once.
WRITERS = """
import os, sys, numpy as np
from hessian_spectrum.storage import run_file as store
from hessian_spectrum.spectral.measure import SpectralMeasure

def write(path):
    i = 0
    while True:
        weights, i_everywhere = np.full((4, 5_000), 1 / 5_000), np.full(5_000, float(i))
        measure = SpectralMeasure(np.arange(5_000.0), weights, 9, i_everywhere, weights[0] > 0)
        store.save(path, measure, provenance={"i": i}, overwrite=True)
        print(i, flush=True)
        i += 1

for line in sys.stdin:
    child = os.fork()
    if not child:
        write(line.strip())
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_kill_at_any_instant_leaves_a_whole_file_with_all_that_was_finished(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writers:
        for trial, delay in enumerate(np.random.default_rng(3).uniform(0, 0.05, 30)):
            path = tmp_path / f"{trial}.h5"
            print(path, file=writers.stdin, flush=True)
            lines = [writers.stdout.readline().split() for _ in range(2)]  # its number, and "0"
            child = next(int(line[1]) for line in lines if line[0] == "child")
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            said = list(iter(lambda: writers.stdout.readline().strip(), "dead"))
            finished = [0, *map(int, said)][-1]
            run = run_file.open(path)
            i = run.provenance["i"]
            assert finished <= i <= finished + 1
            assert (run["density"].residuals == i).all()
        writers.stdin.close()


RIVAL = """
import sys, time
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.storage.writer_lock import WriterLock
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    with WriterLock(sys.argv[1]) as lock:
        time.sleep(0.5)
        print("won" if lock.held else "lost")
except InputError:
    print("refused")
"""


def test_of_many_that_find_a_stale_lock_one_wins(tmp_path):
    path = tmp_path / "run.h5"
    content(path, pid=dead_pid())
    command = [sys.executable, "-c", RIVAL, str(path), str(time.time() + 1.5)]
    rivals = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    outcomes = sorted(rival.communicate()[0].strip() for rival in rivals)
    assert outcomes == ["refused"] * 5 + ["won"]
    assert not list(tmp_path.iterdir())
