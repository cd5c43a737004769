"""``density --blocks``: the densities of many diagonal blocks, several in each pass."""

from __future__ import annotations

import math
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.algorithms import spectral_density as spectrum
from hessian_spectrum.commands import report, sharded
from hessian_spectrum.commands.computation import CurvatureComputation
from hessian_spectrum.commands.header import FREE_FIELDS, RunHeader
from hessian_spectrum.commands.session import Session
from hessian_spectrum.config import DensityConfig
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.distributed.world import World
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.operators.curvature import Curvature
from hessian_spectrum.operators.parameter_blocks import parameter_blocks
from hessian_spectrum.planning.product_planner import Estimate
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.storage import run_file
from hessian_spectrum.storage.hdf5_schema import join_key, split_key

PROBES, STEPS = 4, 30  # of each block, unless they are said
TOGETHER = 64  # vectors in a pass
KIND = "density"


class BlockDensities(CurvatureComputation[DensityConfig, dict[str, SpectralMeasure]]):
    """A step is the densities of some blocks, which take their products in the same passes."""

    command = "density"
    free_fields = FREE_FIELDS | {"keep_state"}
    saves_each_step = True

    def __init__(self, config: DensityConfig, problem: Problem, world: World):
        self.config, self.world = config, world
        made: Any = sharded.evaluator(config, problem, world) if config.sharded else None
        self.evaluator = made or problem.evaluator(world)
        kinds = config.blocks[0] if len(config.blocks) == 1 else config.blocks
        self.blocks = together(world, lambda: parameter_blocks(self.evaluator, kinds))
        largest = max(len(entries) for entries in self.blocks.values())
        self.probes = config.num_probes or PROBES
        self.steps = min(config.num_steps or STEPS, largest)
        self.found: dict[str, SpectralMeasure] = {}

    def made_operator(self) -> Curvature:
        if self.config.sharded:
            found: Any = sharded.operator(self.config, self.evaluator)
            return found
        return super().made_operator()

    @property
    def _group(self) -> int:
        """How many blocks a step takes."""
        return max(1, TOGETHER // self.probes)

    def estimate(self, operator: Curvature) -> Estimate:
        vectors = self.probes * min(self._group, len(self.blocks))
        steps = math.ceil(len(self.blocks) / self._group) * self.steps
        kept = vectors * (self.steps + 1) * max(map(len, self.blocks.values()))
        return sharded.plan(
            self.config,
            operator,
            vectors,
            steps,
            math.ceil(kept / operator.n),
            self.config.scratch_folder,
        )

    def load(self, session: Session) -> None:
        out = self.config.out
        if not (self.config.resume and out.exists()):
            return

        def read() -> None:
            with run_file.open(out) as run:
                if run.finished:
                    raise InputError(
                        f"{out} is finished; compute it again with --overwrite, or name another "
                        "--out"
                    )
                session.resume_from(RunHeader.from_run(run))
                found = {split_key(key)[1]: run[key] for key in run if split_key(key)[0] == KIND}
            self.found = {n: m for n, m in found.items() if isinstance(m, SpectralMeasure)}

        together(self.world, read)

    @property
    def is_finished(self) -> bool:
        return len(self.found) == len(self.blocks)

    @property
    def progress(self) -> tuple[int, int, str]:
        return len(self.blocks), len(self.found), "block"

    def step(self, session: Session) -> None:
        left = [name for name in self.blocks if name not in self.found][: self._group]
        self.found |= spectrum.spectral_densities(
            self.operator,
            {name: self.blocks[name] for name in left},
            self.probes,
            self.steps,
            self.config.seed,
        )

    @property
    def has_state(self) -> bool:
        return bool(self.found)

    def save(self, session: Session) -> None:
        self._write(session, finished=False)

    def finish(self, session: Session) -> dict[str, SpectralMeasure]:
        self._write(session, finished=True)
        return self.found

    def _write(self, session: Session, finished: bool) -> None:
        ordered = {
            join_key(KIND, name): self.found[name] for name in self.blocks if name in self.found
        }
        # A file lists labels by the alphabet: these numbers keep the order of the model.
        places = {
            join_key("values", name): {"block": float(place), "parameters": float(len(entries))}
            for place, (name, entries) in enumerate(self.blocks.items())
            if name in self.found
        }
        session.write(finished=finished, **ordered, **places)

    def report(self, result: dict[str, SpectralMeasure], values: dict[str, float]) -> str:
        return report.block_densities(result, values)

    def plan_entries(self) -> dict[str, Any]:
        return {"num_probes": self.probes, "num_steps": self.steps}
