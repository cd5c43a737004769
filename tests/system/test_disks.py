"""Disks that fill up or turn read-only under a job, and checkpoints that were cut in half."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
from disks_worker import COMMON, KINDS, OFTEN, ROOMS, SAVES, SELDOM, in_small_tasks, same
from locations import HELPERS

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.landscape import point_planner
from hessian_spectrum.storage import run_file

WORKER = HELPERS / "disks_worker.py"
PRIVATE = ["unshare", "--mount", "--map-root-user"]  # mounts that nobody else sees


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("disk"))
    mount = [*PRIVATE, "mount", "-t", "tmpfs", "none", folder]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    job = [*PRIVATE, sys.executable, str(WORKER), folder]
    done = subprocess.run(job, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def error(said):
    """The last line, and the only one that is an error."""
    lines = [line for line in said.splitlines() if line.startswith("hessian-spectrum: ")]
    assert len(lines) == 1 and said.splitlines()[-1] == lines[0], said
    return lines[0]


def check_goes_on(case):
    code, said = case["again"]
    assert code == 0 and "hessian-spectrum:" not in said
    assert case["same"]  # as an uninterrupted run's numbers
    assert case["readable"] and not case["half written"]


@pytest.mark.parametrize(("kind", "left"), [(kind, left) for kind in ROOMS for left in ROOMS[kind]])
def test_a_disk_that_fills_up_ends_the_job_and_nothing_of_before_is_lost(found, kind, left):
    case = found[kind][f"full, {left}"]
    assert case["code"] == 1
    said = error(case["said"])
    assert "OSError: [Errno 28] No space left on device: '" in said and "run.h5" in said
    assert (
        "; make room; the saved state is complete: the same command with --resume continues" in said
    )
    check_goes_on(case)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_turns_read_only_ends_the_job_and_nothing_of_before_is_lost(found, kind):
    case = found[kind]["read-only"]
    assert case["code"] == 1
    said = error(case["said"])
    assert "OSError: [Errno 30] Read-only file system: '" in said and ".lock" not in said
    assert "; the saved state is complete: the same command with --resume continues" in said
    check_goes_on(case)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_cannot_be_written_is_refused_before_any_work(found, kind):
    reasons = {"read-only": "Read-only file system", "full": "No space left on device"}
    for case, why in reasons.items():
        code, said = found[kind][f"{case} from the start"]
        assert code == 2 and len(said.splitlines()) == 1
        assert "-new/run.h5: cannot write in " in error(said) and f"({why})" in said
    assert found[kind]["left behind"] == []


@pytest.mark.parametrize("kind", ["density", "eigenpairs"])
@pytest.mark.parametrize("damaged", ["shard", "manifest"])
def test_the_checkpoint_before_one_that_was_cut_in_half_is_gone_on_from(found, kind, damaged):
    case = found[kind][damaged]
    assert case["code"] == 75
    code, said = case["again"]
    assert code == 0 and case["same"]
    (line,) = [line for line in said.splitlines() if "going back" in line]
    assert line.startswith("hessian-spectrum: going back to manifest.previous.json, because ")
    assert ("this shard is damaged" in line) == (damaged == "shard")


@pytest.mark.parametrize(
    ("kind", "damaged", "why"),
    [
        ("density", "both manifests", "nothing to resume from: the manifest is damaged"),
        ("eigenpairs", "both manifests", "nothing to resume from: the manifest is damaged"),
        ("surface", "result", "is truncated or damaged"),  # all that there is of it
    ],
)
def test_where_nothing_whole_is_left_it_is_said_and_nothing_is_touched(found, kind, damaged, why):
    case = found[kind][damaged]
    code, said = case["again"]
    assert code == 2 and case["untouched"]
    assert why in error(said) and "start again" in error(said)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_may_not_grow_is_an_error_of_the_system(kind, tmp_path, monkeypatch, capsys):
    """As on a full disk, by the limit on the size of a process's files; needs no mount."""
    limits, real, count = resource.getrlimit(resource.RLIMIT_FSIZE), run_file.save, []

    def save(*args, **options):
        real(*args, **options)
        count.append(args)
        if len(count) == SAVES:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))

    words = [*KINDS[kind], *COMMON, "--out", str(tmp_path / "run.h5")]
    with monkeypatch.context() as patch:
        patch.setattr(run_file, "save", save)
        patch.setattr(point_planner, "plan", in_small_tasks)
        try:
            code = main([*words, *OFTEN])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "OSError: [Errno 27] File too large: '" in error(capsys.readouterr().err)
    with hs.open(tmp_path / "run.h5") as run:
        assert not run.finished
    assert main([*words, *SELDOM, "--resume"]) == 0
    assert main([*words[:-1], str(tmp_path / "straight.h5")]) == 0
    assert same(tmp_path / "run.h5", tmp_path / "straight.h5")
