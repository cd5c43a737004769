"""Files as an attacker, or a bad disk, would leave them: damages of each kind of file, seeded."""

import contextlib
import copy
import io
import itertools
import json
import math
import os
import re
import zipfile
import zlib

import h5py
import numpy as np

from hessian_spectrum.storage import file_seal, hdf5_schema
from hessian_spectrum.storage.manifest_schema import CHECKSUM, checksum

MANY = 2 * 10**8  # numbers that a few bytes declare: 1.6 GB

# Values of wrong types, and of types that may be right but sizes that are not.
WRONG = [
    *(None, True, "x", "../../victim", "a\nb", "\x1b[2J", [], [[]], {}, {"a": 1}, math.nan),
    *(-math.inf, -1, -1.5, 10**30, 10**9, [[[[[[1]]]]]], ["1"], {"file": 5, "sha256": None}),
]
NUMBERS = (int, float)


# -- bytes -----------------------------------------------------------------------------------------


def flip(path, rng, limit=None):
    content = bytearray(path.read_bytes())
    content[rng.integers(limit or len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def truncate(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))])


def flip_small(path, rng):
    """A bit of an attribute, a number or a text, or beside one: not in a chunk of an array."""
    content, found = bytearray(path.read_bytes()), []
    for name in (b"scatter", b"schema_version", b"finished", b"created", b"num_lower"):
        at = content.find(name)
        found += range(at, at + 64) if at >= 0 else []
    with h5py.File(path) as file:
        for name in ("values/main/loss", "curve/main/about", "plan"):
            if name in file and file[name].id.get_offset():
                at = file[name].id.get_offset()
                found += range(at, at + 8)
    for text in (b'"threads"', b'"seconds"', b'"num_steps"', b'"path"'):
        at = content.find(text)
        found += range(at, at + 16) if at >= 0 else []
    content[found[rng.integers(len(found))]] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def flip_digit(path, rng):
    """The first digit of a number in a JSON text becomes another one: still a number."""
    content = bytearray(path.read_bytes())
    starts = [match.start() for match in re.finditer(rb"\d\.\d", content)]
    content[starts[rng.integers(len(starts))]] ^= 1
    path.write_bytes(content)


# -- JSON ------------------------------------------------------------------------------------------


def places(node, path=()):
    """The path of every value in a tree, the tree itself excepted."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def at(tree, place):
    for key in place:
        tree = tree[key]
    return tree


def spoiled(tree, rng, is_free):
    """A copy of ``tree`` where one value is missing, or is a wrong one.

    Args:
        is_free: whether another number at this place would be as good: nobody can tell.
    """
    every = [place for place in places(tree) if len(place) < 4]
    place = every[rng.integers(len(every))]
    tree = copy.deepcopy(tree)
    parent, old = at(tree, place[:-1]), at(tree, place)
    wrong = [value for value in WRONG if not (isinstance(old, NUMBERS) and is_free(place, value))]
    if rng.integers(8) == 0:
        del parent[place[-1]]
    else:
        parent[place[-1]] = wrong[rng.integers(len(wrong))]
    return tree, place


def shown(tree, place):
    """What stands at a place now, for messages."""
    try:
        return f"{at(tree, place)!r}"[:60]
    except (KeyError, IndexError):
        return "missing"


def gaps(manifest):
    """Manifests whose shards do not hold what they should: zeros would be read, or too much."""

    def changed(change):
        tree = copy.deepcopy(manifest)
        change(tree["basis"])
        return tree

    return {
        "no shard": changed(lambda basis: basis.clear()),
        "one shard less": changed(lambda basis: basis.pop()),
        "twice": changed(lambda basis: basis.append(basis[0])),
        "later rows": changed(lambda basis: basis[-1].update(rows=[1, basis[-1]["rows"][1] + 1])),
        "later entries": changed(
            lambda basis: basis[-1].update(index=[1, basis[-1]["index"][1] + 1])
        ),
        "fewer entries": changed(lambda basis: basis[-1].update(index=[0, 1])),
        "backwards": changed(lambda basis: basis[-1].update(rows=basis[-1]["rows"][::-1])),
    }


def write_manifest(folder, manifest, signed):
    """As both manifests, so that there is no earlier one to go back to."""
    manifest = {key: value for key, value in manifest.items() if key != CHECKSUM}
    if signed:
        manifest[CHECKSUM] = checksum(json.loads(json.dumps(manifest)))
    for name in ("manifest.json", "manifest.previous.json"):
        (folder / name).write_text(json.dumps(manifest))


# -- HDF5 ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def edited(path, signed=True):
    """The open file; its checksum is made anew, as somebody would who knows how, or left out."""
    with h5py.File(path, "r+") as file:
        file.attrs.pop("checksum", None)
        yield file
        if signed:
            with contextlib.suppress(Exception):
                hdf5_schema.sign(file)
    (seal if signed else unseal)(path)


def seal(path):
    content = bytearray(path.read_bytes())
    file_seal.seal(memoryview(content))
    path.write_bytes(content)


def unseal(path):
    with path.open("r+b") as file:
        file.write(bytes(file_seal.SIZE))


def _replaced(file, name, **options):
    attributes = dict(file[name].attrs)
    del file[name]
    return file.create_dataset(name, **options), attributes


def of_shape(name, shape, **options):
    """A data set of another shape, of which nothing is stored."""

    def damage(file, path):
        _replaced(file, name, shape=shape, dtype="f8", **options)

    return damage


def four_of_five(file, path):
    """The fifth would be read as zero."""
    values = file["curve/main/t"][()]
    data, _ = _replaced(file, "curve/main/t", shape=(5,), dtype="f8", chunks=(1,))
    data[:4] = values[:4]


def packed_zeros(name, shape, chunks, levels=(9, 9)):
    """Chunks of zeros that one short stream stands for, by deflate, or deflate twice over."""

    def damage(file, path):
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk(chunks)
        packed = bytes(8 * math.prod(chunks))
        for level in levels:
            made.set_deflate(level)
            packed = zlib.compress(packed, level)
        del file[name]
        space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * len(shape))
        data = h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F64LE, space, made)
        corners = (range(0, length, chunk) for length, chunk in zip(shape, chunks))
        for corner in itertools.product(*corners):
            data.write_direct_chunk(corner, packed)

    return damage


def external_storage(name, count):
    def damage(file, path):
        other = path.with_name("raw.bin")
        other.write_bytes(bytes(8 * count))
        _replaced(file, name, shape=(count,), dtype="f8", external=[(str(other), 0, 8 * count)])

    return damage


def virtual(name, count):
    def damage(file, path):
        layout = h5py.VirtualLayout((count,), "f8")
        layout[:] = h5py.VirtualSource(str(path), "nowhere", (count,))
        del file[name]
        file.create_virtual_dataset(name, layout)

    return damage


def link(name, kind):
    def damage(file, path):
        del file[name]
        victim = path.with_name("victim.h5")
        file[name] = h5py.ExternalLink(str(victim), "x") if kind == "external" else kind

    return damage


def put(name, value):
    def damage(file, path):
        del file[name]
        file[name] = value

    return damage


def attribute(name, value):
    def damage(file, path):
        group, _, attribute = name.rpartition("/")
        file[group or "/"].attrs[attribute] = value

    return damage


def vectors_in(text):
    def damage(file, path):
        del file["eigenpairs/main/vectors"]
        file["eigenpairs/main/vectors_shards"] = text

    return damage


def label(kind, name):
    def damage(file, path):
        file.move(f"{kind}/main", f"{kind}/{name}")

    return damage


def loop(group):
    def damage(file, path):
        file[f"{group}/self"] = file[group]

    return damage


def long_texts(name, count):
    """Entries that refer to one text: its length times their number are read."""

    def damage(file, path):
        _replaced(file, name, shape=(count,), dtype=h5py.string_dtype())
        file[name][0] = "x" * 50_000
        file[name].id.get_offset()
        first = None
        content = file[name]
        raw = content.id.get_offset()
        file.flush()
        with path.open("r+b") as plain:
            plain.seek(raw)
            first = plain.read(16)
            plain.seek(raw)
            plain.write(first * count)

    return damage


def crafted():
    """Damages of a file with a density, eigenpairs and a curve, by name."""
    nodes, main = "density/main/nodes", "density/main"
    found = {
        "one missing chunk": of_shape("curve/main/t", (5,), chunks=(2,)),
        "four of five chunks": four_of_five,
        "other file": external_storage(nodes, 5),
        "virtual": virtual(nodes, 5),
        "external link": link(nodes, "external"),
        "soft link": link(nodes, h5py.SoftLink("/density/main/residuals")),
        "soft group": link(main, h5py.SoftLink("/density")),
        "hard link to one": put("curve/main/distance", None),
        "texts for nodes": put(nodes, np.array(["a", "b"], dtype=object)),
        "flags for nodes": put(nodes, np.array([True, False])),
        "complex": put(nodes, np.array([1j])),
        "empty space": put(nodes, h5py.Empty("f8")),
        "reals for certified": lambda file, path: put(
            "density/main/certified", file["density/main/certified"][()].astype(float)
        )(file, path),
        "numbers for config": put("config", 5),
        "array of texts for config": put("config", np.array(["{}"] * 3, dtype=object)),
        "list for config": put("config", "[1, 2]"),
        "list for plan": put("plan", "[]"),
        "text for provenance": put("provenance", '"x"'),
        "deep config": put("config", "[" * 5000 + "]" * 5000),
        "deep plan": put("plan", '{"a":' * 900 + "1" + "}" * 900),
        "long number": put("plan", '{"threads": ' + "9" * 5000 + "}"),
        "about in a list": put("curve/main/about", "[]"),
        "ends of texts": put("curve/main/about", '{"ends": ["a", null]}'),
        "one end": put("curve/main/about", '{"ends": 3}'),
        "samples in words": put("curve/main/about", '{"num_samples": "many", "n": 3}'),
        "a recipe of no kind": put("curve/main/about", '{"directions": [{}]}'),
        "a recipe in words": put("curve/main/about", '{"directions": ["x"]}'),
        "values as data": put("curve/main/values", 3.0),
        "a group in values": lambda file, path: file.create_group("curve/main/values/inner"),
        "no loss": lambda file, path: file["curve/main/values"].pop("loss"),
        "labels in lines": label("density", "a\nb"),
        "labels that steer a terminal": label("density", "\x1b[2J"),
        "a label of dots": lambda file, path: file.create_group("density/..."),
        "a label for data": lambda file, path: file.create_dataset("density/other", data=3),
        "a kind as data": lambda file, path: (file.pop("curve"), file.update({"curve": 3})),
        "n is a list": attribute(f"{main}/n", [1] * 100),
        "n is a text": attribute(f"{main}/n", "many"),
        "scatter is no number": attribute(f"{main}/scatter", math.nan),
        "scatter is negative": attribute(f"{main}/scatter", -1.0),
        "schema version in words": attribute("/schema_version", "one"),
        "schema version in a list": attribute("/schema_version", [1, 2]),
        "created in words": attribute("/created", "yesterday"),
        "created as a number": attribute("/created", 5),
        "num_lower is large": attribute("eigenpairs/main/num_lower", 10**9),
        "vectors elsewhere": vectors_in('{"folder": "../..", "entries": [{"file": 3}]}'),
        "vectors nowhere": vectors_in('{"folder": "x", "entries": []}'),
        "shapes beyond": put("density/main/rules/shapes", np.array([[10**9] * 6])),
        "shapes below": put("density/main/rules/shapes", np.array([[-1] * 6])),
        "shapes of texts": put("density/main/rules/shapes", np.array(["a"], dtype=object)),
        "few shapes": put("density/main/rules/shapes", np.array([[1, 1]])),
    }
    found["hard link to one"] = lambda file, path: (
        file.pop("curve/main/distance"),
        file.update({"curve/main/distance": file["curve/main/t"]}),
    )
    return found


def bombs():
    """Damages of the same file: a few bytes declare ``MANY`` numbers, or as much text."""
    nodes, t = "density/main/nodes", "density/main/rules/t"
    return {
        "fill value": of_shape(nodes, (MANY,), fillvalue=0.5),
        "fill value of chunks": of_shape(nodes, (MANY,), chunks=(1000,)),
        "weights of many probes": of_shape("density/main/weights", (MANY // 5, 5)),
        "values by name": of_shape("values/main/loss", (MANY,)),
        "packed twice": packed_zeros(t, (1, 14_000, 14_000), (1, 1400, 1400)),
        "a large chunk": packed_zeros(nodes, (5,), (MANY // 10,)),
        "loop": loop("density/main"),
        "one text, many entries": long_texts("values/main/names", 30_000),
    }


# -- archives of arrays ----------------------------------------------------------------------------


def npz(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def array_bytes(shape, dtype="<f8", content=b"", version=b"\x01\x00"):
    """An array's header that declares a shape, and some bytes."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + text + content


def labels(count):
    file = io.BytesIO()
    np.save(file, np.zeros(count, dtype=np.int64))
    return file.getvalue()


def hostile_archives():
    large, packed = MANY // 16, {"compression": zipfile.ZIP_DEFLATED}
    return {
        "declared": lambda path: npz(
            path, {"images": array_bytes((large, 4, 4)), "labels": labels(3)}
        ),
        "declared by both": lambda path: npz(
            path, {"images": array_bytes((large, 4, 4)), "labels": array_bytes((large,), "<i8")}
        ),
        "negative": lambda path: npz(
            path, {"images": array_bytes((-1, 4, 4)), "labels": array_bytes((-1,), "<i8")}
        ),
        "objects": lambda path: npz(
            path, {"images": array_bytes((3, 4, 4), "|O", b"x" * 400), "labels": labels(3)}
        ),
        "a number for a shape": lambda path: npz(
            path, {"images": array_bytes(5), "labels": labels(3)}
        ),
        "a long header": lambda path: npz(
            path,
            {
                "images": array_bytes((3, 4, 4), "<f8" + " " * 10**6, b"", b"\x02\x00"),
                "labels": labels(3),
            },
            **packed,
        ),
        "no array": lambda path: npz(path, {"images": b"hello", "labels": labels(3)}),
        "other packing": lambda path: npz(
            path,
            {"images": array_bytes((large, 4, 4), content=bytes(10**6)), "labels": labels(3)},
            compression=zipfile.ZIP_LZMA,
        ),
        "large labels": lambda path: np.savez(
            path, images=np.zeros((3, 4, 4)), labels=np.full(3, 2**63, dtype=np.uint64)
        ),
    }


def hostile_arrays():
    """Of HDF5 files of a user."""

    def write(path, **options):
        with h5py.File(path, "w") as file:
            file.create_dataset("images", **options)
            file["labels"] = np.zeros(3, dtype=np.int64)

    def both(path, **options):
        with h5py.File(path, "w") as file:
            shape = (MANY // 16, 4, 4)
            file.create_dataset("images", shape, "f8", **options)
            file.create_dataset("labels", shape[:1], "i8", **options)

    def linked(path, kind):
        with h5py.File(path, "w") as file:
            file["images"] = kind
            file["labels"] = np.zeros(3, dtype=np.int64)

    def packed(path):
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = 0, np.zeros(3, dtype=np.int64)
            packed_zeros("images", (3, 8000, 8000), (1, 1000, 8000))(file, path)

    return {
        "packed twice": packed,
        "declared": lambda path: both(path),
        "declared in chunks": lambda path: both(path, chunks=True),
        "external link": lambda path: linked(path, h5py.ExternalLink("victim.h5", "x")),
        "soft link": lambda path: linked(path, h5py.SoftLink("/labels")),
        "a large chunk": lambda path: write(
            path,
            shape=(3, 4, 4),
            maxshape=(None, 4, 4),
            chunks=(MANY // 160, 4, 4),
            dtype="f8",
            compression="gzip",
        ),
        "references": lambda path: write(path, shape=(3, 4, 4), dtype=h5py.ref_dtype),
        "texts": lambda path: write(path, shape=(3, 4, 4), dtype=h5py.string_dtype()),
        "no space": lambda path: write(path, data=h5py.Empty("f8")),
    }


# -- what must not change --------------------------------------------------------------------------


def snapshot(folder):
    """Every file, link and folder below, with its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found
