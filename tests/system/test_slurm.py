"""Jobs on a real SLURM: time limits, requeues, arrays."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from locations import HELPERS, ROOT

import hessian_spectrum as hs
from benchmarks.suite import results

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
PROBLEM = HELPERS / "faulty.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _slurm():
    if shutil.which("sbatch") is None or "SLURM_CONF" not in os.environ:
        pytest.skip("no SLURM here, or SLURM_CONF does not say where")


def command_line(words, cwd):
    job = [sys.executable, "-m", "hessian_spectrum", *words]
    done = subprocess.run(job, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def queued(options, command, cwd):
    """The numbers of the jobs that ``submit`` makes of a command."""
    options = ["--cpus", "1", "--mem", "1G", *shlex.split(options)]
    return numbers(command_line(["submit", *options, "--", *command], cwd))


def numbers(said):
    return re.findall(r"^submitted (\d+)", said, re.MULTILINE)


def logs_of(jobs, cwd, within):
    """The logs' texts, when these jobs are over."""
    deadline = time.monotonic() + within
    for job in jobs:
        while subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True).stdout:
            assert time.monotonic() < deadline, f"job {job} is still there"
            time.sleep(1)
    return {path.name: path.read_text() for path in sorted((cwd / "logs").glob("*.log"))}


def submitted(options, command, cwd, within):
    return logs_of(queued(options, command, cwd), cwd, within)


def wait_for(path, within=120):
    deadline = time.monotonic() + within
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.2)


def job_log(logs):
    """Of the shell, not of a rank or a node."""
    return next(text for name, text in logs.items() if re.fullmatch(r".*-\d+\.log", name))


def slow(folder, out, pause, quick=60):
    sizes = ["--num-probes", "3", "--num-steps", "40", "--batch-size", "8", "--hvp", "forward"]
    problem = ["--problem", f"{PROBLEM}:make", "--problem-arg", f"pause={pause}", f"quick={quick}"]
    return ["density", *problem, *sizes, "--out", str(folder / out)]


def check_same(folder, name, other):
    with hs.open(folder / name) as run, hs.open(folder / other) as straight:
        assert run.finished
        found, expected = run["density"], straight["density"]
        assert np.array_equal(found.nodes, expected.nodes)
        assert np.array_equal(found.weights, expected.weights)


def straight(folder, ranks):
    """The same computation on as many ranks, which nothing disturbs."""
    words = slow(folder, "straight.h5", 0)
    job = ["srun", "--nodes=2", f"--ntasks={ranks}", sys.executable, "-m", "hessian_spectrum"]
    done = subprocess.run([*job, *words], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_a_job_longer_than_its_limit_finishes_by_itself(tmp_path, launcher):
    shape = f"--launcher {launcher} --nodes 2 --ranks 1"
    # SLURM signals up to a minute early; ranks that have yet to start would save nothing.
    limits = "--minutes 2 --signal-seconds 30 --requeues 12"
    logs = submitted(f"{shape} {limits}", slow(tmp_path, "run.h5", 2.5), tmp_path, 800)
    starts = job_log(logs).count(", restart ")
    assert 3 <= starts <= 13, logs
    straight(tmp_path, ranks=2)
    check_same(tmp_path, "run.h5", "straight.h5")


@pytest.mark.timeout(600)
def test_requeues_end_at_the_cap(tmp_path):
    limits = "--minutes 2 --signal-seconds 60 --requeues 1"
    logs = submitted(limits, slow(tmp_path, "run.h5", 1.0), tmp_path, 500)
    text = job_log(logs)
    assert text.count(", restart ") == 2 and "requeued 1 times already" in text
    assert not hs.open(tmp_path / "run.h5").finished if (tmp_path / "run.h5").exists() else True


def disturb(how, folder, job):
    """Interrupt a job of two ranks, on both nodes, that has saved something."""
    if how == "kill -9":
        os.kill(int((folder / "1.pid").read_text()), signal.SIGKILL)
    elif how == "preemption":
        words = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
        subprocess.run(["sbatch", *words, "--wrap", "sleep 3"], check=True)
    elif how == "node loss":
        update = ["scontrol", "update", "nodename=n2"]
        subprocess.run([*update, "state=down", "reason=test"], check=True)
        time.sleep(2)
        subprocess.run([*update, "state=resume"])  # refused where it came back by itself


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["kill -9", "preemption", "node loss"])
def test_a_job_that_is_disturbed_finishes_by_itself_with_the_same_bits(tmp_path, how):
    command = [*slow(tmp_path, "run.h5", 0.3), "--checkpoint-minutes", "0"]
    command.insert(command.index("--problem-arg") + 1, f"pids={tmp_path}")
    jobs = queued("--nodes 2 --ranks 1 --minutes 10", command, tmp_path)
    wait_for(tmp_path / "run.h5")
    disturb(how, tmp_path, jobs[0])
    logs = logs_of(jobs, tmp_path, 400)
    assert job_log(logs).count(", restart ") == 2, logs
    straight(tmp_path, ranks=2)
    check_same(tmp_path, "run.h5", "straight.h5")
    assert not list((tmp_path / "logs").glob("*.progress"))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_is_killed_at_every_start_ends_the_job_after_two(tmp_path, launcher, ranks):
    """As where memory runs out; the other rank says that one was lost."""
    (tmp_path / "mine.py").write_text(
        "import os, time\n"
        "def make():\n"
        "    last = int(os.environ.get('RANK', os.environ['SLURM_PROCID'])) == "
        f"{ranks - 1}\n"
        "    os.kill(os.getpid(), 9) if last else time.sleep(600)\n"
    )
    command = ["density", "--problem", "mine.py:make", "--out", "run.h5"]
    shape = f"--launcher {launcher} --nodes {ranks} --minutes 5"
    text = job_log(submitted(shape, command, tmp_path, 300))
    assert text.count(", restart ") == 2, text
    assert "two starts in a row saved nothing new" in text
    assert "a process was killed (137); where memory ran out, raise --mem (now 1024 MB" in text


@pytest.mark.timeout(300)
def test_a_cancelled_job_is_not_queued_again(tmp_path):
    command = [*slow(tmp_path, "run.h5", 0.3), "--checkpoint-minutes", "0"]
    jobs = queued("--nodes 2 --ranks 1 --minutes 10", command, tmp_path)
    wait_for(tmp_path / "run.h5")
    subprocess.run(["scancel", jobs[0]], check=True)
    assert job_log(logs_of(jobs, tmp_path, 60)).count(", restart ") == 1


@pytest.mark.timeout(900)
def test_the_array_of_the_documents_works_as_it_is_written(tmp_path):
    text = (ROOT / "jobs" / "README.md").read_text()
    block = next(b for b in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "--summary" in b)
    program = tmp_path / "bin" / "hessian-spectrum"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -m hessian_spectrum "$@"\n')
    program.chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    job = ["bash", "-e", "-c", block]
    done = subprocess.run(job, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logs = logs_of(numbers(done.stdout), tmp_path, 600)
    nets = [path.stem for path in tmp_path.glob("nets/*.pt")]
    assert len(nets) == len(list(tmp_path.glob("spectra/*.h5"))) >= 4, logs
    with hs.open(tmp_path / "all.h5") as run:
        assert set(run) >= {f"density/{net}" for net in nets}
    assert not list(tmp_path.glob("spectra/*.d"))


@pytest.mark.timeout(300)
def test_a_summary_says_which_results_are_missing(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def make(good, file):\n"
        "    assert good == 'a', 'a bad task'\n"
        "    x = torch.randn(20, 3)\n"
        "    return torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), (x, torch.arange(20) % 2)\n"
    )
    for name in "ab":
        (tmp_path / f"{name}.pt").touch()
    command = ["density", "--problem", "mine.py:make", "--problem-arg", "good={name}"]
    command += ["file={checkpoint}", "--num-products", "8", "--out", "out/{name}.h5"]
    options = "--checkpoints a.pt b.pt --summary all.h5 --name five"
    logs = submitted(options, command, tmp_path, 200)
    text = next(text for name, text in logs.items() if name.startswith("five-merge"))
    assert "1 of 2 results are missing or not finished:\n  out/b.h5\n" in text
    with hs.open(tmp_path / "all.h5") as run:
        assert "density/a" in run


@pytest.mark.timeout(900)
def test_an_array_over_checkpoints_fills_one_file(tmp_path):
    network = ["--model", "mlp-64-6-10", "--dataset", "digits", "--limit", "100"]
    command_line(["train", *network, "--epochs", "8", "--every", "1", "--out", "nets"], tmp_path)
    nets = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("nets/*.pt"))
    assert len(nets) == 8
    command = ["density", *network, "--num-products", "30", "--checkpoint", "{checkpoint}"]
    command += ["--out", "spectra/{name}.h5"]
    options = f"--checkpoints {' '.join(nets)} --summary all.h5"
    submitted(options, command, tmp_path, 600)
    with hs.open(tmp_path / "all.h5") as run:
        assert set(run) >= {f"density/{Path(net).stem}" for net in nets}
        values = [run[f"values/{Path(net).stem}"]["loss"] for net in nets]
        assert values == sorted(values, reverse=True)  # training went on
    before = (tmp_path / "all.h5").stat().st_mtime
    logs = submitted(options, command, tmp_path, 600)  # again: nothing is computed twice
    assert sum("is finished already" in text for text in logs.values()) == 8
    assert (tmp_path / "all.h5").stat().st_mtime >= before


def test_studies_as_an_array_of_which_a_task_is_requeued_give_one_table(tmp_path):
    """The share that is taken away begins anew with what is not done, and is collected."""
    studies = tmp_path / "studies"
    studies.mkdir()
    text = (HELPERS / "toy_studies" / "tidy.py").read_text()
    for name in ("first", "second", "third"):
        (studies / f"{name}.py").write_text(text)
    waits = (
        "    import time\n\n    time.sleep(3600 if len(times.read_text()) == 1 else 0)\n    print("
    )
    (studies / "waits.py").write_text(text.replace("    print(", waits))
    out = tmp_path / "out"
    words = ["submit", "all", "--studies", studies, "--scale", "test", "--tasks", "2", "--out", out]
    command = [sys.executable, "-m", "benchmarks", *map(str, words), "--data", "nowhere"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    array, collect = re.findall(r"\d+", done.stdout)[:2]
    wait_for(out / "part-1" / "test" / "waits" / "times")
    subprocess.run(["scontrol", "requeue", f"{array}_1"], check=True)
    logs_of([array, collect], tmp_path, 180)
    found = results.read(out / "test")
    assert {name: result.status for name, result in found.items()} == dict.fromkeys(
        ("first", "second", "third", "waits"), "done"
    )
    assert (out / "part-1" / "test" / "waits" / "times").read_text() == "xx"
    assert (out / "task-1.log").read_text().count("waits: begins") == 2
    assert "second: is there already" in (out / "task-1.log").read_text()
    assert "4 studies" in (out / "collect.log").read_text()
