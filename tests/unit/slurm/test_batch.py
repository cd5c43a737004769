"""Job scripts are a function of named parameters, and jobs/ holds what it gives.

After a change of the function: python tests/test_batch.py writes jobs/ anew.
"""

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from locations import ROOT

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli.main import main
from hessian_spectrum.slurm import job_script
from hessian_spectrum.storage import merge as merging

SETUP = "--setup 'source .venv/bin/activate  # or: module load python'"
DENSITY = "density --problem my_problem.py:make --out density.h5"
SEVERAL = "density --problem my_problem.py:make --checkpoint {checkpoint} --out 'spectra/{name}.h5'"
CHECKPOINTS = " ".join(f"nets/epoch-{epoch:04}.pt" for epoch in range(5, 45, 5))
JOBS = {
    "one_gpu.sbatch": f"--gpus 1 --cpus 8 --mem 32G --minutes 240 {SETUP} -- {DENSITY}",
    "one_node.sbatch": f"--ranks 4 --gpus 4 --cpus 8 --mem 128G --minutes 240 {SETUP} -- {DENSITY}",
    "nodes_srun.sbatch": "--nodes 4 --ranks 4 --gpus 4 --cpus 8 --mem 128G --minutes 240 "
    f"{SETUP} -- {DENSITY}",
    "nodes_torchrun.sbatch": "--launcher torchrun --nodes 4 --ranks 4 --gpus 4 --cpus 8 "
    f"--mem 128G --minutes 240 {SETUP} -- {DENSITY}",
    "array.sbatch": f"--gpus 1 --cpus 8 --mem 32G --minutes 240 {SETUP} "
    f"--checkpoints {CHECKPOINTS} --summary summary.h5 -- {SEVERAL}",
    "mpirun.sh": f"--launcher mpirun --ranks 16 --cpus 4 {SETUP} -- {DENSITY}",
}


def script_of(words):
    """What ``submit --dry-run`` prints."""
    words = shlex.split(words)
    cut = words.index("--")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["submit", "--dry-run", *words[:cut], *words[cut:]]) == 0
    return printed.getvalue()


@pytest.mark.parametrize("name", JOBS)
def test_the_jobs_are_what_submit_writes(name):
    assert (ROOT / "jobs" / name).read_text() == script_of(JOBS[name])
    subprocess.run(["bash", "-n", ROOT / "jobs" / name], check=True)


def test_every_resource_stands_once_at_the_top():
    text = script_of(JOBS["nodes_srun.sbatch"])
    top, _, rest = text.partition("\n\n")
    assert top.startswith("#!/bin/bash -l\n#SBATCH")
    assert "#SBATCH" not in rest
    for line in (
        *("nodes=4", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=8", "mem=128G"),
        *("time=240", "signal=B:USR1@120", "open-mode=append"),
    ):
        assert f"#SBATCH --{line}\n" in text
    assert "#SBATCH --requeue" in top and "max_requeues=20" in rest


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


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--nodes 0 -- density --problem a.py:f --out a.h5", "--nodes 0: expected 1 or more"),
        ("--gpus 2 --ranks 4 -- density --problem a.py:f --out a.h5", "one rank a GPU"),
        ("--minutes 2 --signal-seconds 120 -- density --problem a.py:f --out a.h5", "less than"),
        ("-- density --problem a.py:f", "the command has no --out"),
        ("-- density --problem a.py:f --out a.h5 --overwrite", "would start from the beginning"),
        ("-- density --problem a.py:f --out '{name}.h5'", "belong to a job array"),
        ("--checkpoints a.pt -- density --problem a.py:f --out a.h5", "an array needs {name}"),
        (
            "--checkpoints a/x.pt b/x.pt -- density --problem a.py:f --checkpoint {checkpoint} "
            "--out '{name}.h5'",
            "several checkpoints are called x",
        ),
        (
            "--summary s.h5 -- density --problem a.py:f --out a.h5",
            "--summary belongs to a job array",
        ),
        ("--name 'a b' -- density --problem a.py:f --out a.h5", "--name 'a b': expected letters"),
        ("-- info a.h5", "info cannot be resumed by a job"),
        ("-- density --problem a.py:f --num-probes 0 --out a.h5", "--num-probes 0"),
        ("", "no command to submit; expected one behind --"),
    ],
)
def test_jobs_that_could_not_run_are_refused(words, reason, capsys):
    assert main(["submit", "--dry-run", *shlex.split(words)]) == 2
    said = capsys.readouterr().err.strip()
    assert reason in said and "\n" not in said


def test_without_slurm_submit_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["submit", "--", *shlex.split(DENSITY)]) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err
    assert not os.listdir()


# -- what the scripts do, with stand-ins for SLURM's programs -------------------------------------


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


# -- one file of many ------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    paths = []
    for seed in (1, 2):
        measure = hs.spectral_density(hs.Dense(hs_matrix()), 2, 3, seed=seed)
        path = tmp_path / f"epoch-{seed}.h5"
        hs.save(path, measure, config={"seed": seed}, late=measure)
        paths.append(path)
    return paths


def hs_matrix():
    import torch

    return torch.diag(torch.linspace(0, 1, 9, dtype=torch.float64))


def test_merging_keeps_each_result_under_its_files_name(results, tmp_path, capsys):
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


def test_what_cannot_be_merged_is_refused(results, tmp_path):
    summary = tmp_path / "all.h5"
    with hs.open(results[0]) as run:
        hs.save(tmp_path / "half.h5", run["density"], finished=False)
    for files, reason in (
        ([tmp_path / "half.h5"], "is not finished"),
        ([results[0], results[0]], "two files are called epoch-1"),
        ([], "no files"),
    ):
        with pytest.raises(InputError, match=reason):
            merging.merge(summary, files)
    with pytest.raises(InputError, match="is not a summary"):
        merging.merge(results[0], [results[1]])
    (tmp_path / "all.h5.lock").write_text('{"host": "elsewhere", "pid": 1}')
    with pytest.raises(InputError, match="another process is writing"):
        merging.merge(summary, results, patience=0.3)
    assert not summary.exists()


def test_many_processes_merge_into_one_file(results, tmp_path):
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


if __name__ == "__main__":
    for name, words in JOBS.items():
        Path(ROOT, "jobs", name).write_text(script_of(words))
