"""What a command supplies; runner.py does everything that commands have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from hessian_spectrum import zoo
from hessian_spectrum.commands import output, report
from hessian_spectrum.commands.header import FREE_FIELDS
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config import ComputingConfig, CurvatureConfig
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.evaluator import Evaluator
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.operators.curvature import (
    Curvature,
    Fisher,
    GaussNewton,
    GradientCovariance,
    Hessian,
)
from hessian_spectrum.operators.hessian_parts import GaussNewtonResidual, LikelihoodCurvature
from hessian_spectrum.operators.run_check import check_on_all_data
from hessian_spectrum.planning.product_planner import Estimate

OPERATORS: dict[str, Callable[..., Curvature]] = {  # of an evaluator, theta and a plan
    "hessian": Hessian,
    "gauss-newton": GaussNewton,
    "fisher": Fisher,
    "gradient-covariance": GradientCovariance,
    "gradient-second-moment": partial(GradientCovariance, centered=False),
    "gauss-newton-residual": GaussNewtonResidual,
    "likelihood-curvature": LikelihoodCurvature,
}

ConfigT = TypeVar("ConfigT", bound=ComputingConfig)
CurvatureT = TypeVar("CurvatureT", bound=CurvatureConfig)
ResultT = TypeVar("ResultT")


class Computation(ABC, Generic[ConfigT, ResultT]):
    """One command on one problem. Every rank makes one, and calls its methods in one order.

    The constructor makes the evaluator and the sizes; it refuses what cannot be computed, before
    anything is locked or written. Then the runner calls ``load``, ``look``, ``prepare``, ``step``
    until ``is_finished``, ``finish`` and ``report``.
    """

    command: ClassVar[str]  # its name on the command line and in result files
    # Options in which a resumed run may differ from the interrupted one.
    free_fields: ClassVar[frozenset[str]] = FREE_FIELDS
    unresumable: ClassVar[str] = ""  # why a finished run without its state cannot be resumed
    steps_carry_flags: ClassVar[bool] = False  # with a reduction that they make anyway
    saves_each_step: ClassVar[bool] = False  # steps are long
    is_whole_on_first_rank: ClassVar[bool] = False  # the result; the other ranks have none

    expected_seconds: float | None = None  # of the steps and what follows, once it is known

    config: ConfigT
    world: World  # all ranks
    evaluator: Evaluator

    @abstractmethod
    def __init__(self, config: ConfigT, problem: Problem, world: World): ...

    @classmethod
    def chosen(cls, config: ConfigT) -> type[Computation[ConfigT, ResultT]]:
        """Which computation carries ``config`` out, where an option decides; default: this one."""
        return cls

    @classmethod
    def located(cls, config: ConfigT) -> ConfigT:
        """``config`` with the checkpoint to evaluate at, where other options name it."""
        return config

    @classmethod
    def check_output(cls, config: ConfigT) -> None:
        """Refuse an output that this run must not touch; on rank 0."""
        output.check_output(config, cls.unresumable, cls.command)

    # -- before the first step -------------------------------------------------------------------

    @abstractmethod
    def preview(self) -> str:
        """What the run will cost, in words, for --dry-run."""

    @abstractmethod
    def load(self, session: Session) -> None:
        """Take over the state that an earlier run has left, or remove what --overwrite replaces.

        Calls ``session.resume_from`` where there is such a state.
        """

    @abstractmethod
    def look(self) -> dict[str, float]:
        """What is known of the loss before anything is computed, by name."""

    @abstractmethod
    def prepare(self, session: Session) -> None:
        """Everything between a look at the loss and the first step.

        A new run plans how it will compute, and says so; a resumed one has its plan.
        """

    # -- steps -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def is_finished(self) -> bool:
        """No step is left; the same on every rank."""

    @property
    @abstractmethod
    def progress(self) -> tuple[int | None, int, str]:
        """(all, done, what is counted) for the progress bar; all is None where nobody knows."""

    @abstractmethod
    def step(self, session: Session) -> None:
        """The smallest piece of work after which the state can be saved."""

    @property
    def has_state(self) -> bool:
        """Is there anything to save after a step that failed?"""
        return False

    @abstractmethod
    def save(self, session: Session) -> None:
        """Write the state, to resume from, and the results so far, to look at."""

    # -- after the last step ---------------------------------------------------------------------

    @abstractmethod
    def finish(self, session: Session) -> ResultT:
        """Write the finished result file, keep or remove the state."""

    @abstractmethod
    def report(self, result: ResultT, values: dict[str, float]) -> str:
        """The result in a few lines; on rank 0."""

    # -- what the files say ----------------------------------------------------------------------

    def config_used(self) -> ConfigT:
        """With what was chosen: as --config it gives the same computation."""
        return self.config

    def plan_entries(self) -> dict[str, Any]:
        """This command's part of the plan, as JSON holds it."""
        return {}

    def counts(self) -> tuple[int, int]:
        """(products, passes) of this run so far."""
        return self.evaluator.counts.products, self.evaluator.counts.passes


class CurvatureComputation(Computation[CurvatureT, ResultT]):
    """A computation with the products of one curvature matrix at one point."""

    may_end_early = False  # before all products of the estimate are spent
    limit: int | None = None  # products that may be spent, where the estimate has fewer
    operator: Curvature

    @abstractmethod
    def estimate(self, operator: Curvature) -> Estimate:
        """How products are formed, and what the run costs."""

    def preview(self) -> str:
        estimate = self.estimate(self.made_operator())
        return self._cost(estimate, first_order(self.evaluator))

    def look(self) -> dict[str, float]:
        return {**first_order(self.evaluator), **stored_age(self.config.checkpoint)}

    def prepare(self, session: Session) -> None:
        operator, formed = self.made_operator(), None
        if session.product_plan is None:
            if isinstance(operator, Curvature):
                check_on_all_data(operator)
            estimate = self.estimate(operator)
            session.take(estimate)
            session.say(self._cost(estimate, session.values))
            formed = estimate.first
        assert session.product_plan is not None
        if isinstance(operator, Curvature):
            operator = operator.planned(session.product_plan, formed)
        self.operator = operator

    def made_operator(self) -> Curvature:
        """The matrix, before it is known how its products are formed."""
        return OPERATORS[self.config.operator](self.evaluator)

    def _cost(self, estimate: Estimate, values: dict[str, float]) -> str:
        ev, self.expected_seconds = self.evaluator, estimate.total
        return report.estimate(estimate, ev, values, self.may_end_early, self.limit)


def first_order(evaluator: Evaluator) -> dict[str, float]:
    """The loss and the norm of its gradient."""
    return {
        "loss": evaluator.loss().item(),
        "gradient_norm": evaluator.gradient_norm(),
    }


def stored_age(checkpoint: Path | None) -> dict[str, float]:
    """{"epoch": ..., "step": ...} as the checkpoint stores them; nothing else says when it was."""
    if checkpoint is None:
        return {}
    found = {"epoch": zoo.stored_epoch(checkpoint), "step": zoo.stored_step(checkpoint)}
    return {name: float(number) for name, number in found.items() if number is not None}
