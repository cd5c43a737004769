"""Run by test_disks.py with mounts of its own: jobs whose disk fills up, or turns read-only.

unshare --mount --map-root-user python disks_worker.py FOLDER

FOLDER becomes a small file system. Jobs are forked from this process, which has imported all.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from kills import ended, forked

import hessian_spectrum as hs
import hessian_spectrum.commands.density
import hessian_spectrum.commands.eigenpairs
import hessian_spectrum.commands.surfaces  # all that a job imports, once
import hessian_spectrum.zoo.problem_loader
from hessian_spectrum.landscape import point_planner
from hessian_spectrum.storage import run_file

PROBLEM = Path(__file__).with_name("faulty.py")
COMMON = ["--problem", f"{PROBLEM}:make", "--problem-arg", "pause=0", "--batch-size", "8"]
COMMON += ["--device", "cpu"]
OFTEN, SELDOM = ["--checkpoint-minutes", "0"], ["--checkpoint-minutes", "60"]
KINDS = {
    "density": ["density", "--num-probes", "3", "--num-steps", "6", "--hvp", "reverse"],
    "eigenpairs": ["eigenpairs", "--k", "2", "--tol", "1e-4", "--hvp", "reverse"],
    "surface": ["surface", "--x-points", "9", "--y-points", "7"],
}
SAVES = 2  # after which the disk fails
ROOMS = {"density": (0, 8), "eigenpairs": (0,), "surface": (0,)}  # KiB left: what fails first


def numbers(out):
    """Everything that was computed."""
    with hs.open(out) as run:
        assert run.finished
        if "density" in run:
            return [run["density"].nodes, run["density"].weights]
        if "eigenpairs" in run:
            return [run["eigenpairs"].values, np.asarray(run["eigenpairs"].vectors)]
        return [run["surface"].loss]


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder, left):
    """Leave so many KiB."""
    with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 4096)
        size = os.statvfs(folder)
        for _ in range(size.f_bavail - left // 4):
            file.write(bytes(4096))


def after_saves(action):
    """``action`` is taken when the result file has been written so many times."""
    real, count = run_file.save, 0

    def save(*args, **options):
        nonlocal count
        real(*args, **options)
        count += 1
        if count == SAVES:
            action()

    return real, save


def run(words, out, action=None):
    """(exit code, what it said) of a job; ``action`` after some saves."""
    log = Path(f"/dev/shm/disks-{os.getpid()}.log")  # not on the disk that fails
    log.unlink(missing_ok=True)
    if action:
        real, run_file.save = after_saves(action)
    job = forked([*words, *COMMON, "--out", str(out)], 0, 1, 0, log)
    if action:
        run_file.save = real
    (code,) = ended([job], 300)
    said = log.read_text()
    log.unlink()
    return code, said


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(out, straight):
    """Every bit; points to rounding, which depends on a plan that each run measures for itself."""
    with suppress(Exception):
        exact = "surface" not in hs.open(out)
        pairs = zip(numbers(out), numbers(straight))
        return all(
            np.array_equal(a, b) if exact else np.allclose(a, b, rtol=1e-12) for a, b in pairs
        )
    return False


def in_small_tasks(*args, **options):
    """As the planner says, but a few points at a time: there is something to save in between."""
    plan, trials = planned(*args, **options)
    return dataclasses.replace(plan, chunk=8, together=min(plan.together, 8)), trials


planned = point_planner.plan


def failed_and_resumed(words, out, straight, action, repair):
    """A disk that fails in the middle of a job, and works again."""
    code, said = run([*words, *OFTEN], out, action)
    with hs.open(out) as partial:
        readable = not partial.finished
    left = sorted(path.name for path in out.parent.rglob("*") if path.suffix == ".tmp")
    repair()
    again = run([*words, *SELDOM, "--resume"], out)
    found = {"code": code, "said": said, "readable": readable, "half written": left}
    return {**found, "again": again, "same": same(out, straight)}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def newest_shard(state):
    latest, previous = (
        {entry["file"] for entry in json.loads((state / name).read_text())["basis"]}
        for name in ("manifest.json", "manifest.previous.json")
    )
    (name,) = latest - previous
    return state / name


def damaged_and_resumed(words, out, straight, damage):
    code, said = run([*words, *OFTEN], out, lambda: os.kill(os.getpid(), signal.SIGTERM))
    damage(Path(f"{out}.d"), out)
    before = contents(out.parent)
    again = run([*words, *SELDOM, "--resume"], out)
    untouched = contents(out.parent) == before
    found = {"code": code, "said": said, "again": again, "untouched": untouched}
    return {**found, "same": same(out, straight)}


def cut_both(state, out):
    cut(state / "manifest.json")
    cut(state / "manifest.previous.json")


DAMAGES = {
    "shard": lambda state, out: cut(newest_shard(state)),
    "manifest": lambda state, out: cut(state / "manifest.json"),
    "both manifests": cut_both,
}


def cases_of(kind, top):
    words, straight, found = KINDS[kind], top / f"{kind}.h5", {}
    assert run(words, straight)[0] == 0

    def folder(name):
        (top / f"{kind}-{name}").mkdir()
        return top / f"{kind}-{name}" / "run.h5"

    for left in ROOMS[kind]:
        action, repair = lambda left=left: fill(top, left), (top / "ballast").unlink
        out = folder(f"full-{left}")
        found[f"full, {left}"] = failed_and_resumed(words, out, straight, action, repair)
    action, repair = lambda: remount(top, "ro"), lambda: remount(top, "rw")
    out = folder("read-only")
    found["read-only"] = failed_and_resumed(words, out, straight, action, repair)
    out = folder("new")
    remount(top, "ro")
    found["read-only from the start"] = run(words, out)
    remount(top, "rw")
    fill(top, 0)
    found["full from the start"] = run(words, out)
    (top / "ballast").unlink()
    found["left behind"] = sorted(contents(out.parent))
    damages = DAMAGES if kind != "surface" else {"result": lambda state, out: cut(out)}
    for name, damage in damages.items():
        found[name] = damaged_and_resumed(words, folder(name), straight, damage)
    return found


def main():
    top = Path(sys.argv[1])
    point_planner.plan = in_small_tasks
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(top)], check=True)
    print(json.dumps({kind: cases_of(kind, top) for kind in KINDS}))


if __name__ == "__main__":
    main()
