"""The HDF5 schema: the kinds of results in a result file, their keys, and its version.

::

    /                       attributes schema, schema_version, created (UTC), finished, checksum
    /config, plan, provenance       JSON texts
    /density/LABEL          attributes n, scatter; nodes, weights, residuals, certified, probe
    /density/LABEL/without_groups   nodes, weights, shares without each group of samples, if any
    /density/LABEL/rules    the recurrences' T, first, out, padded; shapes, tolerance
    /density/LABEL/drawn    of a finished run: the density as drawn; attribute sigma2; t, values,
                            lower, upper (95 % interval)
    /eigenpairs/LABEL       attribute num_lower; values, residuals, converged, vectors (or
                            vectors_shards: JSON)
    /alignment/LABEL        attributes num_samples, seed; alignment, gradient_norm, cosine, captured
                            of minibatches' gradients; batch_sizes, eigenvalues, residuals
    /noise/LABEL            attributes centered, num_parameters, num_samples, seed; minibatches'
                            gradients, eigenvalues, overlap and traces of H and C
    /curve, surface, directions, trajectory, track, functional, asymmetry, averaging,
     barriers, critical/LABEL     a data set for each field of the result; about: JSON
    /values/LABEL           named numbers, texts and arrays: {"loss": 0.3, "accuracy": 0.9}

The fields of each result's dataclass describe its data sets, and result_groups.py writes and reads
them. Axes are HDF5 dimension scales, such as "node", "probe", "eigenpair", "parameter" and
"batch_size"; data sets carry ``description`` and, where they have them, ``units``. Arrays carry
Fletcher-32 checksums, and ``checksum`` is one of everything but eigenvectors (hdf5_checksum.py);
files of earlier versions have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.analyses.alignment_result import Alignment
from hessian_spectrum.analyses.noise_result import Noise
from hessian_spectrum.landscape.results import (
    Asymmetry,
    AveragingBias,
    Barriers,
    CriticalPoints,
    Curve,
    DirectionVectors,
    FunctionalDistances,
    Surface,
    Track,
    Trajectory,
)
from hessian_spectrum.spectral.drawn import DrawnDensity
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.storage.hdf5_checksum import CHECKSUM, checksum, read_attribute
from hessian_spectrum.storage.hdf5_data import require_name
from hessian_spectrum.storage.hdf5_limits import require_own
from hessian_spectrum.storage.result_groups import read_result, write_result
from hessian_spectrum.storage.stored_vectors import MAX_VECTOR_BYTES as MAX_VECTOR_BYTES

SCHEMA, SCHEMA_VERSION = "hessian_spectrum", 1
DEFAULT_LABEL = "main"
DRAWN = "drawn"  # SpectralMeasure's property of that name
TEXTS = ("config", "plan", "provenance")

Result = (
    SpectralMeasure
    | EigenPairs
    | Alignment
    | Noise
    | Curve
    | Surface
    | DirectionVectors
    | Trajectory
    | Track
    | FunctionalDistances
    | Asymmetry
    | AveragingBias
    | Barriers
    | CriticalPoints
    | Mapping[str, Any]
)
KINDS: dict[str, type] = {
    "density": SpectralMeasure,
    "eigenpairs": EigenPairs,
    "alignment": Alignment,
    "noise": Noise,
    "values": dict,
    "curve": Curve,
    "surface": Surface,
    "directions": DirectionVectors,
    "trajectory": Trajectory,
    "track": Track,
    "functional": FunctionalDistances,
    "asymmetry": Asymmetry,
    "averaging": AveragingBias,
    "barriers": Barriers,
    "critical": CriticalPoints,
}


# -- keys ------------------------------------------------------------------------------------


def by_key(results: tuple[Result, ...], labelled: Mapping[str, Result]) -> dict[str, Result]:
    """Results by their keys in the file, such as "density" or "eigenpairs/early".

    Raises:
        InputError: two results have the same key, a label is of another kind than its result, or
            something cannot be stored.
    """
    stored: dict[str, Result] = {}
    unlabelled: list[tuple[str | None, Result]] = [(None, result) for result in results]
    for label, result in [*unlabelled, *labelled.items()]:
        kind = _kind(result)
        key = kind if label is None else label
        if key.partition("/")[0] not in KINDS:
            key = f"{kind}/{require_name(key)}"
        if key.partition("/")[0] != kind:
            raise InputError(f"label {label!r} names another kind than its result, {kind}")
        key = join_key(*split_key(key))
        if key in stored:
            raise InputError(
                f"two results for {key!r}; give them labels, as in early=..., late=..."
            )
        stored[key] = result
    return stored


def _kind(result: object) -> str:
    for kind, made in KINDS.items():
        if isinstance(result, made):
            return kind
    if isinstance(result, Mapping):
        return "values"
    raise InputError(
        f"cannot store a {type(result).__name__}; expected a SpectralMeasure, EigenPairs, an "
        "Alignment, another result of this package, or a dict of named numbers, texts and arrays"
    )


def split_key(key: str) -> tuple[str, str]:
    """Kind and label: "density" -> ("density", "main")."""
    kind, _, label = key.partition("/")
    return kind, require_name(label or DEFAULT_LABEL)


def join_key(kind: str, label: str) -> str:
    """The key of a kind and a label, of which "main" is left out."""
    return kind if label == DEFAULT_LABEL else f"{kind}/{label}"


# -- the file --------------------------------------------------------------------------------


def check_schema(file: h5py.File) -> None:
    """InputError unless the file was written by this package, in a version that can be read."""
    if "schema" not in file.attrs or read_attribute(file, "schema") != SCHEMA:
        raise InputError("is an HDF5 file, but was not written by hessian_spectrum")
    version = int(read_attribute(file, "schema_version"))
    if version > SCHEMA_VERSION:
        raise InputError(
            f"has schema version {version}, and this hessian_spectrum reads up to "
            f"{SCHEMA_VERSION}; update it"
        )


def require_limits(file: h5py.File, size: int) -> None:
    """InputError where the file of ``size`` bytes declares what it does not hold."""
    require_own(file, size, (*TEXTS, *KINDS))


def sign(file: h5py.File) -> None:
    """Store the checksum of a file that is otherwise complete."""
    file.attrs[CHECKSUM] = _checksum(file)


def check_signature(file: h5py.File) -> None:
    """InputError where the file has a checksum, and that of something else."""
    if CHECKSUM in file.attrs and read_attribute(file, CHECKSUM) != _checksum(file):
        raise InputError("is damaged: its checksum is not that of its content")


def _checksum(file: h5py.File) -> str:
    return checksum(file, (*TEXTS, *KINDS), _is_eigenvectors)


def _is_eigenvectors(path: str) -> bool:
    return path.startswith("/eigenpairs/") and path.endswith("/vectors")


def write(file: h5py.File, key: str, result: Result, finished: bool) -> None:
    """Write one result into a group of its own.

    Args:
        finished: also write what other programs need to plot it. It takes too long for every
            checkpoint of a run.

    Raises:
        InputError: it holds something that cannot be stored.
    """
    kind, label = split_key(key)
    group = file.create_group(f"{kind}/{label}")
    write_result(group, result)
    if isinstance(result, SpectralMeasure) and finished:
        write_result(group.create_group(DRAWN), result.drawn)


def read(file: h5py.File) -> dict[str, Any]:
    """All results by their keys, kind by kind, "main" first; eigenvectors stay on disk.

    Raises:
        InputError: something is missing, or does not belong together.
    """
    found = {}
    for kind, made in KINDS.items():
        for label in sorted(file.get(kind, ()), key=lambda label: (label != DEFAULT_LABEL, label)):
            group = file[kind][require_name(label)]
            if not isinstance(group, h5py.Group):
                raise InputError(f"is damaged: {group.name} is no group")
            result = read_result(group, made)
            if isinstance(result, EigenPairs):
                _require_equal_counts(group, result)
            if isinstance(result, SpectralMeasure) and DRAWN in group:
                # Into the cache of the property: a copy of the run need not compute it again.
                vars(result)[DRAWN] = read_result(group[DRAWN], DrawnDensity)
            found[join_key(kind, label)] = result
    return found


def _require_equal_counts(group: h5py.Group, pairs: EigenPairs) -> None:
    arrays = {name: getattr(pairs, name) for name in ("values", "residuals", "converged")}
    shapes = {name: array.shape for name, array in arrays.items()}
    k = pairs.values.shape
    vectors_fit = pairs.vectors is None or pairs.vectors.shape[:1] == k
    lower_fits = pairs.num_lower is None or pairs.num_lower <= len(pairs.values)
    if len(k) != 1 or set(shapes.values()) != {k} or not vectors_fit or not lower_fits:
        raise InputError(
            f"is damaged: {group.name} has shapes {shapes} that do not belong together"
            f"{'' if lower_fits else f', and num_lower={pairs.num_lower}'}"
        )
