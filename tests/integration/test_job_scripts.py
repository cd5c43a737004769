"""What job scripts do, with stand-ins for SLURM's programs, and jobs that merge their results."""

import os
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from job_examples import DENSITY, JOBS, script_of, scripts_of
from locations import ROOT
from run_files import two_run_files

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.slurm import job_array, job_script


@pytest.mark.parametrize("name", [*JOBS, "merge.sbatch"])
def test_the_jobs_are_what_submit_writes(name):
    expected = scripts_of(JOBS["array.sbatch"])[1] if name not in JOBS else script_of(JOBS[name])
    assert (ROOT / "jobs" / name).read_text() == expected
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
        ["bash", "-c", f'out=a.h5; {line}; printf "%s\\n" "${{command[@]}}"'],
        capture_output=True,
        text=True,
    )
    assert printed.stdout.splitlines() == ["-m", "hessian_spectrum", *command, "--resume"]
    # --setup is no reason to lose this Python, in an environment that nobody activates.
    assert f"\nmodule load a\npython={shlex.quote(sys.executable)}\n" in text


# USR1 comes to the shell, which passes it on.
SIGNALLED = 'echo $$ > pid; trap "exit 75" USR1; kill -USR1 $PPID; while :; do sleep 0.1; done'
SAVES = 'echo "step $RANDOM$RANDOM" > "$HESSIAN_SPECTRUM_PROGRESS"; '


def run_job(tmp_path, body, restarts="0", text=None, **environment):
    """The script's exit code, what it said, and what its SLURM was asked.

    ``body`` is what srun does. SLURM ends the script when it is requeued.
    """
    bin_ = tmp_path / "bin"
    bin_.mkdir(exist_ok=True)
    programs = {
        "srun": f'echo "srun $*" >> asked\n{body}',
        "squeue": 'echo "$END"',
        "scontrol": 'echo "scontrol $*" >> asked\n[ "$1" != requeue ] || kill -9 $PPID',
        # It returns when the step has ended, so that the shell hears of both at once.
        "scancel": 'echo "scancel $*" >> asked; kill -USR1 "$(cat pid)"\n'
        'for i in {1..50}; do kill -0 "$(cat pid)" 2> /dev/null || break; sleep 0.1; done',
    }
    for name, lines in programs.items():
        (bin_ / name).write_text(f"#!/bin/bash\n{lines}\n")
        (bin_ / name).chmod(0o755)
    if text is None:
        text = job_script.script(job_script.Resources(requeues=3), shlex.split(DENSITY))
    environment = {
        **os.environ,
        **{"PATH": f"{bin_}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4"},
        **{"SLURM_RESTART_COUNT": restarts, "SLURM_JOB_NAME": "job", "PYTHONPATH": str(ROOT)},
        **environment,
    }
    for stale in ("asked", "pid"):
        (tmp_path / stale).unlink(missing_ok=True)
    job = ["bash", "-c", text]
    done = subprocess.run(
        job, cwd=tmp_path, env=environment, timeout=60, capture_output=True, text=True
    )
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    return done.returncode, done.stdout, asked


REQUEUED = -9  # how the stub of scontrol ends the script


@pytest.mark.parametrize(
    ("body", "code", "again"),
    [
        ("exit 0", 0, False),
        ("exit 2", 2, False),
        ("exit 75", 75, True),
        ("exit 137", 137, True),
        ("exit 143", 143, True),  # srun ends the others of a rank that does not listen yet
        ("kill -USR1 $$", 138, True),  # a rank that does not listen yet
        ('echo 75 > "$HESSIAN_SPECTRUM_EXIT"; exit 1', 75, True),  # as torchrun masks it
        ('echo 1 > "$HESSIAN_SPECTRUM_EXIT"; exit 137', 1, False),  # as srun -K does
        # USR1 comes to the shell; srun's step ends later, with the code that counts.
        (SIGNALLED, 75, True),
    ],
)
def test_a_job_queues_again_where_it_was_stopped_and_only_there(tmp_path, body, code, again):
    found, _, asked = run_job(tmp_path, SAVES + body)
    assert found == (REQUEUED if again else code)
    assert ("scontrol requeue 7\n" in asked) == again
    assert not list(tmp_path.glob("logs/*.exit"))
    if again:
        found, said, asked = run_job(tmp_path, SAVES + body, restarts="3")
        assert found == code and "requeue" not in asked  # the cap
        assert "requeued 3 times already" in said
        assert not list(tmp_path.glob("logs/*"))


@pytest.mark.parametrize("code", [75, 137])
def test_two_starts_in_a_row_that_save_nothing_new_end_a_job(tmp_path, code):
    # The second save says what the first one said: the run got no further.
    saves = 'echo "step 3" > "$HESSIAN_SPECTRUM_PROGRESS"; '
    for restart, body in enumerate([SAVES, saves, saves]):
        found, _, _ = run_job(tmp_path, f"{body} exit {code}", restarts=str(restart))
        assert found == REQUEUED, restart
    found, said, asked = run_job(tmp_path, f"exit {code}", "2", SLURM_MEM_PER_NODE="16384")
    assert found == code and "requeue" not in asked
    assert "two starts in a row saved nothing new" in said
    assert ("(137); where memory ran out, raise --mem (now 16384 MB" in said) == (code == 137)


@pytest.mark.parametrize(("seconds_left", "counts"), [(200, True), (400, False)])
def test_a_preemption_is_no_start_that_saved_nothing(tmp_path, seconds_left, counts):
    """It comes at any time; the signal of the time limit comes two or three minutes before it."""
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds_left))
    assert run_job(tmp_path, SIGNALLED, END=end)[0] == REQUEUED
    code, said, _ = run_job(tmp_path, SIGNALLED, "1", END=end)
    assert code == (75 if counts else REQUEUED)
    assert ("preempted before it saved anything new" in said) == (not counts)


def test_torchrun_says_in_its_log_that_a_rank_was_killed(tmp_path):
    resources = job_script.Resources(launcher="torchrun", requeues=9)
    text = job_script.script(resources, shlex.split(DENSITY))
    killed = "echo '  exitcode  : -9 (pid: 4)' >> logs/job-7-n0.log; exit 1"
    for restart in (0, 1):
        assert run_job(tmp_path, SAVES + killed, str(restart), text)[0] == REQUEUED
    # The log still tells of those, but this start has failed for another reason.
    code, said, asked = run_job(tmp_path, SAVES + "exit 1", "2", text)
    assert code == 1 and "killed" not in said and "requeue" not in asked


def test_a_start_that_saves_makes_good_for_the_one_before(tmp_path):
    for restart, body in enumerate(["", SAVES, "", SAVES]):
        text = job_script.script(job_script.Resources(requeues=9), shlex.split(DENSITY))
        assert run_job(tmp_path, f"{body} exit 75", str(restart), text)[0] == REQUEUED


def test_a_new_job_does_not_count_the_starts_of_an_old_one_with_its_number(tmp_path):
    for _ in range(3):
        assert run_job(tmp_path, "exit 75", restarts="0")[0] == REQUEUED


def test_a_task_of_an_array_asks_for_itself_only(tmp_path):
    """The last task has the array's number, by which every task would be signalled."""
    text = script_of(JOBS["array.sbatch"]).replace("source .venv", "true")
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    _, _, asked = run_job(tmp_path, SIGNALLED, text=text, **task)
    assert "scancel --signal=USR1 7_2\n" in asked and "scontrol requeue 7_2\n" in asked
    assert "--checkpoint nets/epoch-0015.pt --out spectra/epoch-0015.h5" in asked
    assert (tmp_path / "spectra").is_dir()
    assert f"--output={tmp_path}/job-7_2-r%t.log" in asked


def test_ranks_have_the_cores_and_the_options_that_were_asked_for(tmp_path):
    resources = job_script.Resources(srun=("--mpi=pmix --export='A=b c'", "--exclusive"), logs="l")
    text = job_script.script(resources, shlex.split(DENSITY))
    _, _, asked = run_job(tmp_path, "exit 0", text=text)
    assert "--cpus-per-task=4 " in asked  # srun does not take them from sbatch
    assert f"--mpi=pmix --export=A=b c --exclusive {sys.executable} -m hessian_spectrum" in asked


def test_a_run_says_how_far_its_state_is(tmp_path, monkeypatch):
    told = tmp_path / "progress"
    monkeypatch.setenv("HESSIAN_SPECTRUM_PROGRESS", str(told))
    command = shlex.split("density --model mlp-64-3-10 --dataset digits --limit 40 --num-probes 2")
    command += ["--checkpoint-minutes", "0", "--out", str(tmp_path / "a.h5")]
    assert main([*command, "--num-steps", "3", "--keep-state", "always"]) == 0
    first = told.read_text()
    assert main([*command, "--num-steps", "6", "--resume"]) == 0
    assert first == "step 2\n" and told.read_text() == "step 5\n"  # the last one is the result


def mpirun_of(tmp_path, lines):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mpirun"
    program.write_text(f'#!/bin/bash\necho "$*" >> starts\n{lines}\n')
    program.chmod(0o755)
    resources = job_script.Resources(launcher="mpirun", ranks=5, python="python")
    script = job_script.script(resources, shlex.split(DENSITY))
    code, said, _ = run_job(tmp_path, "", text=script)
    assert sorted(os.listdir(tmp_path)) == ["bin", "starts"]
    return code, said, (tmp_path / "starts").read_text().splitlines()


def test_mpirun_starts_again_until_it_is_done(tmp_path):
    saves = 'echo $RANDOM$RANDOM > "${5#*=}"; [ $(wc -l < starts) -ge 6 ] || exit 75'
    code, _, starts = mpirun_of(tmp_path, saves)
    assert code == 0 and len(starts) == 6
    assert starts[0].startswith("-n 5 env OMP_NUM_THREADS=4 HESSIAN_SPECTRUM_PROGRESS=")
    assert " python -m hessian_spectrum density" in starts[0]


def test_mpirun_ends_when_two_starts_save_nothing(tmp_path):
    code, said, starts = mpirun_of(tmp_path, 'echo 3 > "${5#*=}"; exit 137')
    assert code == 137 and len(starts) == 3
    assert "two starts in a row saved nothing new (the last one ended with 137)" in said


@pytest.mark.parametrize(
    "path",
    ["nets/a.pt", "v1.2/weights", "a.b.c", "v.1/a.b/e-5.pt", "x y/ä $(b).pt", "a..pt", "a.", "x"],
)
def test_the_script_and_the_check_agree_on_the_name_of_a_task(path):
    shell = f'checkpoint=$1\n{job_array.SHELL_NAME}\nprintf %s "$name"'
    done = subprocess.run(["bash", "-c", shell, "-", path], capture_output=True, text=True)
    assert done.stdout == job_array.name_of(path) != ""


def test_the_merge_takes_what_is_there_and_names_what_is_missing(tmp_path):
    results = two_run_files(tmp_path)
    text = job_script.merge_script(
        job_script.Resources(logs="."),
        shlex.split("density --checkpoint {checkpoint} --out '{name}.h5'"),
        ["n/epoch-1.pt", "n/epoch-3.pt", "n/epoch-2.pt"],
        "deep/all.h5",
    )
    code, said, _ = run_job(tmp_path, "", text=text)
    assert code == 1 and said.splitlines()[-2:] == [
        "1 of 3 results are missing or not finished:",
        "  epoch-3.h5",
    ]
    with hs.open(tmp_path / "deep" / "all.h5") as run:
        assert {"density/epoch-1", "density/epoch-2"} <= set(run)
    shutil.copy(results[0], tmp_path / "epoch-3.h5")
    assert run_job(tmp_path, "", text=text)[0] == 0


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
