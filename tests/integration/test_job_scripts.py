"""What job scripts do, with stand-ins for SLURM's programs, and jobs that merge their results."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
from job_examples import DENSITY, JOBS, script_of
from locations import ROOT
from run_files import two_run_files

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.slurm import job_script


@pytest.mark.parametrize("name", JOBS)
def test_the_jobs_are_what_submit_writes(name):
    assert (ROOT / "jobs" / name).read_text() == script_of(JOBS[name])
    subprocess.run(["bash", "-n", ROOT / "jobs" / name], check=True)


def test_a_command_is_quoted_and_always_resumes():
    resources = job_script.Resources(setup=("module load a",))
    command = [
        "density",
        "--problem",
        "my file.py:make",
        "--problem-arg",
        "x=$HOME",
        "--out",
        "a.h5",
    ]
    text = job_script.script(resources, [*command, "--resume"])
    line = next(line for line in text.splitlines() if line.startswith("command="))
    printed = subprocess.run(
        ["bash", "-c", f'{line}; printf "%s\\n" "${{command[@]}}"'], capture_output=True, text=True
    )
    assert printed.stdout.splitlines() == ["-m", "hessian_spectrum", *command, "--resume"]
    assert "\nmodule load a\n" in text


def run_job(tmp_path, body, restarts="0", text=None):
    """The script's exit code, and what its SLURM was asked; ``body`` is what srun does."""
    bin_ = tmp_path / "bin"
    bin_.mkdir(exist_ok=True)
    programs = {
        "srun": body,
        "scontrol": 'echo "scontrol $*" >> asked; exit 1',
        "scancel": 'echo "scancel $*" >> asked; kill -USR1 "$(cat pid)"',
    }
    for name, lines in programs.items():
        (bin_ / name).write_text(f"#!/bin/bash\n{lines}\n")
        (bin_ / name).chmod(0o755)
    if text is None:
        text = job_script.script(job_script.Resources(requeues=3), shlex.split(DENSITY))
    environment = {
        **os.environ,
        **{"PATH": f"{bin_}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4"},
        "SLURM_RESTART_COUNT": restarts,
    }
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, timeout=30)
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    return done.returncode, asked


@pytest.mark.parametrize(
    ("body", "code", "again"),
    [
        ("exit 0", 0, False),
        ("exit 2", 2, False),
        ("exit 75", 75, True),
        ("exit 137", 137, True),
        ('echo 75 > "$HESSIAN_SPECTRUM_EXIT"; exit 1', 75, True),  # as torchrun masks it
        ('echo 1 > "$HESSIAN_SPECTRUM_EXIT"; exit 137', 1, False),  # as srun -K does
        # USR1 comes to the shell; srun's step ends later, with the code that counts.
        (
            'echo $$ > pid; trap "exit 75" USR1; kill -USR1 $PPID; while :; do sleep 0.1; done',
            75,
            1,
        ),
    ],
)
def test_a_job_queues_again_where_it_was_stopped_and_only_there(tmp_path, body, code, again):
    found, asked = run_job(tmp_path, body)
    assert found == code
    assert ("scontrol requeue 7" in asked) == bool(again)
    assert not list(tmp_path.glob("logs/exit-*"))
    if again:
        (tmp_path / "asked").unlink()
        found, asked = run_job(tmp_path, body, restarts="3")
        assert found == code and "requeue" not in asked  # the cap


def test_mpirun_starts_again_until_it_is_done(tmp_path):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mpirun"
    program.write_text('#!/bin/bash\necho "$*" >> starts\n[ $(wc -l < starts) -ge 3 ] || exit 75\n')
    program.chmod(0o755)
    resources = job_script.Resources(launcher="mpirun", ranks=5)
    code, _ = run_job(tmp_path, "", text=job_script.script(resources, shlex.split(DENSITY)))
    assert code == 0
    starts = (tmp_path / "starts").read_text().splitlines()
    assert len(starts) == 3 and starts[0].startswith("-n 5 python -m hessian_spectrum density")


def test_many_processes_merge_into_one_file(tmp_path):
    results = two_run_files(tmp_path)
    summary = tmp_path / "all.h5"
    for i in range(3, 7):
        shutil.copy(results[0], tmp_path / f"epoch-{i}.h5")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = [sys.executable, "-m", "hessian_spectrum", "merge", str(summary)]
    going = [
        subprocess.Popen([*job, str(tmp_path / f"epoch-{i}.h5")], env=environment)
        for i in range(1, 7)
    ]
    assert [process.wait() for process in going] == [0] * 6
    with hs.open(summary) as run:
        assert len(run) == 12


def test_merging_keeps_each_result_under_its_files_name(tmp_path, capsys):
    results = two_run_files(tmp_path)
    summary = tmp_path / "all.h5"
    assert main(["merge", str(summary), str(results[0])]) == 0
    assert main(["merge", str(summary), str(results[1])]) == 0
    assert main(["merge", str(summary), str(results[1])]) == 0  # a task that is started again
    assert "holds 4 results" in capsys.readouterr().out
    with hs.open(summary) as run:
        names = {f"density/epoch-{i}{late}" for i in (1, 2) for late in ("", ", late")}
        assert set(run) == names
        assert run.config["of"]["epoch-2"] == {"seed": 2}
        with hs.open(results[1]) as alone:
            found, expected = run["density/epoch-2"].nodes, alone["density"].nodes
            assert found.tolist() == expected.tolist()
