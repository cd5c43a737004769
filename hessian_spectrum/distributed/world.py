"""This process's rank, world size and device, and every collective that the package uses.

A single process needs no process group: the collectives of ``World()`` return their input.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.environment import number
from hessian_spectrum.distributed.launch import NotMet, Seat, join, roll_call
from hessian_spectrum.distributed.liveness import LISTEN, Presence, RankLost, answer_within
from hessian_spectrum.distributed.slurm_step import is_a_task

TIMEOUT = timedelta(minutes=10)  # a rank that is silent for longer is considered dead
PATIENCE = 1.0  # seconds for another rank to report first what this one would report too

# torch 2.13 renames two collectives and warns about the old names, the only ones in 2.11.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


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
        local_rank = number("LOCAL_RANK", 0, default=0)
        local_size = number("LOCAL_WORLD_SIZE", 1, default=size)
        # The code that created the group has chosen each rank's GPU.
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

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """One part for each rank, 1-D -> what each rank has for this one, in rank order.

        Args:
            sizes: the lengths of what this rank is sent; all parts have one dtype.
        """
        if self.size == 1:
            return [parts[0]]
        received = parts[0].new_empty(sum(sizes))
        lengths = [len(part) for part in parts]
        _call(
            dist.all_to_all_single,
            *(received, torch.cat(list(parts)), list(sizes), lengths),
            group=self.group,
        )
        return list(received.split(list(sizes)))

    def gather_objects(self, value: Any) -> list:
        """Every rank's small Python value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        _call(dist.all_gather_object, values, value, group=self.group)
        return values

    def from_first(self, value: Any) -> Any:
        """The first rank's small Python value, on every rank."""
        if self.size == 1:
            return value
        first = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        values = [value]
        _call(dist.broadcast_object_list, values, src=first, group=self.group)
        return values[0]

    def any(self, flag: bool) -> bool:
        """True on every rank if it is on one."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def barrier(self) -> None:
        if self.size > 1:
            _call(dist.barrier, group=self.group)

    def raise_together(self, error: Exception | None, beside: Any = None) -> list:
        """Raise the error of the first rank that has one on every rank; return if none has.

        A rank that raised alone would leave its peers waiting in the next collective. One exchange
        of small objects. ``agreement.together`` catches the errors of an action.

        Args:
            beside: this rank's part of what is returned, a small object.

        Returns:
            ``beside`` of every rank, in rank order.

        Raises:
            Exception: InputError, OSError, FloatingPointError and out-of-memory errors keep their
                class, others become a RuntimeError; the text names the rank. If every rank has an
                error, each raises its own.
        """
        answers = self.gather_objects((None if error is None else _portable(error), beside))
        errors = [portable for portable, _ in answers]
        first = next((rank for rank, e in enumerate(errors) if e is not None), None)
        if first is None:
            return [other for _, other in answers]
        if error is not None and (all(errors) or self.size == 1):
            raise error
        kind, text = errors[first]
        raise kind(f"rank {first} of {self.size}: {text}") from error


class Flags:
    """Booleans of single ranks, combined by "or" over all ranks.

    They are appended to a reduction that a step makes anyway, and need no collective of their own.

    Args:
        *questions: evaluated on each rank when the flags are sent.
    """

    def __init__(self, *questions: Callable[[], bool]):
        self._questions = questions
        self.heard = [False] * len(questions)  # for each question: is the answer yes on any rank?

    def answers(self) -> Tensor:
        """This rank's answers, to be summed over ranks."""
        return torch.tensor([float(question()) for question in self._questions])

    def hear(self, counts: Tensor) -> None:
        self.heard = [count > 0 for count in counts.tolist()]


def start(
    device: str | None = None,
    timeout: timedelta = TIMEOUT,
    give_up: Callable[[NotMet], None] | None = None,
) -> World:
    """Join the job that this process was launched in: torchrun, mpirun, srun, or none.

    Args:
        device: "cpu", "cuda" or "cuda:1"; default: a GPU if there is one.
        timeout: how long a collective, and this call, wait for a silent rank before they fail.
        give_up: called with the error, in a thread, to end this process if the wait is inside the
            MPI library, which raises nothing. Default: print the error and exit with code 75.

    Raises:
        InputError: the launcher's variables are wrong, or it started several processes that do not
            know of each other (they would all be rank 0 and write the same file), or more ranks
            than GPUs.
        NotMet: some ranks did not join in time; the message names them where it can.
        RankLost: a rank was lost while the process group was made.
    """
    if dist.is_initialized():
        return World.current()
    give_up = give_up or _give_up
    try:
        seat = join(timeout, lambda lost: give_up(_with_world(lost)))
    except NotMet as lost:
        _with_world(lost)
        raise
    if seat.size == 1:
        place = resolve_device(device, seat.local_rank, seat.local_size)
        return World(seat.rank, 1, seat.local_rank, seat.launcher, place, seat.local_size)
    world = _world_of(seat)
    try:
        world = replace(world, presence=_presence(seat, timeout))
        roll_call(seat, timeout)
        world = replace(world, device=resolve_device(device, seat.local_rank, seat.local_size))
        _make_group(world, seat.store_for("group"), timeout)
    except RankLost as lost:
        lost.world = world
        raise
    return world


def _presence(seat: Seat, timeout: timedelta) -> Presence:
    store = seat.store_for("presence")
    try:
        silence = max(timeout.total_seconds(), LISTEN)
        return answer_within(silence, Presence, store, seat.rank, seat.size, seat.keeper)
    except (RuntimeError, TimeoutError) as error:
        raise RankLost(f"the ranks' store failed ({error})") from None


def _make_group(world: World, store: dist.Store, timeout: timedelta) -> None:
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    _call(
        dist.init_process_group,
        "nccl" if world.device.type == "cuda" else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
    )
    world.barrier()  # every rank has sent a heartbeat


def _world_of(seat: Seat) -> World:
    return World(seat.rank, seat.size, seat.local_rank, seat.launcher, local_size=seat.local_size)


def _with_world(lost: NotMet) -> NotMet:
    lost.world = _world_of(lost.seat)
    return lost


def _give_up(lost: NotMet) -> None:
    print(f"rank {lost.seat.rank}: {lost}", file=sys.stderr, flush=True)
    os._exit(75)


def new_group(ranks: Sequence[int], timeout: timedelta) -> Any:
    """A process group of these ranks; called by every rank, for every group."""
    return _call(dist.new_group, ranks, timeout=timeout)


def finish(world: World | None = None) -> None:
    """Leave the process group, if there is one."""
    if world is not None and world.presence:
        world.presence.stop()
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(world: World, code: int, silent: Sequence[int] = ()) -> None:
    """End this rank and, through its launcher, the job: never returns when size > 1.

    After an error on one rank, an orderly exit could wait forever in a collective of a peer.

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

        if MPI.Is_initialized():
            MPI.COMM_WORLD.Abort(code)
    # A step in whose shell a user works is not ours to end.
    if world.launcher == "slurm" and silent and is_a_task():
        step = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
        with suppress(OSError):
            subprocess.run(["scancel", "--signal=KILL", step], check=False)
    os._exit(code)


def why_lost(world: World, error: RankLost) -> tuple[str | None, list[int]]:
    """Why a collective failed, for the user, and the ranks that do not answer. Takes seconds.

    The text is None if another rank reports it.
    """
    if isinstance(error, NotMet):
        return _why_not_met(world, error), list(error.missing)
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


def _why_not_met(world: World, error: NotMet) -> str | None:
    if world.presence:
        return str(error) if world.presence.speaks_first() else None
    # The ranks cannot coordinate: most launchers end the job with the first that leaves.
    if world.rank != min(set(range(world.size)) - set(error.missing), default=world.rank):
        time.sleep(PATIENCE)
    return str(error)


def resolve_device(
    name: str | torch.device | None, local_rank: int = 0, local_size: int = 1
) -> torch.device:
    """The device of that name; default: a GPU if there is one. InputError if it does not exist."""
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


def _call(collective: Callable, *args: Any, **options: Any) -> Any:
    try:
        return collective(*args, **options)
    except RuntimeError as error:
        # Without the location in torch's sources and its advice.
        reason = re.sub(r"^\[[^]]*\] ", "", str(error)).split(". ")[0].splitlines()[0]
        raise RankLost(f"{collective.__name__} failed ({reason})") from error


def _portable(error: Exception) -> tuple[type[Exception], str]:
    """A class of errors that every rank can construct from a text, and the text."""
    kind = type(error)
    if isinstance(error, InputError):
        return InputError, str(error)
    for known in (MemoryError, torch.OutOfMemoryError):
        if isinstance(error, known):
            return known, str(error)
    if isinstance(error, (OSError, FloatingPointError)):
        return kind if kind.__module__ == "builtins" else OSError, str(error)
    return RuntimeError, f"{kind.__name__}: {error}"
