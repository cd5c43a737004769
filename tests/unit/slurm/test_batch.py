"""Job scripts are a function of named parameters; what could not run is refused."""

import os
import shlex
import shutil

import pytest
from job_examples import DENSITY, JOBS, script_of

from hessian_spectrum.cli.main import main


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
