"""A command in one file: the power method on the Hessian, saved after each product."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hessian_spectrum.commands.computation import Computation
from hessian_spectrum.commands.header import FREE_FIELDS, RunHeader
from hessian_spectrum.commands.output import reopened
from hessian_spectrum.config import ComputingConfig
from hessian_spectrum.distributed.agreement import together
from hessian_spectrum.operators.curvature import Hessian


@dataclass(frozen=True, kw_only=True)
class PowerConfig(ComputingConfig):
    """The eigenvalue of largest size, by the power method."""

    out: Path = Path("power.h5")
    """The result file."""
    num_products: int = 10
    """Products to take."""
    dry_run: bool = False
    """Print the plan, and stop there."""


class Power(Computation[PowerConfig, float]):
    command = "power"
    free_fields = FREE_FIELDS | {"num_products"}
    saves_each_step = True

    def __init__(self, config, problem, world):
        self.config, self.world = config, world
        self.evaluator = problem.evaluator(world)
        self.operator = Hessian(self.evaluator)
        self.vector, self.value, self.done = np.ones(self.evaluator.n), 0.0, 0

    def preview(self):
        return f"{self.config.num_products} products"

    def load(self, session):
        if not (self.config.resume and self.config.out.exists()):
            return

        def read():
            with reopened(self.config.out) as run:
                return RunHeader.from_run(run), run["values/power"]

        header, saved = together(self.world, read)
        together(self.world, lambda: session.resume_from(header))
        self.vector, self.value, self.done = saved["vector"], saved["value"], saved["done"]

    def look(self):
        return {"loss": self.evaluator.loss().item()}

    def prepare(self, session):
        session.say(self.preview())

    @property
    def is_finished(self):
        return self.done >= self.config.num_products

    @property
    def progress(self):
        return self.config.num_products, self.done, "product"

    def step(self, session):
        unit = self.vector / np.linalg.norm(self.vector)
        self.vector = (self.operator @ torch.from_numpy(unit)).numpy()
        self.value, self.done = float(unit @ self.vector), self.done + 1

    def save(self, session):
        self._write(session, finished=False)

    def finish(self, session):
        self._write(session, finished=True)
        return self.value

    def _write(self, session, finished):
        power = {"vector": self.vector, "value": self.value, "done": self.done}
        session.write(finished=finished, **{"values/power": power})

    def report(self, result, values):
        return f"eigenvalue {result:.6g} at loss {values['loss']:.6g}"
