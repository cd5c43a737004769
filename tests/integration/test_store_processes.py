"""Run files and locks where processes are killed, or rival each other."""

import signal
import subprocess
import sys
import time

import numpy as np
from locks import content, dead_pid

from hessian_spectrum.storage import run_file

WRITER = """
import sys, numpy as np
from hessian_spectrum.storage import run_file as store
from hessian_spectrum.spectral.measure import SpectralMeasure
i = 0
while True:
    weights, i_everywhere = np.full((4, 20_000), 1 / 20_000), np.full(20_000, float(i))
    measure = SpectralMeasure(np.arange(20_000.0), weights, 9, i_everywhere, weights[0] > 0)
    store.save(sys.argv[1], measure, provenance={"i": i}, overwrite=True)
    print(i, flush=True)
    i += 1
"""


def test_kill_at_any_instant_leaves_a_whole_file_with_all_that_was_finished(tmp_path):
    delays = np.random.default_rng(3).uniform(0, 0.05, 10)
    for trial, delay in enumerate(delays):
        path = tmp_path / f"{trial}.h5"
        command = [sys.executable, "-c", WRITER, str(path)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        finished = [0, *map(int, writer.communicate()[0].split())][-1]
        run = run_file.open(path)
        i = run.provenance["i"]
        assert finished <= i <= finished + 1
        assert (run["density"].residuals == i).all()


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
