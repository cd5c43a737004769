"""Computations whose state is a Krylov space: shards of vectors and a manifest beside OUT."""

from __future__ import annotations

from typing import Any, ClassVar

from hessian_spectrum._core.json_forms import Record
from hessian_spectrum.algorithms import spectral_density as spectrum
from hessian_spectrum.commands import output, sharded
from hessian_spectrum.commands.computation import CurvatureComputation, CurvatureT, ResultT
from hessian_spectrum.commands.header import RunHeader
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config.sharding import ShardedConfig
from hessian_spectrum.distributed.agreement import on_first_rank, together
from hessian_spectrum.distributed.world import World
from hessian_spectrum.krylov.state import KrylovState
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.storage.krylov_state import RecurrenceStore
from hessian_spectrum.storage.manifest_schema import HEADER


class KrylovComputation(CurvatureComputation[CurvatureT, ResultT]):
    """Subclasses say what a saved state must agree with, and how large the space may become."""

    manifest_form: ClassVar[Record] = Record({})  # of the manifest, beside the header's
    steps_carry_flags = True

    def __init__(self, config: CurvatureT, problem: Problem, world: World):
        self.config, self.world = config, world
        # A sharded evaluator and its Hessian have all that these commands use of whole ones.
        self.is_sharded = isinstance(config, ShardedConfig) and config.sharded
        made: Any = sharded.evaluator(config, problem, world) if self.is_sharded else None
        self.evaluator = made or problem.evaluator(world)
        self.states = RecurrenceStore(output.state_folder(config.out), world)

    def made_operator(self) -> Curvature:
        if self.is_sharded:
            found: Any = sharded.operator(self.config, self.evaluator)
            return found
        return super().made_operator()

    @property
    def room(self) -> int:
        """How many steps, or of a restarted space vectors, the state has room for."""
        raise NotImplementedError

    def load(self, session: Session) -> None:
        world, states, out = self.world, self.states, self.config.out
        if not self.config.resume:
            on_first_rank(world, states.remove)
            return
        on_first_rank(world, self.require_unanswered)
        saved = states.manifest(HEADER, self.manifest_form)
        if saved is None:
            on_first_rank(world, lambda: output.require_unfinished(out, self.unresumable))
            return

        def take_over() -> None:
            session.resume_from(RunHeader.from_json(saved))
            self.take_over(saved)

        together(world, take_over)
        on_first_rank(world, lambda: self.require_extension(saved))
        layout, dtype = self.evaluator.layout, self.evaluator.dtype
        place = session.basis_place
        self.adopt(together(world, lambda: states.load(saved, layout, dtype, self.room, place)))
        on_first_rank(world, states.shards.sweep)  # what a killed run half wrote

    def require_unanswered(self) -> None:
        """Refuse to resume a run that has all that was asked for; on rank 0."""

    def take_over(self, saved: dict[str, Any]) -> None:
        """Compare with the manifest ``saved`` of the same run, and decide how far to go."""

    def require_extension(self, saved: dict[str, Any]) -> None:
        """Refuse to resume a finished run that would not get further; on rank 0."""

    def adopt(self, state: KrylovState) -> None:
        """Continue from this state, which was read."""
        raise NotImplementedError

    def prepare(self, session: Session) -> None:
        super().prepare(session)
        if session.earlier:
            error = session.earlier.values["product_repeat_error"]
        else:
            error = spectrum.repeat_error(self.operator, self.config.seed)
        session.values["product_repeat_error"] = error

    def save_state(self, state: KrylovState, session: Session, **entries: Any) -> None:
        """Commit the state, with ``entries`` beside the header in its manifest."""
        on_first_rank(self.world, session.lock.require)
        self.states.save(state, self.operator.layout, session.header().to_json() | entries)
