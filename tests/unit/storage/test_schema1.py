"""Files of schema 1, written by an older version: they open, and a copy has the same layout."""

import dataclasses

import h5py
import numpy as np
import pytest
from locations import ROOT

import hessian_spectrum as hs

FOLDER = ROOT / "tests" / "golden" / "schema1"
FILES = sorted(path.name for path in FOLDER.glob("*.h5"))
RENAMED = {"replicates": "without_groups"}  # fields whose groups have other names
NEW_GROUPS = ("drawn",)  # of kinds that schema 1 had already


def layout(path):
    """By path: shape, type, storage, content, labels and scales of axes, attributes."""
    found = {}

    def visit(name, item):
        attributes = {
            # Descriptions are for people, and may be reworded: there must be one where there was.
            key: bool(value) if key == "description" else np.asarray(value).tolist()
            for key, value in item.attrs.items()
            if key not in ("DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS")  # below, by name
        }
        found[name] = [attributes]
        if isinstance(item, h5py.Dataset):
            content = item.asstr()[()] if item.dtype.kind == "O" else item[()].tobytes()
            storage = (item.chunks, item.compression, item.shuffle, item.fletcher32)
            axes = [(axis.label, [axis[key].name for key in axis]) for axis in item.dims]
            references = len(item.attrs.get("REFERENCE_LIST", ()))
            found[name] += [item.shape, item.dtype, storage, content, axes, references]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_copy_has_the_same_data_sets_bytes_and_units(name, tmp_path):
    copy = tmp_path / name
    with hs.open(FOLDER / name) as run:
        assert run.provenance["hessian_spectrum"]
        texts = {"config": run.config, "plan": run.plan, "provenance": run.provenance}
        hs.save(copy, **run, **texts, finished=run.finished)
    before, after = layout(FOLDER / name), layout(copy)
    new = {path for path in after if any(part in NEW_GROUPS for part in path.split("/"))}
    assert after.keys() - new == before.keys()
    for path, old in before.items():
        assert after[path] == old, path


def equal(value, stored):
    """The value of a field and what h5py reads in its place."""
    if isinstance(stored, h5py.Group):
        if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            return all(equal(getattr(value, f.name), stored[f.name]) for f in fields)
        return set(value) == set(stored) and all(equal(value[key], stored[key]) for key in value)
    read = stored.asstr()[()] if stored.dtype.kind == "O" else stored[()]
    value = np.asarray(value)
    return value.dtype == np.asarray(read).dtype and value.tobytes() == np.asarray(read).tobytes()


@pytest.mark.parametrize("name", FILES)
def test_every_field_is_what_the_file_holds(name):
    compared = 0
    with hs.open(FOLDER / name) as run, h5py.File(FOLDER / name, locking=False) as file:
        for key, result in run.items():
            group = file[key if "/" in key else f"{key}/main"]
            if isinstance(result, dict):
                assert equal(result, group)
                compared += len(result)
                continue
            for field in dataclasses.fields(result):
                value = getattr(result, field.name)
                if field.name in group.attrs:
                    assert value == group.attrs[field.name]
                elif field.name == "rules":
                    rules(value, group)
                elif field.name != "about" and value is not None:
                    assert equal(value, group[RENAMED.get(field.name, field.name)]), field.name
                compared += value is not None
    assert compared > 4


def rules(found, group):
    stored = group["rules"]
    shapes = stored["shapes"][()]
    assert len(found) == len(shapes)
    for i, (rule, (order, b, b1, last, after, steps)) in enumerate(zip(found, shapes)):
        assert rule.t.shape == (order, order) and rule.num_steps == steps
        assert rule.first.shape == (b, b1) and rule.out.shape == (last, after)
        for name in ("t", "first", "out"):
            block = getattr(rule, name)
            whole = stored[name][i]
            np.testing.assert_array_equal(whole[: block.shape[0], : block.shape[1]], block)
            assert np.count_nonzero(whole) == np.count_nonzero(block)
        assert rule.tolerance == stored["tolerance"][i] and isinstance(rule.num_steps, int)


# What the version that wrote these files answered.
def test_known_answers_of_a_density():
    with hs.open(FOLDER / "density.h5") as run:
        block = run["density"]
        assert block.trace == pytest.approx(8.601217836122343, rel=1e-12)
        assert block.standard_error("trace") == pytest.approx(5.794944616698455, rel=1e-12)
        found = block.interval("count", 0.01, 9.0)
        np.testing.assert_allclose(found, [0.0, 358.8220036426175], rtol=1e-9)
        assert run["eigenpairs"].values.tolist() == [-0.42817595218653703, 2.0639078786861296]
    with hs.open(FOLDER / "slq.h5") as run:
        assert run["density"].trace == pytest.approx(10.370889411349943, rel=1e-12)
        found = run["density"].data_error("trace")
        assert found == pytest.approx(0.2024449604522986, rel=1e-9)


def test_known_answers_of_the_other_kinds():
    def opened(name, key):
        with hs.open(FOLDER / name) as run:
            return run[key]

    with hs.open(FOLDER / "eigenpairs.h5") as run:
        pairs = run["eigenpairs"]
        assert pairs.num_lower == 2 and pairs.values[0] == -0.44720413496883715
        assert pairs.vectors.shape == (4, 385)
        assert pairs.vectors[0][:3].sum() == pytest.approx(0.027521304467488378, rel=1e-12)
    alignment = opened("alignment.h5", "alignment")
    assert alignment.mean().tolist() == [0.371695134429265]
    assert (alignment.num_samples, alignment.seed) == (101, 0)
    assert opened("alignment.h5", "values")["loss"] == 2.320762232248271
    assert opened("interpolate.h5", "curve").distance[-1] == 3.22087833629772
    surface = opened("map.h5", "surface")
    assert surface.minimum().value == 2.352856033369736
    assert surface.values["ratio"][1, 0] == 0.49663210856910445
    trajectory = opened("track.h5", "trajectory")
    assert trajectory.length == pytest.approx(6.384520869215323, rel=1e-12)
    assert trajectory.alpha.tolist() == [0.0, 0.5187919532678846, 1.0]
