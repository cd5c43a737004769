"""Run by test_faults.py: ranks that do not come, or are lost before all have met.

python joining_worker.py FOLDER

Ranks are forked from this process, which has imported everything: they start at the same time, so
that a wait of a second or two is long enough.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command line does

import torch.distributed as dist
from kills import ended, forked, free_port

import hessian_spectrum.commands.surfaces  # noqa: F401, all that a job imports, once
from hessian_spectrum.distributed import task_queue

PROBLEM = Path(__file__).with_name("faulty.py")
JOB = ["surface", "--problem", f"{PROBLEM}:make", "--problem-arg", "pause=0", "--x-points", "9"]
JOB += ["--y-points", "9", "--batch-size", "8", "--device", "cpu", "--timeout-minutes", "0.04"]
SIZE = 3


def end(number=signal.SIGKILL):
    return lambda *_, **__: os.kill(os.getpid(), number)


GROUP, TASK = (dist, "init_process_group"), (task_queue.Handout, "next")
CASES = {  # the ranks that come, and where one of them ends, and how
    "1 never comes": ((0, 2), None, {}),
    "0 never comes": ((1, 2), None, {}),
    "only 2 comes": ((2,), None, {}),
    "1 is killed": ((0, 1, 2), GROUP, {1: end()}),
    "0 is killed": ((0, 1, 2), GROUP, {0: end()}),
    "2 is frozen": ((0, 1, 2), GROUP, {2: end(signal.SIGSTOP)}),
    "0 is killed at its first task": ((0, 1, 2), TASK, {0: end()}),
}


def start(folder, name, ranks, where, instead):
    port, jobs = free_port(), {}
    os.environ["HESSIAN_SPECTRUM_EXIT"] = str(folder / f"{name}.code")
    words = [*JOB, "--out", str(folder / f"{name}.h5")]
    for rank in ranks:
        usual = getattr(*where) if where else None
        if rank in instead:
            setattr(*where, instead[rank])
        jobs[rank] = forked(words, rank, SIZE, port, folder / f"{name}.log")
        if where:
            setattr(*where, usual)
    return jobs


def became(folder, name, jobs, lost, before):
    codes = ended([job for rank, job in jobs.items() if rank not in lost], 60)
    seconds = time.monotonic() - before
    ended([jobs[rank] for rank in lost], 0)
    said, code = ((folder / f"{name}.{what}").read_text() for what in ("log", "code"))
    return {"codes": codes, "said": said, "seconds": seconds, "code": code}


def main():
    folder, before = Path(sys.argv[1]), time.monotonic()
    jobs = {name: start(folder, name, *case) for name, case in CASES.items()}
    found = {name: became(folder, name, jobs[name], CASES[name][2], before) for name in CASES}
    (folder / "joining.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
