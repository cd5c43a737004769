"""What a manifest of saved state must hold: types, ranges, and sizes that belong together.

A manifest was written by this package, but whoever can write into its folder can change it. It is
compared with these forms when it is read, before any of it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum._core.json_forms import (
    Flag,
    Form,
    Listing,
    Maybe,
    Real,
    Record,
    Table,
    Text,
    Whole,
    numbers,
)

CHECKSUM = "checksum"  # of everything else in the manifest
MOST_THREADS = 4096  # of one process

SHARD_NAME = r"[\w-][\w.-]*-[0-9a-f]{12}\.safetensors"
_WORD = Text(pattern=r"[\w.-]{1,64}", what="a name of letters and digits")

BOUNDS = Listing(Whole(), length=2)
SHARD = Record(
    {
        "file": Text(pattern=SHARD_NAME, what="the name of a shard, without a folder"),
        "sha256": Text(pattern=r"[0-9a-f]{64}", what="64 hexadecimal digits"),
        "bytes": Whole(),
        "index": Maybe(BOUNDS),
        "shapes": Table(Listing(Whole())),
        "dtypes": Table(_WORD),
    }
)
BASIS_SHARD = Record({**SHARD.required, "index": BOUNDS, "rows": BOUNDS})

PRODUCTS = Record(
    {
        "mode": _WORD,
        "chunk": Maybe(Whole(1)),
        "batch_size": Maybe(Whole(1)),
        "keep": Flag(),
        "precision": Maybe(_WORD),
    }
)
PLAN = Record(
    {"threads": Whole(1, MOST_THREADS)},
    {
        "products": PRODUCTS,
        "basis": Text(choices=("device", "host", "disk")),
        "sizes": Table(Whole()),
        "parameters": Whole(1),
        "total_weight": Real(0),
        "operator": Text(),
        "dtype": _WORD,
    },
)
DIGESTS = Table(Maybe(Text()))
WORK: dict[str, Form] = {"seconds": Real(0), "products": Whole(), "passes": Whole()}
# The header of a run (commands/header.py).
HEADER = Record(
    {
        "config": Record({}),
        "digests": DIGESTS,
        "problem": Record({"parameters": Whole(1), "total_weight": Real(0), "dtype": _WORD}),
        "values": Table(Real(finite=False)),
        "plan": PLAN,
        "work": Record(WORK),
    }
)

_STEPS = Whole(0, 10**9)
# By kind of Krylov state: what its table of coefficients holds beside arrays.
_TABLES: dict[str, Record] = {
    "Recurrences": Record({"active": Listing(Flag())}),
    "BlockSpace": Record({"sizes": Listing(Whole(0, 10**6)), "lean": Flag()}),
    "RitzSpace": Record(
        {
            **{name: _STEPS for name in ("width", "starts", "steps", "products")},
            **{name: _STEPS for name in ("restarts", "fresh_at", "patience")},
        }
    ),
}
KRYLOV = Record(
    {
        "kind": Text(choices=tuple(_TABLES)),
        "coefficients": Record({}),
        "scale": Real(0),
        "noise": Real(0),
        "basis": Listing(BASIS_SHARD),
    }
)


def checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all entries but the checksum; JSON keeps every bit of a number."""
    content = {key: value for key, value in manifest.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def require_manifest(
    manifest: Any, checks: Iterable[Callable[[dict[str, Any]], None]] = ()
) -> dict[str, Any]:
    """``manifest``, an object whose shards are ours, that fulfils ``checks``, with its checksum.

    Raises:
        InputError: it is something else. Manifests of earlier versions have no checksum.
    """
    if type(manifest) is not dict:
        raise InputError(f"holds a {type(manifest).__name__}, so every key is missing")
    for entry in shards(manifest):
        SHARD.require(entry, "shard")
    for check in checks:
        check(manifest)
    if CHECKSUM in manifest and manifest[CHECKSUM] != checksum(manifest):
        raise InputError("its checksum is not that of its content")
    return manifest


def shards(node: object) -> Iterator[dict[str, Any]]:
    """Every shard entry in a manifest, at any depth."""
    if isinstance(node, dict):
        if "file" in node and "sha256" in node:
            yield node
        else:
            node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from shards(item)


def require_krylov(manifest: Mapping[str, Any]) -> None:
    """InputError unless T, the numbers beside it and the basis are those of one Krylov state."""
    KRYLOV.require(manifest, "")
    kind, table = manifest["kind"], manifest["coefficients"]
    _TABLES[kind].require(table, "coefficients")
    low, high, blocks = _SIZES[kind](table)
    _require_cover(manifest["basis"], low, high, blocks)


def num_steps(manifest: Mapping[str, Any]) -> int:
    """How many steps the state of a valid manifest has taken."""
    table = manifest["coefficients"]
    if manifest["kind"] == "Recurrences":
        return len(table["alpha"][0]) if table["alpha"] else 0
    return len(table["diagonal"]) if manifest["kind"] == "BlockSpace" else int(table["steps"])


def num_probes(manifest: Mapping[str, Any]) -> int:
    """How many probes the state of a valid manifest of a density was started from."""
    table = manifest["coefficients"]
    return len(table["alpha"] if manifest["kind"] == "Recurrences" else table["first"])


# Of each kind: the first and the last basis vector that is held, and how many recurrences there
# are. They look at the shapes of all arrays of coefficients.


def _recurrences(table: Mapping[str, Any]) -> tuple[int, int, int]:
    count = len(table["active"])
    alpha = numbers(_entry(table, "alpha"), "coefficients.alpha", count, None)
    steps = alpha.shape[1] if alpha.ndim == 2 else 0
    numbers(_entry(table, "beta"), "coefficients.beta", count, steps)
    return 0, steps + 1, count


def _block_space(table: Mapping[str, Any]) -> tuple[int, int, int]:
    sizes = table["sizes"]
    lists = {name: _entry(table, name) for name in ("diagonal", "off")}
    for name, found in lists.items():
        if type(found) is not list or len(found) != len(sizes) - 1:
            raise InputError(
                f"coefficients.{name} and sizes do not belong together; expected one size more "
                "than there are blocks"
            )
    numbers(_entry(table, "first"), "coefficients.first", None, sizes[0])
    for k, (size, after) in enumerate(pairwise(sizes)):
        numbers(lists["diagonal"][k], f"coefficients.diagonal[{k}]", size, size)
        numbers(lists["off"][k], f"coefficients.off[{k}]", size, after)
    rank = sum(sizes)
    return rank - sum(sizes[-2:]) if table["lean"] else 0, rank, 1


def _ritz_space(table: Mapping[str, Any]) -> tuple[int, int, int]:
    h = _entry(table, "h")
    order, width = len(h) if type(h) is list else 0, table["width"]
    numbers(h, "coefficients.h", order, order)
    numbers(_entry(table, "coupling"), "coefficients.coupling", order, width)
    numbers(_entry(table, "leak"), "coefficients.leak", order)
    if table.get("search") is not None:
        locked, _ = numbers(table["search"], "coefficients.search", 2)
        Whole(0, order).require(table["search"][0], "coefficients.search[0]")
        start = numbers(_entry(table, "search_start"), "coefficients.search_start", None)
        if len(start) not in (0, order - int(locked)):
            raise InputError(f"coefficients.search_start has {len(start)} numbers")
        numbers(_entry(table, "search_roots"), "coefficients.search_roots", None)
    return 0, order + width, 1


_SIZES = {"Recurrences": _recurrences, "BlockSpace": _block_space, "RitzSpace": _ritz_space}


def _entry(table: Mapping[str, Any], name: str) -> Any:
    if name not in table:
        raise InputError(f"coefficients.{name} is missing")
    return table[name]


def _require_cover(entries: Sequence[Mapping[str, Any]], low: int, high: int, count: int) -> None:
    """InputError unless the shards hold each entry of the vectors low..high once: no zeros."""
    by_rows: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_rows.setdefault(tuple(entry["rows"]), []).append(entry)
    ends, at = set(), None
    for (first, after), group in sorted(by_rows.items()):
        if first != (first if at is None else at) or after <= first or (at is None and first > low):
            raise InputError(f"basis: vectors {first} to {after} follow those to {at or low}")
        at, end = after, 0
        for entry in sorted(group, key=lambda entry: entry["index"]):
            (start, stop), shape = entry["index"], entry["shapes"].get("basis")
            if start != end or shape != [count, after - first, stop - start]:
                raise InputError(
                    f"basis: {entry['file']} holds {shape} for the entries {start} to {stop} of "
                    f"the vectors {first} to {after}, and the shards before end at {end}"
                )
            end = stop
        ends.add(end)
    if (at or low) != high or len(ends) > 1:
        raise InputError(
            f"basis: holds vectors up to {at or low} of {sorted(ends)} entries; expected {high}"
        )


def num_entries(manifest: Mapping[str, Any]) -> int | None:
    """Entries of each basis vector of a valid manifest; None where there are no vectors."""
    return max((entry["index"][1] for entry in manifest["basis"]), default=None)
