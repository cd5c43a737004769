"""The HDF5 schema: what a run file holds, and how results become groups and back.

::

    /                       attributes schema, schema_version, created (UTC), finished
    /config, plan, provenance       JSON texts
    /density/LABEL          attributes n, scatter; nodes, weights, residuals, certified, probe
    /density/LABEL/without_groups   nodes, weights, shares without each group of samples, if any
    /density/LABEL/rules    what the recurrences knew: T, first, out, padded; shapes, tolerance
    /curve, surface, directions, trajectory, functional, asymmetry, averaging/LABEL
                            the fields of surfaces.py's and results.py's results; about: JSON
    /eigenpairs/LABEL       attribute num_lower; values, residuals, converged, vectors (or
                            vectors_shards: JSON)
    /alignment/LABEL        attributes num_samples, seed; of minibatches' gradients: alignment,
                            gradient_norm, cosine, captured; batch_sizes, eigenvalues, residuals
    /values/LABEL           named numbers, texts and arrays: {"loss": 0.3, "accuracy": 0.9}

Axes are HDF5 dimension scales, named "node", "probe", "eigenpair", "parameter" and "batch_size";
data sets carry ``description`` and, where they have them, ``units``. Arrays carry Fletcher-32
checksums.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.analyses.alignment_result import ARRAYS, Alignment
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.jackknife import Replicates
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.spectral.quadrature import BlockRule
from hessian_spectrum.storage import field_schema
from hessian_spectrum.storage.shards import LazyRows, ShardedVectors, ShardFolder

SCHEMA, SCHEMA_VERSION = "hessian_spectrum", 1
DEFAULT_LABEL = "main"
TEXTS = ("config", "plan", "provenance")
MAX_VECTOR_BYTES = 2 << 30  # above, replacing the file whole at every save would cost too much

Result = SpectralMeasure | EigenPairs | Alignment | Mapping


class StoredVectors(LazyRows):
    """Eigenvectors (k, n) in an open run file."""

    def __init__(self, data: h5py.Dataset):
        self.shape, self.dtype = data.shape, data.dtype
        self._data, self._file = data, data.file  # the file is open as long as it is referred to

    def _row(self, index: int) -> np.ndarray:
        if not self._data:
            raise ValueError("the run file is closed; read the vectors while it is open")
        try:
            return self._data[index]
        except OSError as error:
            raise InputError(f"{self._file.filename}: is damaged ({one_line(error)})") from None


# -- keys ------------------------------------------------------------------------------------


def _kind(result: object) -> str:
    if isinstance(result, SpectralMeasure):
        return "density"
    if isinstance(result, EigenPairs):
        return "eigenpairs"
    if field_schema.kind_of(result):
        return field_schema.kind_of(result)
    if isinstance(result, Alignment):
        return "alignment"
    if isinstance(result, Mapping):
        return "values"
    raise InputError(
        f"cannot store a {type(result).__name__}; expected a SpectralMeasure, EigenPairs, an "
        "Alignment or a dict of named numbers, texts and arrays"
    )


def split_key(key: str) -> tuple[str, str]:
    kind, _, label = key.partition("/")
    return kind, _name(label or DEFAULT_LABEL)


def join_key(kind: str, label: str) -> str:
    return kind if label == DEFAULT_LABEL else f"{kind}/{label}"


def main_first(label: str) -> tuple[bool, str]:
    return label != DEFAULT_LABEL, label


def _name(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"(?=.*[^.])[^/\0\n]+", name):
        raise InputError(f"label {name!r}: expected a text without '/', other than '.' or '..'")
    return name


def by_key(results: tuple[Result, ...], labelled: Mapping[str, Result]) -> dict[str, Result]:
    stored: dict[str, Result] = {}
    for label, result in [*((None, result) for result in results), *labelled.items()]:
        kind = _kind(result)
        key = kind if label is None else label
        if key.partition("/")[0] not in WRITERS:
            key = f"{kind}/{_name(key)}"
        if key.partition("/")[0] != kind:
            raise InputError(f"label {label!r} names another kind than its result, {kind}")
        key = join_key(*split_key(key))
        if key in stored:
            raise InputError(
                f"two results for {key!r}; give them labels, as in early=..., late=..."
            )
        stored[key] = result
    return stored


# -- writing ---------------------------------------------------------------------------------


def _write_density(group: h5py.Group, measure: SpectralMeasure) -> None:
    group.attrs["n"] = measure.n
    group.attrs["scatter"] = measure.scatter
    node = _array(group, "nodes", measure.nodes, "approximate eigenvalues, ascending", "eigenvalue")
    probe = _array(group, "probe", np.arange(measure.num_probes), "index of the random probe")
    node.make_scale("node")
    probe.make_scale("probe")
    weights = _array(group, "weights", measure.weights, "share of a node for each probe", "1")
    residuals = _array(
        group, "residuals", measure.residuals, "an eigenvalue lies this near", "eigenvalue"
    )
    certified = _array(group, "certified", measure.certified, "node counts one eigenvalue exactly")
    _axes(weights, probe=probe, node=node)
    _axes(residuals, node=node)
    _axes(certified, node=node)
    if measure.rules:
        _write_rules(group.create_group("rules"), measure.rules)
    if measure.replicates:
        _write_replicates(group.create_group("without_groups"), measure.replicates)


def _write_rules(group: h5py.Group, rules: Sequence[BlockRule]) -> None:
    meaning = {
        "t": "T of each recurrence, symmetric, padded with zeros",
        "first": "the probes in coordinates of the first basis vectors, padded",
        "out": "coordinates that lead out of the space, of the last basis vectors, padded",
    }
    for name, description in meaning.items():
        blocks = [getattr(rule, name) for rule in rules]
        padded = np.zeros((len(blocks), *np.max([block.shape for block in blocks], axis=0)))
        for row, block in zip(padded, blocks):
            row[: block.shape[0], : block.shape[1]] = block
        # T is sparse and stored whole: compressed.
        data = _array(group, name, padded, description, "eigenvalue", compress=name == "t")
        _axes(data, rule=None)
    shapes = [[len(r.t), *r.first.shape, *r.out.shape, r.num_steps] for r in rules]
    _array(group, "shapes", shapes, "order of T, shape of first, shape of out, steps")
    tolerance = [rule.tolerance for rule in rules]
    _array(group, "tolerance", tolerance, "what is shorter is rounding or noise", "eigenvalue")


def _write_replicates(group: h5py.Group, found: Replicates) -> None:
    share = _array(group, "shares", found.shares, "a group's part of the data's weight", "1")
    share.make_scale("group")
    meaning = "approximate eigenvalues without each group of samples, ascending"
    nodes = _array(group, "nodes", found.nodes, meaning, "eigenvalue")
    weights = _array(group, "weights", found.weights, "share of a node for each probe", "1")
    _axes(nodes, group=share, node=None)
    _axes(weights, group=share, probe=None, node=None)


def _write_eigenpairs(group: h5py.Group, pairs: EigenPairs) -> None:
    value = _array(group, "values", pairs.values, "eigenvalues, ascending", "eigenvalue")
    value.make_scale("eigenpair")
    residuals = _array(group, "residuals", pairs.residuals, "|H v - lambda v|", "eigenvalue")
    converged = _array(group, "converged", pairs.converged, "residual within the tolerance")
    _axes(residuals, eigenpair=value)
    _axes(converged, eigenpair=value)
    if pairs.num_lower is not None:
        group.attrs["num_lower"] = pairs.num_lower
    if isinstance(pairs.vectors, ShardedVectors):
        _write_shards(group, pairs.vectors)
    elif pairs.vectors is not None:
        _axes(_write_vectors(group, pairs), eigenpair=value, parameter=None)


def _write_vectors(group: h5py.Group, pairs: EigenPairs) -> h5py.Dataset:
    shape, dtype = tuple(pairs.vectors.shape), np.asarray(pairs.vectors[:0]).dtype
    if len(shape) != 2 or shape[0] != len(pairs):
        raise InputError(f"vectors {shape} do not belong to {len(pairs)} values; expected (k, n)")
    if shape[0] * shape[1] * dtype.itemsize >= MAX_VECTOR_BYTES:
        raise InputError(
            f"vectors {shape} take {shape[0] * shape[1] * dtype.itemsize / 2**30:.1f} GiB, more "
            f"than a run file takes ({MAX_VECTOR_BYTES / 2**30:g} GiB); write them with "
            "ShardFolder and pass ShardedVectors, or leave them out (vectors=None)"
        )
    chunks = (1, min(shape[1], 1 << 17)) if shape[0] * shape[1] else None
    data = group.create_dataset("vectors", shape, dtype, chunks=chunks, fletcher32=bool(chunks))
    data.attrs.update(description="eigenvectors, rows of unit norm", units="1")
    for row in range(shape[0]):  # one at a time: they may be lazy
        data[row] = np.asarray(pairs.vectors[row])
    return data


def _write_shards(group: h5py.Group, vectors: ShardedVectors) -> None:
    text = json.dumps({"folder": vectors.folder.folder.name, "entries": vectors.entries})
    data = group.create_dataset("vectors_shards", data=text, dtype=h5py.string_dtype())
    data.attrs["description"] = "JSON: eigenvectors (k, n) in shards of entries, beside this file"


def _write_alignment(group: h5py.Group, found: Alignment) -> None:
    group.attrs["num_samples"], group.attrs["seed"] = found.num_samples, found.seed
    size = _array(group, "batch_sizes", found.batch_sizes, "samples in a minibatch", "1")
    value = _array(group, "eigenvalues", found.eigenvalues, "of the top eigenvectors", "eigenvalue")
    size.make_scale("batch_size")
    value.make_scale("eigenpair")
    residuals = _array(group, "residuals", found.residuals, "|H v - lambda v|", "eigenvalue")
    _axes(residuals, eigenpair=value)
    meaning = {
        "alignment": ("g^T H g / |g|^2 of a minibatch's gradient g", "eigenvalue"),
        "gradient_norm": ("|g|", "loss per unit of the parameters"),
        "captured": ("part of |g|^2 in the span of the eigenvectors", "1"),
        "cosine": ("<g, v> / |g| for each eigenvector v", "1"),
    }
    for name, (description, units) in meaning.items():
        data = _array(group, name, getattr(found, name), description, units)
        _axes(data, batch_size=size, minibatch=None, **_third(data, eigenpair=value))


def _third(data: h5py.Dataset, **scale: h5py.Dataset) -> dict[str, h5py.Dataset]:
    return scale if data.ndim == 3 else {}


def _write_values(group: h5py.Group, values: Mapping) -> None:
    for name, value in values.items():
        array = np.asarray(value)
        if array.dtype.kind not in "biufcU":
            raise InputError(
                f"cannot store {name!r}, a {type(value).__name__}; expected a number, a text or "
                "an array of them"
            )
        _array(group, _name(name), array, "a value by name")


def _array(
    group: h5py.Group,
    name: str,
    array: object,
    description: str,
    units: str | None = None,
    compress: bool = False,
) -> h5py.Dataset:
    array = np.asarray(array)
    dtype = h5py.string_dtype() if array.dtype.kind == "U" else array.dtype
    # Checksums need chunks, and chunks need entries; HDF5 keeps variable texts out of chunks.
    checked = array.size > 0 and array.ndim > 0 and array.dtype.kind != "U"
    options = {"compression": "gzip", "shuffle": True} if checked and compress else {}
    options["fletcher32"] = checked or None
    data = group.create_dataset(name, data=array.astype(dtype), **options)
    data.attrs["description"] = description
    if units:
        data.attrs["units"] = units
    return data


def _axes(data: h5py.Dataset, **scales: h5py.Dataset | None) -> None:
    for dimension, (name, scale) in zip(data.dims, scales.items()):
        dimension.label = name
        if scale is not None:
            dimension.attach_scale(scale)


def to_json(name: str, value: object) -> str:
    try:
        return json.dumps({} if value is None else value, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be stored as JSON: {one_line(error)}") from None


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} is not a number, text, list or dict")


# -- reading ---------------------------------------------------------------------------------


def check_schema(file: h5py.File) -> None:
    if file.attrs.get("schema") != SCHEMA:
        raise InputError("is an HDF5 file, but was not written by hessian_spectrum")
    version = int(file.attrs["schema_version"])
    if version > SCHEMA_VERSION:
        raise InputError(
            f"has schema version {version}, and this hessian_spectrum reads up to "
            f"{SCHEMA_VERSION}; update it"
        )


def _read_density(group: h5py.Group) -> SpectralMeasure:
    names = ("nodes", "weights", "residuals", "certified")
    arrays = {name: _data(group, name)[()] for name in names}
    rules = _read_rules(group["rules"]) if "rules" in group else ()
    try:
        known = {"rules": rules, "scatter": float(group.attrs.get("scatter", 1.0))}
        if "without_groups" in group:
            parts = group["without_groups"]
            names = ("nodes", "weights", "shares")
            known["replicates"] = Replicates(*(_data(parts, name)[()] for name in names))
        return SpectralMeasure(n=int(group.attrs["n"]), **known, **arrays)
    except InputError as error:
        raise InputError(f"is damaged: {group.name}: {error}") from None


def _read_rules(group: h5py.Group) -> tuple[BlockRule, ...]:
    names = ("t", "first", "out", "shapes", "tolerance")
    t, first, out, shapes, tolerance = (_data(group, name)[()] for name in names)
    return tuple(
        BlockRule(t[i, :n, :n], first[i, :b, :b1], out[i, :bm, :after], int(m), float(tolerance[i]))
        for i, (n, b, b1, bm, after, m) in enumerate(shapes)
    )


def _read_eigenpairs(group: h5py.Group) -> EigenPairs:
    arrays = {name: _data(group, name)[()] for name in ("values", "residuals", "converged")}
    vectors = None
    if "vectors" in group:
        vectors = StoredVectors(_data(group, "vectors"))
    elif "vectors_shards" in group:
        shards = json.loads(read_text(group, "vectors_shards"))
        folder = Path(group.file.filename).parent / Path(shards["folder"]).name
        vectors = ShardedVectors(ShardFolder(folder), shards["entries"])
    k = arrays["values"].shape
    shapes = {name: array.shape for name, array in arrays.items()}
    if (
        len(k) != 1
        or set(shapes.values()) != {k}
        or (vectors is not None and vectors.shape[:1] != k)
    ):
        raise InputError(
            f"is damaged: {group.name} has shapes {shapes} that do not belong together"
        )
    lower = group.attrs.get("num_lower")
    return EigenPairs(**arrays, vectors=vectors, num_lower=None if lower is None else int(lower))


def _read_alignment(group: h5py.Group) -> Alignment:
    arrays = {name: _data(group, name)[()] for name in ARRAYS}
    try:
        return Alignment(
            num_samples=int(group.attrs["num_samples"]), seed=int(group.attrs["seed"]), **arrays
        )
    except InputError as error:
        raise InputError(f"is damaged: {group.name}: {error}") from None


def _read_values(group: h5py.Group) -> dict:
    return {name: _value(_data(group, name)) for name in group}


def _value(data: h5py.Dataset) -> object:
    if h5py.check_string_dtype(data.dtype):
        value = data.asstr()[()]
        return value if isinstance(value, str) else value.astype(str)
    value = data[()]
    return value if isinstance(value, np.ndarray) else value.item()


def _data(group: h5py.Group, name: str) -> h5py.Dataset:
    data = group.get(name)
    if not isinstance(data, h5py.Dataset):
        raise InputError(f"is damaged: the data set {group.name.rstrip('/')}/{name} is missing")
    return data


def read_text(group: h5py.Group, name: str) -> str:
    return _data(group, name).asstr()[()]


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


WRITERS = {
    "density": _write_density,
    "eigenpairs": _write_eigenpairs,
    "alignment": _write_alignment,
    "values": _write_values,
}
READERS = {
    "density": _read_density,
    "eigenpairs": _read_eigenpairs,
    "alignment": _read_alignment,
    "values": _read_values,
}
for kind, made in field_schema.KINDS.items():
    WRITERS[kind] = partial(field_schema.write, array=_array)
    READERS[kind] = partial(field_schema.read, made=made)
