"""Kills running jobs at random instants, resumes them, and prints a table of what became of them.

python tests/helpers/kills.py --kills 50          # a table; exit code 1 if a line is not perfect
python tests/helpers/kills.py --kinds density --kills 5 --seconds 3

A job is some processes with one process group, forked from this one so that they start at once.
One of them is killed (SIGKILL): at a random instant, or, every other time, as soon as a random
file is being written. The others must end by themselves. Then the result file must open, the same
command with --resume must finish, on one process, and give the numbers of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hessian_spectrum as hs
import hessian_spectrum.cli.dispatch
import hessian_spectrum.commands.density
import hessian_spectrum.commands.eigenpairs
import hessian_spectrum.commands.surfaces  # all that a job imports, once
import hessian_spectrum.zoo.problem_loader
from hessian_spectrum.cli.main import main

PROBLEM = Path(__file__).with_name("faulty.py")
COMMON = ["--problem", f"{PROBLEM}:make", "--batch-size", "8"]
COMMON += ["--checkpoint-minutes", "0", "--timeout-minutes", "1", "--device", "cpu"]
# Seconds in which the others end: a minute (--timeout-minutes), and of many points another one, of
# listening for a group that is lost; on a machine with other work to do.
LEFT = 240
HANGS = signal.SIGUSR2  # a job that still runs when it should have ended says where
TOLERANCE = 1e-9  # relative to the largest entry: the resumed run has another number of ranks


def density(run: hs.Run) -> np.ndarray:
    t = np.linspace(-1, 1, 400)
    return run["density"].density(t, 1e-3)


@dataclass(frozen=True)
class Kind:
    words: tuple[str, ...]
    numbers: Callable  # what must be the same, of an open run
    passes: int  # over a rank's data in one run, roughly: what a pause is multiplied by


KINDS = {
    "density": Kind(
        ("density", "--num-probes", "3", "--num-steps", "16", "--hvp", "forward"), density, 50
    ),
    "eigenpairs": Kind(
        ("eigenpairs", "--k", "3", "--which", "largest", "--tol", "1e-11", "--hvp", "forward"),
        lambda run: run["eigenpairs"].values,
        100,
    ),
    "surface": Kind(
        ("surface", "--x-points", "41", "--y-points", "31"), lambda run: run["surface"].loss, 500
    ),
}


@dataclass
class Trial:
    """What became of one job."""

    how: str  # "instant" or "commit"
    seconds: float  # until it was killed
    killed: bool  # and not finished before
    saved: bool  # something was there to go on from
    readable: bool
    resumed: bool
    error: float  # of the resumed run, relative


def forked(words: list[str], rank: int, size: int, port: int, log: Path) -> int:
    """The process number of one rank, which runs the command line and ends."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        faulthandler.register(HANGS, file=2)
        if size > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        code = main(words)
    finally:
        os._exit(code)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(words: list[str], size: int, log: Path) -> list[int]:
    port = free_port()
    return [forked(words, rank, size, port, log) for rank in range(size)]


def code_of(number: int) -> int | None:
    """Its exit code, or None while it runs."""
    found, status = os.waitpid(number, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def code_of_any(numbers: list[int]) -> int | None:
    """0 where one has ended, without taking its exit code away; None while all run."""
    for number in numbers:
        if os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return 0
    return None


def ended(numbers: list[int], within: float) -> list[int | None]:
    """Exit codes; what still runs then is killed, and has none."""
    deadline, codes = time.monotonic() + within, dict.fromkeys(numbers)
    while None in codes.values() and time.monotonic() < deadline:
        for number in (n for n, code in codes.items() if code is None):
            codes[number] = code_of(number)
        time.sleep(0.02)
    late = [number for number, code in codes.items() if code is None]
    for number in late:
        os.kill(number, HANGS)
    time.sleep(0.5 if late and within else 0)
    for number in late:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
    return list(codes.values())


def words_of(kind: Kind, out: Path, pause: float) -> list[str]:
    """The command line; the pause is for the processes that are forked next."""
    os.environ["PAUSE"] = str(pause)  # a resumed run must be given the same words
    return [*kind.words, *COMMON, "--problem-arg", "quick=40", "--resume", "--out", str(out)]


def written(out: Path) -> list[Path]:
    """Files that are half written at this instant."""
    return [*out.parent.glob(f".{out.name}.*.tmp"), *Path(f"{out}.d").glob("*.tmp")]


def trial(kind: Kind, expected, folder: Path, args, dice: random.Random, number: int) -> Trial:
    out, log = folder / f"{number}.h5", folder / f"{number}.log"
    pause = args.seconds / kind.passes
    jobs = start(words_of(kind, out, pause), args.ranks, log)
    manifest = Path(f"{out}.d") / "manifest.json"
    while not manifest.exists() and not out.exists() and code_of_any(jobs) is None:
        time.sleep(0.001)  # before that there is nothing to lose
    before, how = time.monotonic(), "commit" if number % 2 else "instant"
    wait = dice.uniform(0.0, 0.8) * args.seconds
    while time.monotonic() - before < wait:
        time.sleep(0.001)
    while how == "commit" and not written(out) and code_of_any(jobs) is None:
        pass  # a file is there for a millisecond
    seconds, victim = time.monotonic() - before, dice.randrange(args.ranks)
    alive = code_of(jobs[victim]) is None
    with suppress(ProcessLookupError):
        os.kill(jobs[victim], signal.SIGKILL)
    others = ended([job for i, job in enumerate(jobs) if i != victim], LEFT)
    if alive:
        os.waitpid(jobs[victim], 0)
    saved, readable = Path(f"{out}.d").exists() or out.exists(), True
    if out.exists():
        with suppress(Exception):
            readable = False
            with hs.open(out) as run:
                readable = bool(run.config)
    finished = out.exists() and readable and is_finished(out)
    codes = [0] if finished else ended(start(words_of(kind, out, 0), 1, log), LEFT)
    error = np.inf
    with suppress(Exception), hs.open(out) as run:
        found = kind.numbers(run)
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
    left_in_time = None not in others
    return Trial(how, seconds, alive, saved, readable, codes == [0] and left_in_time, error)


def is_finished(out: Path) -> bool:
    with hs.open(out) as run:
        return run.finished


def straight(kind: Kind, folder: Path):
    """The uninterrupted run's numbers, and how long it takes on one process without pauses."""
    out = folder / "straight.h5"
    codes = ended(start(words_of(kind, out, 0), 1, folder / "straight.log"), 300)
    assert codes == [0], (folder / "straight.log").read_text()
    with hs.open(out) as run:
        return kind.numbers(run)


def row(name: str, trials: list[Trial]) -> str:
    same = sum(t.error <= TOLERANCE for t in trials)
    counts = [
        len(trials),
        sum(t.killed for t in trials),
        sum(t.how == "commit" for t in trials),
        sum(t.saved for t in trials),
        sum(t.readable for t in trials),
        sum(t.resumed for t in trials),
        same,
    ]
    worst = max((t.error for t in trials), default=0.0)
    return f"{name:12}" + "".join(f"{count:>10}" for count in counts) + f"{worst:>10.0e}"


HEAD = (
    "job",
    "kills",
    "running",
    "in commit",
    "had state",
    "readable",
    "resumed",
    "equal",
    "worst",
)


def run(args: argparse.Namespace) -> bool:
    warnings.simplefilter("ignore")
    perfect = True
    print(f"{HEAD[0]:12}" + "".join(f"{word:>10}" for word in HEAD[1:]), flush=True)
    for name in args.kinds:
        kind, dice = KINDS[name], random.Random(args.seed)
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            expected = straight(kind, Path(folder))
            trials: list[Trial] = []
            with suppress(KeyboardInterrupt):  # the table of those so far
                for number in range(args.kills):
                    trials.append(trial(kind, expected, Path(folder), args, dice, number))
                    perfect &= is_perfect(trials[-1])
                    if not is_perfect(trials[-1]):
                        log = (Path(folder) / f"{number}.log").read_text()
                        print(trials[-1], log[-3000:], flush=True)
            print(row(name, trials), flush=True)
    return perfect


def is_perfect(trial: Trial) -> bool:
    return trial.readable and trial.resumed and trial.error <= TOLERANCE


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in a shell's background
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--kills", type=int, default=50, help="of each kind")
    parser.add_argument("--seconds", type=float, default=10.0, help="of an uninterrupted job")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(0 if run(parser.parse_args()) else 1)
