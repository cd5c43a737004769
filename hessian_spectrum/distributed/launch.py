"""How the ranks of a job find each other: by torchrun, MPI or SLURM, and within a stated time."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.environment import node_names, number, tasks_per_node, text
from hessian_spectrum.distributed.liveness import LISTEN, RankLost, answer_within
from hessian_spectrum.distributed.slurm_step import is_typed_into_a_shell

# What launchers say about the number of processes they started, whether or not we use them.
SIZE_HINTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
MPI_HINTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "MPI_LOCALNRANKS")
RANK_HINTS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


@dataclass(frozen=True)
class Seat:
    """This process's place in its job, and the store through which the ranks meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "alone"
    store: dist.Store | None = None
    keeper: int | None = None  # the rank whose process serves the store; None: another process

    def store_for(self, purpose: str) -> dist.PrefixStore:
        """The ranks' store with key names of its own for this purpose. Needs several ranks."""
        assert self.store is not None, "a process alone has no store"
        return dist.PrefixStore(purpose, self.store)


class NotMet(RankLost):
    """Not all ranks of the job joined in time.

    Args:
        seat: this process's place, as far as it is known.
        missing: the ranks that are known to be absent.
    """

    def __init__(self, said: str, seat: Seat, missing: tuple[int, ...] = ()):
        super().__init__(said)
        self.seat, self.missing = seat, missing


def join(timeout: timedelta, give_up: Callable[[NotMet], None]) -> Seat:
    """Find the job that this process was launched in; without a launcher it is alone.

    Args:
        timeout: how long to wait for another rank.
        give_up: called in a thread, and must not return, if the wait is inside the MPI library.

    Raises:
        InputError: the launcher's variables are wrong, or it started several processes that do not
            know of each other.
        NotMet: the process through which the ranks meet does not answer.
    """
    env, seat = os.environ, Seat()
    if "RANK" in env and "WORLD_SIZE" in env and "MASTER_ADDR" in env:
        return _join_torchrun(timeout)
    tasks = number("SLURM_STEP_NUM_TASKS", 1, default=1) if "SLURM_PROCID" in env else 1
    if tasks > 1 and is_typed_into_a_shell():
        set_by_srun = " ".join(["SLURM_STEP_NUM_TASKS", *(h for h in MPI_HINTS if h in env)])
        raise InputError(
            f"SLURM_STEP_NUM_TASKS={tasks}, but the other tasks of this step are gone: this is the "
            f"shell of one, as of srun --pty; to run in it alone: unset {set_by_srun}, or start "
            "the shell with srun -n 1; to run on several ranks, use torchrun or mpirun in it, or "
            "srun in the job itself"
        )
    if any(hint in env for hint in MPI_HINTS):
        seat = _join_mpi(timeout, give_up)
    elif tasks > 1:
        return _join_slurm(timeout)
    elif "RANK" in env and number("WORLD_SIZE", 1, default=1) > 1:
        raise InputError(
            f"RANK={env['RANK']} and WORLD_SIZE={env['WORLD_SIZE']} are set, but not MASTER_ADDR: "
            "set MASTER_ADDR and MASTER_PORT to the host of rank 0 and a free port there, as "
            "torchrun does, or unset RANK and WORLD_SIZE to run in one process"
        )
    _refuse_singletons(seat.size)
    return seat


def roll_call(seat: Seat, timeout: timedelta) -> None:
    """Wait until every rank has joined.

    Raises:
        NotMet: some ranks did not join in time; the message names them.
        RankLost: the rank that serves the store was lost.
    """
    try:
        missing = answer_within(timeout.total_seconds() + LISTEN, _missing, seat, timeout)
    except (RuntimeError, TimeoutError) as error:
        raise RankLost(f"the ranks' store failed ({_line(error)})") from None
    if missing:
        raise NotMet(_who(missing, seat.size, timeout), seat, missing)


def _missing(seat: Seat, timeout: timedelta) -> tuple[int, ...]:
    store, size = seat.store_for("roll"), seat.size
    store.set(f"here/{seat.rank}", "yes")
    if store.add("number", 1) == size:
        store.set("all", "yes")
    with suppress(dist.DistStoreError):  # timed out
        store.wait(["all"], timeout)
    return tuple(rank for rank in range(size) if not store.check([f"here/{rank}"]))


def words(timeout: timedelta) -> str:
    seconds = timeout.total_seconds()
    return f"{seconds / 60:.3g} minutes" if seconds >= 120 else f"{seconds:.3g} s"


def _who(missing: tuple[int, ...], size: int, timeout: timedelta) -> str:
    several = len(missing) > 1
    which = f"ranks {', '.join(map(str, missing))}" if several else f"rank {missing[0]}"
    return (
        f"{which} of {size} {'have' if several else 'has'} not come within {words(timeout)}: "
        "killed, never started, or on a node that is lost (see --timeout-minutes)"
    )


def _store(host: str, port: int, seat: Seat, serves: bool, timeout: timedelta) -> dist.TCPStore:
    """The store at that address; ``seat`` says which rank serves it."""
    deadline = time.monotonic() + timeout.total_seconds()
    try:
        if not serves:
            _await(host, port, timeout)
        # A server that is no store may stay silent, and torch would wait for it for ever.
        return answer_within(
            max(1.0, deadline - time.monotonic()),
            lambda: dist.TCPStore(
                host,
                port,
                seat.size,
                serves,
                timeout,
                wait_for_workers=False,
                # An earlier job in this process may hold it.
                multi_tenant=seat.launcher == "torchrun",
            ),
        )
    except (OSError, RuntimeError) as error:  # a TimeoutError is an OSError
        if serves:
            raise OSError(f"cannot serve the ranks at {host}:{port} ({_line(error)})") from None
        who = "torchrun" if seat.keeper is None else f"rank {seat.keeper} of {seat.size}"
        raise NotMet(
            f"{who} does not answer at {host}:{port}, for {words(timeout)} ({_line(error)}): "
            "killed, never started, on a node that cannot be reached, or another program's port "
            "(see --timeout-minutes)",
            seat,
            () if seat.keeper is None else (seat.keeper,),
        ) from None


def _await(host: str, port: int, timeout: timedelta) -> None:
    """Wait until a server listens there; OSError after ``timeout``.

    Not by torch's own wait, which prints its stack.
    """
    deadline, pause = time.monotonic() + timeout.total_seconds(), 0.01
    while True:
        try:
            left = max(0.1, deadline - time.monotonic())
            socket.create_connection((host, port), timeout=left).close()
            return
        except OSError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 1.0)


def _line(error: Exception) -> str:
    """The first line of its text, without torch's source location."""
    lines = str(error).splitlines() or [type(error).__name__]
    return re.sub(r"^\[[^]]*\] ", "", lines[0])


# -- launchers -----------------------------------------------------------------------------------


def _join_torchrun(timeout: timedelta) -> Seat:
    env = os.environ
    size = number("WORLD_SIZE", 1)
    rank, local_size = number("RANK", 0, size - 1), number("LOCAL_WORLD_SIZE", 1, size, size)
    local = number("LOCAL_RANK", 0, local_size - 1, rank % local_size), local_size
    if size == 1:
        return Seat(rank, size, *local, "torchrun")
    # torchrun's own process may keep the store over restarts, with the addresses of the dead.
    keeper = None if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0
    seat = Seat(rank, size, *local, "torchrun", None, keeper)
    host, port = text("MASTER_ADDR"), number("MASTER_PORT", 1, 65535)
    restarts = number("TORCHELASTIC_RESTART_COUNT", 0, default=0)
    store = _store(host, port, seat, rank == keeper, timeout)
    attempt = dist.PrefixStore(f"attempt-{restarts}", store)
    return Seat(rank, size, *local, "torchrun", attempt, keeper)


def _join_mpi(timeout: timedelta, give_up: Callable[[NotMet], None]) -> Seat:
    with _watched(timeout, give_up):
        comm = _world()
        rank, size = comm.Get_rank(), comm.Get_size()
        from mpi4py import MPI

        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        local = node.Get_rank(), node.Get_size()
        if size == 1:
            return Seat(rank, size, *local)
        seat, store, host = Seat(rank, size, *local, "mpi", None, 0), None, MPI.Get_processor_name()
        if rank == 0:  # port 0 lets the system choose: no race between jobs for a fixed port
            store = _store(host, 0, seat, True, timeout)
        host, port = comm.bcast((host, store.port) if store else None)
    store = store or _store(host, port, seat, False, timeout)
    return Seat(rank, size, *local, "mpi", store, 0)


def _world():
    """MPI.COMM_WORLD.

    MPI is initialized by ctypes, so that other threads run meanwhile: mpi4py's own initialization
    holds the interpreter lock.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # a RuntimeError: it finds no library
        hint = next(hint for hint in MPI_HINTS if hint in os.environ)
        raise InputError(
            f"{hint} is set, as by an MPI launcher, but mpi4py cannot be imported "
            f"({_line(error)}): load or install the launcher's MPI library (pip install mpich), "
            "or start with torchrun, or with srun --mpi=none"
        ) from None

    if not MPI.Is_initialized():
        start = getattr(ctypes.CDLL(MPI.__file__), "MPI_Init_thread", None)
        if start is None:  # mpi4py finds its library in another way
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
        else:
            start(None, None, MPI.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
    return MPI.COMM_WORLD


@contextmanager
def _watched(timeout: timedelta, give_up: Callable[[NotMet], None]) -> Iterator[None]:
    """Call ``give_up`` after ``timeout``: MPI itself waits forever for an absent rank."""
    size = next((number(h, 1) for h in SIZE_HINTS if h in os.environ), 0)
    rank = next(
        (number(h, 0, size - 1 if size else None) for h in RANK_HINTS if h in os.environ), 0
    )
    seat = Seat(rank, size, launcher="mpi")
    said = (
        f"the {size or ''} ranks have not met in MPI within {words(timeout)}: one was killed, "
        "never started, or is on a node that is lost (see --timeout-minutes)"
    )
    timer = threading.Timer(timeout.total_seconds(), lambda: give_up(NotMet(said, seat)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _join_slurm(timeout: timedelta) -> Seat:
    env = os.environ
    host = node_names(text("SLURM_STEP_NODELIST"))[0]
    reserved = re.match(r"\d+", env.get("SLURM_STEP_RESV_PORTS", ""))
    job = f"{env.get('SLURM_JOB_ID')}.{env.get('SLURM_STEP_ID')}".encode()
    port = int(reserved[0]) if reserved else 20000 + zlib.crc32(job) % 20000
    size = number("SLURM_STEP_NUM_TASKS", 1)
    rank, local_rank = number("SLURM_PROCID", 0, size - 1), number("SLURM_LOCALID", 0, size - 1)
    tasks = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = number("SLURM_NODEID", 0)
    local_size = tasks[node] if node < len(tasks) else local_rank + 1
    # Rank 0 may be on another node than the first of the list: the store lives on the first.
    serves = node == 0 and local_rank == 0
    seat = Seat(rank, size, local_rank, local_size, "slurm", None, 0)
    store = _store(host, port, seat, serves, timeout)
    if serves:
        store.set("keeper", str(rank))
    try:
        silence = timeout.total_seconds() + LISTEN
        keeper = int(answer_within(silence, store.get, "keeper"))
    except (RuntimeError, TimeoutError):
        raise NotMet(_who((0,), size, timeout), seat, (0,)) from None
    return Seat(rank, size, local_rank, local_size, "slurm", store, keeper)


def _refuse_singletons(size: int) -> None:
    for hint in SIZE_HINTS:
        started = number(hint, 1, default=1)
        if size == 1 and started > 1:
            raise InputError(
                f"{hint}={started}, but this process is alone in its world: {started} copies "
                "would write the same file; start with mpirun or torchrun, or use an srun --mpi "
                "plugin that fits the MPI library"
            )
