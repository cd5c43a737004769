"""What a run deletes and replaces: its own files only; and what it refuses before any work."""

import os
import subprocess
import sys

import pytest
from density_runs import contents, problem

import hessian_spectrum as hs
from hessian_spectrum.commands.density import Density
from hessian_spectrum.commands.runner import run
from hessian_spectrum.config import DensityConfig
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.storage import run_file

OTHERS = ("weights.safetensors", "notes.tmp", "w-0123456789ab.safetensors", ".x.tmp")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run.h5"


def density(out, **options):
    chosen = {"num_probes": 2, "num_steps": 3, "hvp": "reverse", "keep_state": "always", **options}
    config = DensityConfig(out=out, **chosen)
    return run(Density, config, Problem(**problem()), hs.World(), quiet=True)


@pytest.mark.parametrize("again", ["overwrite", "resume"])
def test_files_of_the_user_in_the_state_folder_stay(out, again):
    density(out)
    state = out.with_name("run.h5.d")
    for name in OTHERS:
        (state / name).write_bytes(b"mine")
    (state / "manifest.previous.json").write_text(
        '{"shards": [{"file": "weights.safetensors", "sha256": "", "bytes": 4}]}'
    )
    options = {"resume": True, "num_steps": 5} if again == "resume" else {"overwrite": True}
    density(out, keep_state="never", **options)
    assert sorted(path.name for path in state.iterdir()) == sorted(OTHERS)
    assert all((state / name).read_bytes() == b"mine" for name in OTHERS)


@pytest.mark.parametrize("again", ["overwrite", "resume"])
def test_a_state_folder_that_is_a_link_is_refused(out, tmp_path, again):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "weights.safetensors").write_bytes(b"mine")
    out.with_name("run.h5.d").symlink_to(theirs)
    with pytest.raises(hs.InputError, match="is a link or a file"):
        density(out, **{again: True})
    assert [path.name for path in theirs.iterdir()] == ["weights.safetensors"]


def test_resume_does_not_replace_a_file_that_no_run_has_written(out, tmp_path):
    density(out)
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("mine")
    out.unlink()
    out.symlink_to(thesis)
    with pytest.raises(hs.InputError, match="is not an HDF5 file"):
        density(out, resume=True)
    assert thesis.read_text() == "mine"
    out.unlink()
    run_file.save(out, {"loss": 1.0}, config={"command": "surface"})
    before = contents(out)
    with pytest.raises(hs.InputError, match="is not what an interrupted density has left"):
        density(out, resume=True)
    assert contents(out) == before


def test_a_name_too_long_for_its_temporary_files_is_refused_before_any_work(tmp_path):
    for length in (240, 300):
        with pytest.raises(hs.InputError, match="too many for the temporary files"):
            run_file.check_output(tmp_path / ("x" * (length - 3) + ".h5"))
    longest = tmp_path / ("x" * 229 + ".h5")
    density(longest)
    with hs.open(longest) as found:
        assert found.finished
    with pytest.raises(hs.InputError, match="too many for the temporary files"):
        run_file.check_output(tmp_path / ("x" * 230 + ".h5"))


def test_what_a_killed_run_left_is_swept_by_the_next_one_of_this_output(out):
    ours = [".run.h5.0123456789ab.tmp", ".run.h5.lock.0123456789ab.tmp"]
    others = [".run.h5.0123456789.tmp", "run.h5.0123456789ab.tmp", ".run2.h5.0123456789ab.tmp"]
    for name in (*ours, *others):
        out.with_name(name).touch()
    density(out)
    assert sorted(os.listdir(out.parent)) == sorted([*others, "run.h5", "run.h5.d"])


@pytest.mark.parametrize("words", [["info"], ["query", "trace"]])
def test_a_reader_that_goes_away_ends_a_command_quietly(out, words):
    density(out)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "hessian_spectrum", words[0], str(out), *words[1:]]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
