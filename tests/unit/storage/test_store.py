"""The run file, its shards and its lock: what is written is read back, and nothing is lost."""

import dataclasses
import itertools
import json
import os
import socket
import time

import h5py
import numpy as np
import pytest
from hostile_files import unseal
from locks import content, dead_pid
from safetensors import SafetensorError

from hessian_spectrum._core import atomic
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.distributed.world import World
from hessian_spectrum.landscape.results import Curve
from hessian_spectrum.spectral.eigenpairs import EigenPairs
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.storage import hdf5_schema, run_file, shards, stored_vectors, writer_lock
from hessian_spectrum.storage.krylov_state import RecurrenceStore
from hessian_spectrum.storage.shards import ShardedVectors, ShardFolder
from hessian_spectrum.storage.writer_lock import WriterLock

rng = np.random.default_rng(7)


def some_measure(s=25, num_probes=3):
    weights = rng.random((num_probes, s))
    weights /= weights.sum(axis=1, keepdims=True)
    nodes = np.sort(rng.normal(size=s)) * 1e-8
    return SpectralMeasure(nodes, weights, 4321, rng.random(s), rng.random(s) > 0.5)


def some_pairs(k=4, n=300, dtype=np.float32, vectors=True):
    rows = rng.normal(size=(k, n)).astype(dtype) if vectors else None
    return EigenPairs(np.sort(rng.normal(size=k)), rng.random(k), rng.random(k) > 0.5, rows)


def assert_identical(got, expected):
    for field in dataclasses.fields(expected):
        a, b = (np.asarray(getattr(x, field.name)) for x in (got, expected))
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), field.name


def only(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


# -- round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_saved_is_read_back_bit_for_bit(path, dtype):
    measure, early, pairs = some_measure(), some_measure(s=1, num_probes=1), some_pairs(dtype=dtype)
    run_file.save(
        path, measure, pairs, early=early, **{"eigenpairs/late": some_pairs(vectors=False)}
    )
    with run_file.open(path) as run:
        assert list(run) == ["density", "density/early", "eigenpairs", "eigenpairs/late"]
        assert_identical(run["density"], measure)
        assert_identical(run["density/early"], early)
        assert_identical(run["eigenpairs"], pairs)
        assert run["eigenpairs/late"].vectors is None
        assert run["density/main"] is run["density"]
        assert isinstance(run["density"].n, int)


def test_named_values_keep_their_types(path):
    values = {
        "loss": 0.1,
        "steps": 7,
        "done": True,
        "note": "größer",
        "grid": np.arange(6.0).reshape(2, 3),
        "epochs": np.array([1, 5]),
        "empty": np.zeros((0, 3), np.float32),
        "names": np.array(["a", "bcd"]),
        "nan": float("nan"),
    }
    run_file.save(path, initial=values)
    got = run_file.open(path)["values/initial"]
    assert set(got) == set(values)
    for name, value in values.items():
        assert type(got[name]) is type(value), name
        np.testing.assert_array_equal(got[name], value)
        assert np.asarray(got[name]).dtype == np.asarray(value).dtype


def test_records_are_kept_even_beyond_the_limit_of_hdf5_attributes(path):
    @dataclasses.dataclass
    class Config:
        lr: float
        files: list

    config = Config(0.1, [f"file-{i}" for i in range(20_000)])
    plan = {"batch": np.int64(512), "seconds": np.array([1.5, 2.5]), "path": path}
    run_file.save(path, some_measure(), config=config, plan=plan, finished=False)
    run = run_file.open(path)
    assert run.config == dataclasses.asdict(config)
    assert run.plan == {"batch": 512, "seconds": [1.5, 2.5], "path": str(path)}
    assert run.provenance == {} and run.finished is False and run.path == path
    assert abs(time.time() - run.created.timestamp()) < 60
    assert repr(run).startswith(f"<Run {path}: density; not finished, 20")


def test_a_run_can_be_copied_and_replaced_by_itself(path):
    measure, pairs = some_measure(), some_pairs()
    run_file.save(path, measure, pairs, x={"loss": 1.0})
    with run_file.open(path) as run:
        run_file.save(
            path, **run, y={"loss": 2.0}, overwrite=True
        )  # vectors come from the old file
    again = run_file.open(path)
    assert list(again) == ["density", "eigenpairs", "values/x", "values/y"]
    assert_identical(again["eigenpairs"], pairs)


def test_vectors_are_read_by_row_and_only_when_asked(path, monkeypatch):
    pairs = some_pairs()
    run_file.save(path, pairs)
    read = []
    row = stored_vectors.StoredVectors._row
    monkeypatch.setattr(
        stored_vectors.StoredVectors, "_row", lambda self, i: read.append(i) or row(self, i)
    )
    run = run_file.open(path)
    vectors = run["eigenpairs"].vectors
    assert read == [] and vectors.shape == (4, 300) and vectors.dtype == np.float32
    assert len(vectors) == 4 and len(run["eigenpairs"]) == 4
    np.testing.assert_array_equal(vectors[-1], pairs.vectors[-1])
    assert read == [3]
    mask = np.array([True, False, True, False])
    everything = slice(None)
    for key in [slice(0, 2), slice(None, None, -1), [2, 0], mask, (1, 5), (everything, 3), ..., ()]:
        np.testing.assert_array_equal(vectors[key], pairs.vectors[key])
    assert vectors[:0].shape == (0, 300)
    np.testing.assert_array_equal(vectors @ np.ones(300), pairs.vectors @ np.ones(300))
    with pytest.raises(IndexError):
        vectors[4]
    run.close()
    with pytest.raises(ValueError, match="closed"):
        vectors[0]


def test_vectors_outlive_a_run_that_nobody_holds(path):
    pairs = some_pairs()
    run_file.save(path, pairs)
    vectors = run_file.open(path)["eigenpairs"].vectors
    np.testing.assert_array_equal(vectors[1], pairs.vectors[1])


def test_axes_units_and_descriptions_are_in_the_file(path):
    run_file.save(path, some_measure(), some_pairs(), x={"loss": 1.0})
    axes = {
        "density/main/weights": ["probe", "node"],
        "density/main/residuals": ["node"],
        "density/main/certified": ["node"],
        "eigenpairs/main/residuals": ["eigenpair"],
        "eigenpairs/main/converged": ["eigenpair"],
        "eigenpairs/main/vectors": ["eigenpair", "parameter"],
    }
    units = {"nodes": "eigenvalue", "values": "eigenvalue", "residuals": "eigenvalue"}
    units |= {"weights": "1", "vectors": "1"}
    drawn = dict.fromkeys(("values", "lower", "upper"), "1 / eigenvalue") | {"t": "eigenvalue"}
    with h5py.File(path) as file:
        for name, labels in axes.items():
            dims = file[name].dims
            assert [dim.label for dim in dims] == labels, name
            assert [list(dim.keys()) for dim in dims if dim.label != "parameter"] == [
                [label] for label in labels if label != "parameter"
            ]
        nodes = file["density/main/nodes"]
        assert nodes.is_scale and file["density/main/weights"].dims[1][0] == nodes
        found = []
        file.visititems(lambda name, item: found.append((name, item)))
        for name, item in found:
            if isinstance(item, h5py.Dataset) and "/" in name:
                assert item.attrs["description"]
                *folders, last = name.split("/")
                known = drawn if "drawn" in folders else units
                if last in known:
                    assert item.attrs["units"] == known[last]


# -- refusals ----------------------------------------------------------------------------------


def refused(match, call, *args, error=InputError, **kwargs):
    with pytest.raises(error, match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_an_existing_file_is_refused_unless_overwritten(path):
    run_file.save(path, some_measure())
    before = path.read_bytes()
    refused(f"{path}: exists already", run_file.save, path, some_pairs())
    assert path.read_bytes() == before
    run_file.save(path, some_pairs(), overwrite=True)
    assert list(run_file.open(path)) == ["eigenpairs"]


def test_results_that_cannot_be_stored_are_refused(path, monkeypatch):
    measure, pairs = some_measure(), some_pairs()
    refused("two results for 'density'", run_file.save, path, measure, measure)
    refused("two results for 'density'", run_file.save, path, measure, main=measure)
    refused("another kind", run_file.save, path, **{"density/x": pairs})
    refused("without '/'", run_file.save, path, **{"a/b": pairs})
    refused("without '/'", run_file.save, path, **{"..": pairs})
    refused("cannot store a list", run_file.save, path, x=[1, 2])
    refused("cannot store 'f', a function", run_file.save, path, x={"f": refused})
    refused("cannot store 'big', a int", run_file.save, path, x={"big": 10**30})
    refused("config cannot be stored as JSON", run_file.save, path, measure, config={"f": refused})
    refused(
        r"vectors \(3, 300\)",
        run_file.save,
        path,
        dataclasses.replace(pairs, vectors=np.ones((3, 300))),
    )
    monkeypatch.setattr(stored_vectors, "MAX_VECTOR_BYTES", 4 * 300 * 4)
    refused("ShardedVectors", run_file.save, path, pairs)
    assert only(path.parent) == []


def test_a_failure_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    run_file.save(path, some_measure())
    before = path.read_bytes()

    class Unreadable:
        shape = (4, 300)

        def __getitem__(self, key):
            if isinstance(key, slice):
                return np.zeros((0, 300))
            raise OSError("lost the node")

    broken = dataclasses.replace(some_pairs(), vectors=Unreadable())
    with pytest.raises(OSError, match="lost the node"):
        run_file.save(path, broken, overwrite=True)
    assert path.read_bytes() == before and only(path.parent) == ["run.h5"]


def test_content_and_folder_are_synced_before_and_after_the_rename(path, monkeypatch):
    events = []
    sync, replace = atomic.sync, os.replace
    monkeypatch.setattr(atomic, "sync", lambda p: events.append(("sync", p)) or sync(p))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append(("replace", b)) or replace(a, b))
    run_file.save(path, some_measure())
    (_, temporary), *rest = events
    assert temporary.parent == path.parent and temporary != path
    assert rest == [("replace", path), ("sync", path.parent)]


def test_a_symbolic_link_is_followed(path, tmp_path):
    (tmp_path / "scratch").mkdir()
    path.symlink_to(tmp_path / "scratch" / "real.h5")
    run_file.save(path, some_measure())
    assert path.is_symlink() and only(tmp_path / "scratch") == ["real.h5"]


def test_output_is_checked_without_a_trace(path, tmp_path, monkeypatch):
    run_file.check_output(path)
    assert only(tmp_path) == []
    path.write_text("x")
    refused("exists already", run_file.check_output, path)
    run_file.check_output(path, overwrite=True)
    run_file.check_output(path, resume=True)
    assert path.read_text() == "x" and only(tmp_path) == ["run.h5"]
    refused("is a folder", run_file.check_output, tmp_path, overwrite=True)
    refused("does not exist", run_file.check_output, tmp_path / "no" / "run.h5")
    # /proc refuses new files to everybody, root included, whatever its permission bits say.
    refused("cannot write in /proc", run_file.check_output, "/proc/run.h5")


def test_an_absent_file_and_an_absent_key_say_what_there_is(path):
    refused(f"{path}: no such file", run_file.open, path, error=FileNotFoundError)
    run_file.save(path, some_measure(), early=some_measure())
    run = run_file.open(path)
    with pytest.raises(KeyError, match=r"no 'eigenpairs'; it holds 'density', 'density/early'"):
        run["eigenpairs"]
    assert "density" in run and "density/late" not in run and run.get("x/y/z") is None


def test_foreign_files_are_refused_by_name_with_the_reason(path, tmp_path):
    refused("is a folder", run_file.open, tmp_path)
    path.write_text("epoch,loss\n1,0.5\n")
    refused(f"{path}: is not an HDF5 file", run_file.open, path)
    path.write_bytes(b"")
    refused(f"{path}: is not an HDF5 file", run_file.open, path)
    with h5py.File(path, "w") as file:
        file["weights"] = np.ones(3)
    refused(f"{path}: .*not written by hessian_spectrum", run_file.open, path)


def test_a_file_may_be_open_in_h5py_too(path):
    """HDF5 refuses to open a file twice in a process with other settings of its locks."""
    run_file.save(path, some_measure())
    with h5py.File(path), run_file.open(path) as run:
        assert "density" in run
    with run_file.open(path), h5py.File(path, locking=False) as file:
        assert "density" in file


def test_a_newer_schema_is_refused(path):
    run_file.save(path, some_measure())
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = hdf5_schema.SCHEMA_VERSION + 1
    unseal(path)
    refused(f"{path}: has schema version 2, .*reads up to 1; update", run_file.open, path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_refused(path, share):
    run_file.save(path, some_measure(), some_pairs())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(f"{path}: is truncated or damaged", run_file.open, path)


def delete(name):
    def damage(file):
        del file[name]

    return damage


def shorten(name):
    def damage(file):
        values = file[name][:-1]
        del file[name]
        file[name] = values

    return damage


def make_complex(name):
    def damage(file):
        values = file[name][()]
        del file[name]
        file[name] = values.astype(complex)

    return damage


def attribute(name, value):
    def damage(file):
        group, _, attribute = name.rpartition("/")
        file[group].attrs[attribute] = value

    return damage


@pytest.mark.parametrize(
    "damage, reason",
    [
        *(
            (make_complex(name), f"{name} has complex numbers")
            for name in (
                *("density/main/nodes", "density/main/weights", "density/main/residuals"),
                *("density/main/drawn/values", "eigenpairs/main/values"),
                *("eigenpairs/main/residuals", "eigenpairs/main/vectors"),
                *("curve/main/t", "curve/main/values/loss"),
            )
        ),
        *(
            (attribute("density/main/n", n), "whole number, 1 or more")
            for n in (-5, 0, 2.5, True, 1j, "many")
        ),
        (attribute("density/main/scatter", 1j), "scatter=1j; expected a real number"),
        (attribute("eigenpairs/main/num_lower", -1), "whole number, 0 or more"),
        (delete("density/main/weights"), "data set /density/main/weights is missing"),
        (delete("config"), "data set /config is missing"),
        (delete("eigenpairs/main/residuals"), "data set /eigenpairs/main/residuals is missing"),
        (shorten("density/main/residuals"), "/density/main.*do not belong together"),
        (shorten("eigenpairs/main/converged"), "/eigenpairs/main.*do not belong together"),
        (shorten("eigenpairs/main/vectors"), "/eigenpairs/main.*do not belong together"),
        (lambda file: file["density/main"].attrs.pop("n"), "n"),
        (lambda file: file["plan"].write_direct(np.array(b"{", "O")), "."),
    ],
)
def test_damaged_content_is_refused(path, damage, reason):
    t = np.linspace(0, 1, 3)
    curve = Curve(t, t, {"loss": t}, {"path": "linear"})
    pairs = dataclasses.replace(some_pairs(), num_lower=2)
    run_file.save(path, some_measure(), pairs, curve)
    with h5py.File(path, "r+") as file:
        damage(file)
    unseal(path)
    refused(f"{path}: is damaged.*{reason}", run_file.open, path)


@pytest.mark.parametrize("name", ["density/main/weights", "eigenpairs/main/vectors"])
def test_a_flipped_bit_is_noticed(path, name):
    pairs = some_pairs()
    run_file.save(path, some_measure(), pairs)
    with h5py.File(path) as file:
        offset = file[name].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 9] ^= 1
    path.write_bytes(content)
    unseal(path)  # as of a file too large to be read twice
    refused(f"{path}: is damaged", lambda: np.asarray(run_file.open(path)["eigenpairs"].vectors))


# -- shards ------------------------------------------------------------------------------------


@pytest.fixture
def folder(path):
    return ShardFolder.beside(path)


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_shard_is_read_back_bit_for_bit(folder):
    arrays = {
        "Q": rng.normal(size=(3, 5)).astype(np.float32),
        "transposed": rng.normal(size=(3, 5)).T,
        "strided": np.arange(10)[::2],
        "scalar": np.array(2.5),
        "empty": np.zeros((2, 0)),
        "flags": np.array([True, False]),
    }
    entry = json.loads(json.dumps(folder.write("basis-r0", arrays, index=(0, np.int64(5)))))
    assert entry["index"] == [0, 5] and entry["shapes"]["transposed"] == [5, 3]
    assert entry["dtypes"]["Q"] == "float32"
    assert entry["bytes"] == (folder.folder / entry["file"]).stat().st_size
    got = folder.read(entry)
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def test_shards_are_never_written_twice(folder):
    first = folder.write("step-3", {"a": np.zeros(3)})
    second = folder.write("step-3", {"a": np.ones(3)})
    assert (folder.read(first)["a"] == 0).all() and (folder.read(second)["a"] == 1).all()
    refused("expected letters", folder.write, "../a", {"a": np.ones(3)})


@pytest.mark.parametrize("damage, reason", [(flip, "damaged"), (os.remove, "missing")])
def test_a_damaged_or_missing_shard_is_refused_by_name(folder, damage, reason):
    entry = folder.write("a", {"a": np.ones(3)})
    damage(folder.folder / entry["file"])
    refused(f"{entry['file']}: this shard is {reason}", folder.read, entry)


def commit(folder, step):
    entry = folder.write(f"step-{step}", {"a": np.full(3, step)})
    folder.commit({"step": step, "state": {"shards": [entry]}})
    return folder.folder / entry["file"]


def test_commits_keep_the_last_two_and_what_was_never_listed(folder):
    assert folder.manifest() is None
    early = folder.write("next-step-of-another-rank", {"a": np.ones(3)})
    files = [commit(folder, step) for step in range(4)]
    assert folder.manifest()["step"] == 3
    assert [file.exists() for file in files] == [False, False, True, True]
    assert (folder.folder / early["file"]).exists()
    (folder.folder / ".manifest.json.0123456789ab.tmp").write_text("left by a killed writer")
    folder.sweep()
    kept = {files[2].name, files[3].name, "manifest.json", "manifest.previous.json"}
    assert set(only(folder.folder)) == kept
    folder.remove()
    folder.remove()
    assert not folder.folder.exists()


@pytest.mark.parametrize(
    "damage", [flip, os.remove, lambda f: (f.parent / "manifest.json").write_text("{")]
)
def test_the_previous_manifest_stands_in_for_a_damaged_one(folder, damage):
    commit(folder, 0)
    commit(folder, 1)
    damage(commit(folder, 2))
    for _ in range(2):  # asking changes nothing
        with pytest.warns(UserWarning, match="going back to manifest.previous.json"):
            assert folder.manifest()["step"] == 1


@pytest.mark.parametrize(
    "damage", [os.remove, lambda f: (f.parent / "manifest.json").write_text("{")]
)
def test_a_commit_after_a_fallback_does_not_lose_the_good_manifest(folder, damage):
    commit(folder, 0)
    good = commit(folder, 1)
    damage(commit(folder, 2))
    flip(commit(folder, 3))  # and this one is damaged later: back to 1, not to 2
    assert good.exists()
    with pytest.warns(UserWarning):
        assert folder.manifest()["step"] == 1


def test_a_shard_stays_as_long_as_the_previous_manifest_lists_it(folder):
    basis = folder.write("basis", {"Q": np.ones(3)})
    for step in range(3):
        folder.commit({"step": step, "shards": [basis] if step < 2 else []})
    (folder.folder / "manifest.json").unlink()
    assert folder.manifest()["step"] == 1
    folder.commit({"step": 2})
    folder.commit({"step": 3})
    assert not (folder.folder / basis["file"]).exists()


def test_manifests_that_are_all_damaged_are_refused(folder):
    for file in [commit(folder, 0), commit(folder, 1)]:
        flip(file)
    refused("nothing to resume from", folder.manifest)


def sharded(folder, rows, bounds):
    return ShardedVectors(
        folder,
        [
            folder.write(f"v-{a}", {"vectors": rows[:, a:b]}, index=(a, b))
            for a, b in itertools.pairwise(bounds)
        ],
    )


def test_removing_the_shards_leaves_what_others_put_into_the_folder(folder):
    commit(folder, 0)
    commit(folder, 1)
    (folder.folder / ".manifest.json.0123456789ab.tmp").write_text("left by a killed writer")
    (folder.folder / "notes.txt").write_text("mine")
    (folder.folder / "pictures").mkdir()
    folder.remove()
    assert only(folder.folder) == ["notes.txt", "pictures"]
    assert folder.manifest() is None


def test_a_full_disk_is_an_error_of_the_system_and_leaves_no_part_of_a_shard(folder, monkeypatch):
    def full(arrays, path, metadata):
        path.write_bytes(b"the first half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    commit(folder, 0)
    before = only(folder.folder)
    monkeypatch.setattr(shards, "save_file", full)
    refused("No space left on device: .*-basis-", commit, folder, "basis", error=OSError)
    assert only(folder.folder) == before
    assert folder.manifest()["step"] == 0


@pytest.mark.parametrize("text", ["{}", '{"step": 3}', "[]"])
def test_a_manifest_that_tells_nothing_of_recurrences_is_refused(folder, text):
    recurrences = RecurrenceStore(folder.folder, World())
    assert recurrences.manifest() is None  # nothing was saved: that is not damage
    commit(folder, 0)
    (folder.folder / "manifest.json").write_text(text)
    before = only(folder.folder)
    refused(
        f"{folder.folder}: nothing to resume from: the manifest is damaged: .* missing",
        recurrences.manifest,
    )
    assert only(folder.folder) == before


def test_sharded_vectors_are_referenced_by_the_run_file(path, folder):
    pairs = some_pairs(n=11)
    vectors = sharded(folder, pairs.vectors, (0, 4, 8, 11))
    run_file.save(path, dataclasses.replace(pairs, vectors=vectors))
    got = run_file.open(path)["eigenpairs"]
    assert_identical(got, pairs)
    np.testing.assert_array_equal(got.vectors[2:0:-1, 3:9], pairs.vectors[2:0:-1, 3:9])
    flip(folder.folder / vectors.entries[1]["file"])
    refused("damaged", lambda: run_file.open(path)["eigenpairs"].vectors[0])


def test_sharded_vectors_must_cover_all_entries(folder):
    vectors = sharded(folder, np.ones((2, 11)), (0, 4, 8, 11))
    refused("a start at 4", ShardedVectors, folder, [vectors.entries[0], vectors.entries[2]])
    refused("a start at 0", ShardedVectors, folder, vectors.entries[1:])
    refused("at least one", ShardedVectors, folder, [])


# -- lock --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", [os.remove, lambda lock: lock.write_text('{"token": "theirs"}')])
def test_a_lock_that_was_lost_is_required_in_vain(path, lose):
    with WriterLock(path) as mine:
        mine.require()
        lose(mine.path)
        refused("was taken over or removed", mine.require, error=writer_lock.LockLost)
    assert issubclass(writer_lock.LockLost, OSError)


def take(path):
    with WriterLock(path):
        pass


def test_a_second_writer_is_refused_and_told_about_the_first(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with WriterLock(path) as first:
        assert first.held
        refused(f"host {socket.gethostname()}, pid {os.getpid()}, job 4711", take, path)
        assert first.held
    assert only(path.parent) == []
    take(path)


def test_the_lock_of_a_dead_process_is_taken_over(path):
    content(path, pid=dead_pid())
    with WriterLock(path) as mine:
        assert mine.held and only(path.parent) == ["run.h5.lock"]
    assert only(path.parent) == []


def test_a_silent_lock_is_taken_over_after_five_minutes(path):
    for age, host in [(290, "elsewhere"), (290, socket.gethostname())]:
        content(path, host=host, pid=os.getppid())
        os.utime(path.with_suffix(".h5.lock"), (time.time() - age,) * 2)
        refused("another process is writing", take, path)
    os.utime(path.with_suffix(".h5.lock"), (time.time() - 310,) * 2)
    take(path)


def test_a_dead_pid_means_nothing_on_another_host(path):
    content(path, host="elsewhere", pid=dead_pid())
    refused("host elsewhere", take, path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x"}'])
def test_an_unreadable_lock_counts_as_live_until_it_is_old(path, text):
    lock_file = path.with_suffix(".h5.lock")
    lock_file.write_text(text)
    refused("host unknown", take, path)
    os.utime(lock_file, (0, 0))
    take(path)


def test_a_requeued_job_takes_over_from_its_earlier_start(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    content(path, host="elsewhere", job="4711", restart=1)
    refused("job 4711", take, path)
    content(path, host="elsewhere", job="4712", restart=0)
    refused("job 4712", take, path)
    content(path, host="elsewhere", job="4711", restart=0)
    take(path)


def test_the_heartbeat_goes_on_until_the_lock_is_released(path):
    with WriterLock(path, heartbeat=0.01) as mine:
        os.utime(mine.path, (0, 0))
        deadline = time.time() + 5
        while mine.path.stat().st_mtime == 0:
            assert time.time() < deadline, "no heartbeat in five seconds"
            time.sleep(0.01)


def test_a_lock_that_was_lost_is_neither_touched_nor_removed(path):
    with WriterLock(path, heartbeat=0.01) as mine:
        content(path)  # someone took over while we were suspended
        os.utime(mine.path, (0, 0))
        time.sleep(0.1)
        assert not mine.held and mine.path.stat().st_mtime == 0
    assert mine.path.exists()


def test_the_slower_of_two_that_found_a_stale_lock_leaves_the_new_one_alone(path, monkeypatch):
    content(path, pid=dead_pid())
    slow, fast = WriterLock(path), WriterLock(path)
    judge = writer_lock._is_stale

    def overtaken(lock_file):
        stale = judge(lock_file)
        monkeypatch.setattr(writer_lock, "_is_stale", judge)
        fast.__enter__()
        return stale

    monkeypatch.setattr(writer_lock, "_is_stale", overtaken)
    refused("this process itself is writing", slow.__enter__)
    assert fast.held
    fast.__exit__()
    assert only(path.parent) == []


def test_a_lock_that_cannot_be_created_is_refused(tmp_path):
    refused("cannot create this lock file", take, tmp_path / "no" / "run.h5")


# -- who is writing ------------------------------------------------------------------------------


STATUS = {"stage": "density", "unit": "step", "total": 160, "seconds_left": 1.5, "saved": None}


def test_a_lock_tells_how_far_the_run_is_and_stays_its_owners(path):
    assert writer_lock.Writer.of(path) is None
    with WriterLock(path) as lock:
        assert writer_lock.Writer.of(path).status == {}
        for done in (5, 1234, 6):  # a shorter note leaves nothing of a longer one
            lock.note({**STATUS, "done": done})
            writer = writer_lock.Writer.of(path)
            assert writer.status == {**STATUS, "done": done} and lock.held
            assert writer.owner["pid"] == os.getpid() and not writer.is_stale
        lock.note({**STATUS, "stage": "x" * 10_000})  # more than there is room for
        assert writer_lock.Writer.of(path).status["done"] == 6
        lock.note({**STATUS, "done": "soon"})
        assert writer_lock.Writer.of(path).status == {} and lock.held
    assert writer_lock.Writer.of(path) is None


def test_a_note_never_reaches_the_lock_of_another_process(path):
    with WriterLock(path) as lock:
        lock.path.rename(path.with_name("taken away"))
        content(path)
        theirs = lock.path.read_bytes()
        lock.note({"done": 7})
        assert lock.path.read_bytes() == theirs and not lock.held


def test_a_writer_that_is_gone_is_known_as_such(path):
    content(path, pid=dead_pid())
    assert writer_lock.Writer.of(path).is_stale


def test_a_damaged_file_is_refused_before_hdf5_reads_it(path, monkeypatch):
    run_file.save(path, some_measure())
    whole = path.read_bytes()
    opened = []
    monkeypatch.setattr(run_file, "_opened", lambda path: opened.append(path))
    generator = np.random.default_rng(0)
    for at in (*generator.integers(512, len(whole), 50), 512, len(whole) - 1):
        content = bytearray(whole)
        content[at] ^= 1 << generator.integers(8)
        path.write_bytes(content)
        refused(f"{path}: is truncated or damaged: its checksum", run_file.open, path)
    assert not opened


def test_other_programs_read_a_sealed_file_and_an_edited_one_is_read_without_its_seal(path):
    run_file.save(path, {"loss": 0.5}, finished=False)
    with h5py.File(path, "r+") as file:  # by a program that knows nothing of us
        assert file.userblock_size == 512 and file["values/main/loss"][()] == 0.5
        del file.attrs["checksum"]
        file["values/main/loss"][...] = 0.75
    refused("set the first 512 bytes to zero", run_file.open, path)
    unseal(path)
    with run_file.open(path) as run:
        assert run["values"]["loss"] == 0.75
