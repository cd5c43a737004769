"""Carry out a command: check, evaluator, dry run, lock, resume, steps, saves, result.

The one place where these stand; what a command computes, its ``Computation`` supplies.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from hessian_spectrum._core.standard_output import tell
from hessian_spectrum._core.validation import dashed
from hessian_spectrum.commands import report
from hessian_spectrum.commands.checkpointing import Checkpoints
from hessian_spectrum.commands.computation import Computation, ConfigT, ResultT
from hessian_spectrum.commands.output import writing
from hessian_spectrum.commands.session import Session
from hessian_spectrum.commands.signals import StopRequest
from hessian_spectrum.config import to_dict
from hessian_spectrum.distributed.agreement import on_first_rank, require_same_call, together
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.zoo import problem_loader

OF_THE_MACHINE = ("device", "data_root")  # options in which ranks may differ


def run(
    command: type[Computation[ConfigT, ResultT]],
    config: ConfigT,
    problem: Problem,
    world: World,
    stop: StopRequest | None = None,
    *,
    quiet: bool = False,
) -> ResultT | None:
    """From a problem to a finished result file; called by every rank.

    Args:
        stop: a listener to signals that is already at work; default: one for this call.
        quiet: print neither plan nor report, and show no progress.

    Returns:
        The result; None after --dry-run.

    Raises:
        InputError: the input, or the output's place, cannot be used; nothing was written.
        FloatingPointError: a loss or product is not finite; what was finished is saved.
        Interrupted: a signal came; ``resume`` continues from what was saved.
    """
    started = time.time()

    def check() -> None:
        command.check_output(config)

    on_first_rank(world, check)
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest().listening())
        if hasattr(config, "scratch_folder"):
            together(world, lambda: config.scratch_folder)  # it may be missing on one node
        computation = command(config, problem, world)
        if getattr(config, "dry_run", False):
            text = computation.preview()
            if computation.expected_seconds is not None:
                text += f"\n{report.job_minutes(computation.expected_seconds)}"
            if world.rank == 0:
                tell(text)
            return None
        lock = stack.enter_context(writing(config.out, world, stop, check))
        checkpoints = Checkpoints(world, stop, config.checkpoint_minutes)
        session = Session(computation, lock, checkpoints, started, quiet)
        stack.enter_context(session.files)
        return _carry_out(computation, session)


def _carry_out(computation: Computation[ConfigT, ResultT], session: Session) -> ResultT:
    computation.load(session)
    session.values = computation.look()
    for text in computation.evaluator.function.choices():
        session.say(text)
    session.require_same_values()
    session.checkpoints.leave_if_stopped()
    computation.prepare(session)
    session.checkpoints.leave_if_stopped()
    _take_steps(computation, session)
    result = computation.finish(session)
    if session.world.rank == 0 and not session.quiet:
        tell(computation.report(result, session.values))
        for text in computation.evaluator.verification.doubts():
            tell(text)
        tell(f"written to {computation.config.out}")
    return result


def _take_steps(computation: Computation[ConfigT, ResultT], session: Session) -> None:
    checkpoints = session.checkpoints
    if getattr(computation.config, "resume", False) and not computation.is_finished:
        session.say(_where_it_goes_on(computation, session))
    heard = checkpoints.flags if computation.steps_carry_flags else None
    try:
        with session.stage(*computation.progress, rest=session.rest) as progress:
            while not computation.is_finished:
                computation.step(session)
                _, done, _ = computation.progress
                progress.update(done - progress.n)
                if not computation.is_finished:
                    checkpoints.after_step(
                        lambda: computation.save(session), heard, computation.saves_each_step
                    )
    except FloatingPointError:
        if computation.has_state:
            computation.save(session)
        raise


def _where_it_goes_on(computation: Computation[ConfigT, ResultT], session: Session) -> str:
    if session.earlier is None:
        return f"{computation.command}: nothing to resume, starts from the beginning"
    total, done, unit = computation.progress
    of = "" if total is None else f" of {total:,}"
    return f"{computation.command}: going on at {unit} {done + 1:,}{of}"


def require_same_options(
    command: type[Computation[ConfigT, ResultT]], config: ConfigT, world: World
) -> None:
    """InputError, which names the rank and the options, unless all ranks were given the same ones.

    Called by every rank. One exchange of small objects. Options of a rank's own machine may differ.
    """
    options = {
        f"--{dashed(name)}": value
        for name, value in to_dict(config).items()
        if name not in OF_THE_MACHINE
    }
    require_same_call(world, command.command, **options)


def load_problem(
    command: type[Computation[ConfigT, ResultT]], config: ConfigT, world: World
) -> tuple[ConfigT, Problem]:
    """The problem that ``config`` names, and ``config`` with what it left to the problem.

    Called by every rank.

    Raises:
        InputError: the problem cannot be made, or ranks were given different commands or options.
    """
    require_same_options(command, config, world)
    config = command.located(config)
    if config.download:  # once, before the others look
        on_first_rank(world, lambda: problem_loader.load(config))
    problem = together(world, lambda: problem_loader.load(config))
    return problem_loader.settled(config, problem), problem
