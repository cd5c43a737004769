"""The header of a run: what a resumed run must agree with, and what it counts on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import Record
from hessian_spectrum.operators.linearization import ProductPlan
from hessian_spectrum.storage.manifest_schema import DIGESTS, HEADER, PLAN, WORK
from hessian_spectrum.storage.run_file import Run

MadeT = TypeVar("MadeT", "ProblemSize", "Work", ProductPlan)

# Options that may differ between a run and its resumption: none changes a number.
FREE_FIELDS = frozenset(
    {
        *("command", "out", "resume", "overwrite", "checkpoint_minutes", "timeout_minutes"),
        *("device", "memory", "scratch", "dry_run", "download"),  # the stored plan is used again
    }
)
# Options that say where a problem comes from. One that was given in Python has no name; digests,
# sizes and values then decide alone whether it is the same.
NAMES = frozenset(
    {
        *("model", "activation", "shortcut", "batchnorm", "width", "dropout_rate", "loss"),
        *("init_seed", "checkpoint"),
        *("dataset", "data_root", "image_size", "split", "limit", "problem", "problem_arg"),
        *("text", "max_length"),
    }
)


@dataclass(frozen=True)
class ProblemSize:
    """The function that was evaluated, as far as three numbers describe it."""

    parameters: int
    total_weight: float
    dtype: str  # "torch.float64"


@dataclass(frozen=True)
class Work:
    """What a run and the runs that it resumes have spent."""

    seconds: float = 0.0
    products: int = 0  # of the first rank; of many points, of all
    passes: int = 0


@dataclass(frozen=True)
class RunHeader:
    """Stored with the state of a run, in OUT.d's manifest or in the result file itself."""

    config: Mapping[str, Any]
    digests: Mapping[str, str | None]  # None: of data too large to be read for one
    problem: ProblemSize
    values: Mapping[str, float]  # the loss and what else is known of it
    plan: Mapping[str, Any]
    work: Work

    # -- to and from files -----------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """As a manifest holds it."""
        whole = {name: getattr(self, name) for name in HEADER_KEYS}
        problem, work = dataclasses.asdict(self.problem), dataclasses.asdict(self.work)
        return {**whole, "problem": problem, "work": work}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RunHeader:
        """Of a manifest.

        Raises:
            InputError: it has no such header, or one of other types or sizes.
        """
        HEADER.require(dict(saved), "")
        whole = {name: saved[name] for name in HEADER_KEYS}
        problem, work = _made(ProblemSize, saved["problem"]), _made(Work, saved["work"])
        return cls(**{**whole, "problem": problem, "work": work})

    @classmethod
    def from_run(cls, run: Run) -> RunHeader:
        """Of a run whose result file is its state.

        Raises:
            InputError: the file has no such header, or one of other types or sizes.
        """
        plan, provenance = run.plan, run.provenance
        values = run.get("values")
        try:
            OF_PLAN.require(plan, "plan")
            OF_PROVENANCE.require(provenance, "provenance")
            saved = {
                "config": run.config,
                "digests": provenance["digests"],
                "problem": {
                    "parameters": plan["parameters"],
                    "total_weight": plan["total_weight"],
                    "dtype": f"torch.{plan['dtype']}",
                },
                "values": dict(values) if isinstance(values, Mapping) else None,
                "plan": plan,
                "work": provenance,
            }
            return cls.from_json(saved)
        except InputError as error:
            raise InputError(f"{run.path}: is damaged: {error}") from None

    # -- how products are formed -----------------------------------------------------------------

    @property
    def product_plan(self) -> ProductPlan | None:
        """None where no products are formed."""
        return _made(ProductPlan, self.plan["products"]) if "products" in self.plan else None

    @property
    def place(self) -> str:
        """Where Krylov vectors live: "device", "host" or "disk"."""
        return self.plan.get("basis", "device")

    @property
    def threads(self) -> int:
        return self.plan["threads"]

    # -- comparison ------------------------------------------------------------------------------

    def require_same_run(
        self, now: RunHeader, defaults: Mapping[str, Any], free_fields: Collection[str]
    ) -> None:
        """InputError, with the reason, unless the run ``now`` may resume this one.

        Args:
            defaults: of the command's options (``config.defaults``). An option that is not stored
                is younger than the run, which had its default.
        """
        before, options = self.config, now.config
        ignored = {*free_fields, *(NAMES if _is_nameless(before) or _is_nameless(options) else ())}
        for name in sorted({*before, *options} - ignored):
            was, now_is = (config.get(name, defaults.get(name)) for config in (before, options))
            if was != now_is:
                raise InputError(
                    f"cannot resume: --{name.replace('_', '-')} was {was!r} and is now "
                    f"{now_is!r}; use the same options, or --overwrite to start again"
                )
        absent = sorted(set(now.digests) - set(self.digests))
        if absent:
            raise InputError(
                f"cannot resume: the interrupted run has no digest of the {absent[0]}; use "
                "--overwrite to start again"
            )
        for name, digest in now.digests.items():
            if None not in (digest, self.digests[name]) and self.digests[name] != digest:
                raise InputError(
                    f"cannot resume: the {name} are not those of the interrupted run; restore "
                    "them, or use --overwrite to start again"
                )
        sizes = dataclasses.asdict(self.problem)
        for name, value in dataclasses.asdict(now.problem).items():
            if sizes[name] != value:
                raise InputError(
                    f"cannot resume: {name.replace('_', ' ')} was {sizes[name]} and is now "
                    f"{value}; restore the problem, or use --overwrite to start again"
                )

    def require_same_values(self, now: Mapping[str, float], dtype: torch.dtype) -> None:
        """InputError unless what both hold, such as the loss, is the same to rounding.

        The loss may have changed where no digest shows it: in the problem file's code.
        """
        tolerance = torch.finfo(dtype).eps ** 0.6  # another number of ranks rounds
        for name, value in self.values.items():
            again = now.get(name, value)
            if abs(again - value) > tolerance * max(abs(again), abs(value)):
                raise InputError(
                    f"cannot resume: the {name.replace('_', ' ')} was {value:.9g} and is now "
                    f"{again:.9g}; restore the model, the loss and the data, or use --overwrite "
                    "to start again"
                )


HEADER_KEYS = tuple(field.name for field in dataclasses.fields(RunHeader))
# What the result file of a run that is resumed from it holds of the header.
OF_PLAN = Record(
    {
        **PLAN.required,
        **{name: PLAN.optional[name] for name in ("parameters", "total_weight", "dtype")},
    },
    PLAN.optional,
)
OF_PROVENANCE = Record({"digests": DIGESTS, **WORK})


def _made(kind: type[MadeT], saved: Mapping[str, Any]) -> MadeT:
    """A dataclass of the entries that are its fields."""
    return kind(**{name: saved[name] for name in kind.__dataclass_fields__ if name in saved})


def _is_nameless(config: Mapping[str, Any]) -> bool:
    return config.get("problem") is None and config.get("model") is None
