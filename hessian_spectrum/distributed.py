"""Who am I: rank, world size and device, and every collective that the package uses.

One process is the plain case: ``World()`` needs no process group, and its collectives return
what they are given.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hessian_spectrum.errors import InputError
from hessian_spectrum.presence import Presence

TIMEOUT = timedelta(minutes=10)  # a rank that is silent for longer is taken for dead

# What launchers say about the number of processes they started, whether or not we use them.
SIZE_HINTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
MPI_HINTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "MPI_LOCALNRANKS")

# torch 2.13 renames two collectives and warns about the old names, the only ones in 2.11.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class RankLost(RuntimeError):
    """A collective failed: another rank has died, hangs, or has left with an error of its own."""


@dataclass(frozen=True)
class World:
    """This process among its peers. Collectives must be called by every rank, in one order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str = "alone"  # "alone", "torchrun", "mpi", "slurm" or "torch.distributed"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    local_size: int = 1  # ranks on this node, which share its memory
    presence: Presence | None = field(default=None, compare=False, repr=False)
    group: Any = None  # the process group of its collectives; None: the default one

    @classmethod
    def current(cls) -> World:
        """The world of the default process group if there is one, else this process alone."""
        if not dist.is_initialized():
            return cls(device=resolve_device(None))
        rank, size = dist.get_rank(), dist.get_world_size()
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        # Whoever started the group has chosen each rank's GPU.
        gpu = dist.get_backend() != "gloo" and torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        return cls(rank, size, local_rank, "torch.distributed", device, local_size)

    # -- collectives -----------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place; the same bits on every rank."""
        if self.size > 1:
            _call(dist.all_reduce, tensor, group=self.group)
        return tensor

    def sum_together(self, *tensors: Tensor) -> list[Tensor]:
        """The sum over ranks of each, in float64 on the CPU: one small reduction for all."""
        flat = torch.cat([t.to(self.device, torch.float64).reshape(-1) for t in tensors])
        parts = self.sum(flat).cpu().split([t.numel() for t in tensors])
        return [part.view(t.shape) for part, t in zip(parts, tensors)]

    def all_gather_rows(self, shards: Tensor) -> Tensor:
        """(k, c) on each rank -> (k, size * c), the ranks' columns side by side."""
        if self.size == 1:
            return shards
        k, c = shards.shape
        gathered = shards.new_empty(self.size * k, c)
        _call(_all_gather, gathered, shards.contiguous(), group=self.group)
        return gathered.view(self.size, k, c).transpose(0, 1).reshape(k, self.size * c)

    def reduce_scatter_rows(self, rows: Tensor) -> Tensor:
        """(k, size * c), summed over ranks -> this rank's columns, (k, c)."""
        if self.size == 1:
            return rows
        k, c = rows.shape[0], rows.shape[1] // self.size
        by_rank = rows.view(k, self.size, c).transpose(0, 1).reshape(self.size * k, c)
        share = rows.new_empty(k, c)
        _call(_reduce_scatter, share, by_rank, group=self.group)
        return share

    def gather_objects(self, value: Any) -> list:
        """Every rank's small Python value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        _call(dist.all_gather_object, values, value, group=self.group)
        return values

    def any(self, flag: bool) -> bool:
        """True on every rank if it is on one."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def barrier(self) -> None:
        if self.size > 1:
            _call(dist.barrier, group=self.group)

    def raise_together(self, error: Exception | None) -> None:
        """Raise on every rank the first error that any rank brings; nothing if none does.

        A rank that raised alone would leave its peers waiting in the next collective.
        """
        errors = self.gather_objects(None if error is None else _portable(error))
        first = next((rank for rank, e in enumerate(errors) if e is not None), None)
        if first is None:
            return
        if error is not None and (all(errors) or self.size == 1):
            raise error
        kind, text = errors[first]
        raise kind(f"rank {first} of {self.size}: {text}") from error


class Flags:
    """Yes-no questions that each rank answers for itself, and all hear of together.

    The answers travel with a reduction that is made anyway, so that asking costs nothing.

    Args:
        *questions: called on each rank when the answers leave.
    """

    def __init__(self, *questions: Callable[[], bool]):
        self._questions = questions
        self.heard = [False] * len(questions)  # for each: has any rank said yes?

    def answers(self) -> Tensor:
        """This rank's answers, to be summed over ranks."""
        return torch.tensor([float(question()) for question in self._questions])

    def hear(self, counts: Tensor) -> None:
        self.heard = [count > 0 for count in counts.tolist()]


def start(device: str | None = None, timeout: timedelta = TIMEOUT) -> World:
    """Join the job that this process was launched in: torchrun, mpirun, srun, or none.

    Args:
        device: "cpu", "cuda" or "cuda:1"; default: a GPU if there is one.
        timeout: how long a collective waits for a silent rank before it fails.

    Raises:
        InputError: the launcher started several processes that do not know of each other
            (they would all be rank 0 and write the same file), or more ranks than GPUs.
    """
    if dist.is_initialized():
        return World.current()
    env = os.environ
    rank, size, local_rank, local_size, launcher, store = 0, 1, 0, 1, "alone", None
    keeper = None
    if "RANK" in env and "WORLD_SIZE" in env and "MASTER_ADDR" in env:
        launcher = "torchrun"
        rank, size, local_rank, local_size, store, keeper = _join_torchrun(timeout)
    elif any(hint in env for hint in MPI_HINTS):
        rank, size, local_rank, local_size, store = _join_mpi(timeout)
        launcher, keeper = ("mpi" if size > 1 else "alone"), 0
    if size == 1 and launcher == "alone" and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        if "SLURM_PROCID" in env and not any(hint in env for hint in MPI_HINTS):
            launcher = "slurm"
            rank, size, local_rank, local_size, store, keeper = _join_slurm(timeout)
    if launcher != "torchrun":
        _refuse_singletons(size)
    place = resolve_device(device, local_rank, local_size)
    presence = None
    if size > 1:
        if place.type == "cuda":
            torch.cuda.set_device(place)
        dist.init_process_group(
            "nccl" if place.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
        presence = Presence(dist.PrefixStore("presence", store), rank, size, keeper)
        dist.barrier()  # all have given a sign of life
    return World(rank, size, local_rank, launcher, place, local_size, presence)


def finish(world: World | None = None) -> None:
    """Leave the process group, if there is one."""
    if world is not None and world.presence:
        world.presence.stop()
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(world: World, code: int, silent: Sequence[int] = ()) -> None:
    """End this rank and, through its launcher, the job: never returns when size > 1.

    After an error on one rank, an orderly exit can wait for ever in a peer's collective.

    Args:
        silent: ranks that do not answer, and may be frozen: SLURM's srun would wait for them.
    """
    if world.size == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if world.presence:
        world.presence.leave(len(silent))
    if world.launcher == "mpi":
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(code)
    if world.launcher == "slurm" and silent:
        step = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
        with suppress(OSError):
            subprocess.run(["scancel", "--signal=KILL", step], check=False)
    os._exit(code)


def why_lost(world: World, error: RankLost) -> tuple[str | None, list[int]]:
    """What to say about a collective that failed, and the ranks that do not answer.

    None: another rank says it, or has said why it left. Takes some seconds.
    """
    silent = world.presence.silent() if world.presence else []
    if world.presence and not world.presence.speaks_first():
        return None, silent
    if not silent:
        return f"a collective failed, though all {world.size} ranks answer: {error}", silent
    who = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))}"
    verb = "does" if len(silent) == 1 else "do"
    return (
        f"{who} of {world.size} {verb} not answer: killed (out of memory?), frozen, or on a node "
        f"that is lost; rank {world.rank} saw that {error}"
    ), silent


def resolve_device(
    name: str | torch.device | None, local_rank: int = 0, local_size: int = 1
) -> torch.device:
    """The device of that name, a GPU if there is one and no name; InputError if it is not here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise InputError(f"device {name!r} is not one that torch knows; use cpu or cuda") from None
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if count == 0:
        raise InputError("device cuda was asked for, but torch sees no GPU here; use cpu")
    if local_size > count:
        raise InputError(
            f"{local_size} ranks on this node share {count} GPUs; start one rank a GPU, or use "
            "--device cpu"
        )
    return device if device.index is not None else torch.device("cuda", local_rank)


def _call(collective: Callable, *args: Any, group: Any) -> None:
    try:
        collective(*args, group=group)
    except RuntimeError as error:
        # Without the place in torch's sources, and its advice.
        reason = re.sub(r"^\[[^]]*\] ", "", str(error)).split(". ")[0].splitlines()[0]
        raise RankLost(f"{collective.__name__} failed ({reason})") from error


def _join_torchrun(timeout: timedelta) -> tuple:
    env = os.environ
    rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
    local = int(env.get("LOCAL_RANK", rank)), int(env.get("LOCAL_WORLD_SIZE", size))
    if size == 1:
        return rank, size, *local, None, None
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    # torchrun's own process may keep the store over restarts, with the addresses of the dead.
    store = dist.PrefixStore(f"attempt-{env.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    keeper = None if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0
    return rank, size, *local, store, keeper


def _join_mpi(timeout: timedelta) -> tuple:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    rank, size = comm.Get_rank(), comm.Get_size()
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    local = node.Get_rank(), node.Get_size()
    if size == 1:
        return rank, size, *local, None
    # Port 0 lets the system choose: no race between jobs for a fixed port.
    store, host = None, MPI.Get_processor_name()
    if rank == 0:
        store = dist.TCPStore(host, 0, size, True, timeout, wait_for_workers=False)
    host, port = comm.bcast((host, store.port) if store else None)
    store = store or dist.TCPStore(host, port, size, False, timeout)
    return rank, size, *local, store


def _join_slurm(timeout: timedelta) -> tuple:
    env = os.environ
    nodes = env["SLURM_STEP_NODELIST"]
    names = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True)
    host = (names.stdout.split() or [nodes])[0]
    reserved = env.get("SLURM_STEP_RESV_PORTS")
    job = f"{env.get('SLURM_JOB_ID')}.{env.get('SLURM_STEP_ID')}".encode()
    port = int(reserved.split("-")[0]) if reserved else 20000 + zlib.crc32(job) % 20000
    rank, size = int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"])
    local_rank = int(env["SLURM_LOCALID"])
    # Rank 0 may be on another node than the first of the list: the store lives on the first.
    is_master = env["SLURM_NODEID"] == "0" and local_rank == 0
    store = dist.TCPStore(host, port, size, is_master, timeout, wait_for_workers=False)
    tasks = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = int(env["SLURM_NODEID"])
    local_size = tasks[node] if node < len(tasks) else local_rank + 1
    if is_master:
        store.set("keeper", str(rank))
    keeper = int(store.get("keeper"))
    return rank, size, local_rank, local_size, store, keeper


def _tasks_per_node(text: str) -> list[int]:
    """SLURM's short form: "2(x3),1" -> [2, 2, 2, 1]."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in groups for _ in range(int(times or 1))]


def _portable(error: Exception) -> tuple[type[Exception], str]:
    """A class that every rank can make from one text, and the text."""
    kind = type(error)
    if isinstance(error, InputError):
        return InputError, str(error)
    if isinstance(error, (OSError, FloatingPointError)):
        return kind if kind.__module__ == "builtins" else OSError, str(error)
    return RuntimeError, f"{kind.__name__}: {error}"


def _refuse_singletons(size: int) -> None:
    for hint in SIZE_HINTS:
        started = int(os.environ.get(hint, 1))
        if size == 1 and started > 1:
            raise InputError(
                f"{hint}={started}, but this process is alone in its world: {started} copies "
                "would write the same file; start with mpirun or torchrun, or use an srun --mpi "
                "plugin that fits the MPI library"
            )
