"""Job scripts are a function of named parameters; what could not run is refused."""

import dataclasses
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from job_examples import DENSITY, JOBS, SEVERAL, script_of, scripts_of

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli.main import main
from hessian_spectrum.config import Resources
from hessian_spectrum.config.submission import OWN_DIRECTIVES
from hessian_spectrum.slurm import job_script


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
        ("--at-once 2 -- density --problem a.py:f --out a.h5", "--at-once belongs to a job array"),
        (
            "--checkpoints a.pt --at-once 0 -- density --problem a.py:f --checkpoint {checkpoint} "
            "--out '{name}.h5'",
            "--at-once 0: expected 1 or more",
        ),
        ("--mem 16G,x -- density --problem a.py:f --out a.h5", "--mem '16G,x': expected a number"),
        ("--logs 'a b' -- density --problem a.py:f --out a.h5", "--logs 'a b': expected one word"),
        ("--sbatch gpu -- density --problem a.py:f --out a.h5", "--sbatch 'gpu': expected options"),
        ("--sbatch '--x \"a' -- density --problem a.py:f --out a.h5", "No closing quotation"),
        (
            "--sbatch '--qos=long --time=5' -- density --problem a.py:f --out a.h5",
            "--sbatch --time=5: the script sets this itself; use --minutes",
        ),
        ("--sbatch -a1-4 -- density --problem a.py:f --out a.h5", "use --checkpoints"),
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


TEXTS = [
    field.name
    for field in dataclasses.fields(Resources)
    if "str" in str(field.type) and field.name not in ("setup", "python")  # lines of shell; quoted
]


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("control", ["\n", "\r", "\t", "\0", "\x1b", "\x85", "\u2028"])
def test_no_value_puts_lines_into_the_script(field, control):
    assert {"partition", "account", "mem", "logs", "name", "sbatch", "srun"} == set(TEXTS)
    value = f"--a{control}touch oops" if field in ("sbatch", "srun") else f"8{control}touch oops"
    given = (value,) if field in ("sbatch", "srun") else value
    with pytest.raises(InputError, match=f"--{field}"):
        Resources(**{field: given}).check()


@pytest.mark.parametrize("name", ["-x.pt", "n/-x.pt", "n/.pt", "n/.x.pt", "-n/x.pt", "n/a\nb.pt"])
def test_names_that_no_result_should_have_are_refused(name):
    with pytest.raises(InputError, match="first character"):
        job_script.script(Resources(), shlex.split(SEVERAL), [name])


def test_more_options_stand_where_sbatch_reads_them_and_replace_ours():
    text = script_of(
        '--gpus 2 --ranks 2 --sbatch "--qos=long --constraint=a100" --sbatch=--gres=gpu:a100:2 '
        f'--sbatch "--mem-per-cpu 4G" -- {DENSITY}'
    )
    top = text.partition("\n\n")[0].splitlines()
    for line in ("--qos=long --constraint=a100", "--gres=gpu:a100:2", "--mem-per-cpu 4G"):
        assert f"#SBATCH {line}" in top
    assert "--mem=" not in text and "gpus-per-node" not in text


def test_what_the_script_sets_itself_is_refused_among_more_options():
    names = re.findall(r"^#SBATCH --([\w-]+)", script_of(JOBS["array.sbatch"]), re.MULTILINE)
    assert set(names) - {"gpus-per-node"} <= set(OWN_DIRECTIVES)  # that one is replaced


def test_options_of_a_site_stand_in_a_file(tmp_path):
    site = tmp_path / "site.toml"
    site.write_text('partition = "long"\nsbatch = ["--qos=a", "--exclusive"]\nmem = "8G"\n')
    text = script_of(f"--config {site} --mem 9G -- {DENSITY}")
    for line in ("partition=long", "qos=a", "exclusive", "mem=9G"):
        assert f"#SBATCH --{line}\n" in text


def test_an_array_is_throttled_and_merged_by_one_job_that_asks_for_no_gpu():
    array, merging = scripts_of(
        "--gpus 1 --sbatch '--gres=gpu:1 --qos=long' --summary all.h5 --at-once 3 "
        f"--checkpoints a.pt b.pt -- {SEVERAL}"
    )
    assert "#SBATCH --array=0-1%3\n" in array and "merge" not in array
    assert "gpu" not in merging and "#SBATCH --qos=long\n" in merging
    assert "results=(\n  spectra/a.h5\n  spectra/b.h5\n)" in merging


def test_tasks_keep_no_state_unless_they_are_told_to():
    array = "--checkpoints a.pt b.pt --"
    assert "--keep-state never" in script_of(f"{array} {SEVERAL}")
    assert "never" not in script_of(f"{array} {SEVERAL} --keep-state always")
    assert "never" not in script_of(f"-- {DENSITY}")
    assert "--keep-state" not in script_of(f"{array} {SEVERAL.replace('density', 'eigenpairs')}")


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A stub of sbatch, in an empty folder; what it was asked."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "sbatch"
    program.write_text('#!/bin/bash\necho "$*" >> "${0%/*}/asked"; wc -l < "${0%/*}/asked"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def asked():
        file = tmp_path / "bin" / "asked"
        return file.read_text().splitlines() if file.exists() else []

    return asked


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (DENSITY, "--problem my_problem.py: no such file"),
        ("density --problem here.py --out a.h5", "--problem here.py: expected FILE.py:FUNCTION"),
        ("density --problem here.py:f --checkpoint a.pt --out a.h5", "--checkpoint a.pt: no such"),
        ("density --problem here.py:f --checkpoint c.h5:3 --out a.h5", "--checkpoint c.h5: no su"),
        ("density --problem here.py:f --config a.toml --out a.h5", "--config a.toml: no such file"),
        ("density --model cnn --dataset mnist --data-root D --out a.h5", "--data-root D: no such"),
        (
            "interpolate --problem here.py:f --between here.py b.pt --out a.h5",
            "--between b.pt: no such file",
        ),
        (
            "track --problem here.py:f --checkpoints here.py here.py 'nets/*.pt' --out a.h5",
            "no file matches this pattern",
        ),
        ("density --problem here.py:f --out here.py/a.h5", "its folder cannot be made"),
        ("density --problem here.py:f --out /proc/none/a.h5", "its folder cannot be made"),
        ("density --problem here.py:f --out .", "is a folder"),
    ],
)
def test_what_would_fail_on_the_node_fails_before_it_is_queued(words, reason, queue, capsys):
    Path("here.py").touch()
    assert main(["submit", "--", *shlex.split(words)]) == 2
    said = capsys.readouterr().err.strip()
    assert reason in said and "\n" not in said
    assert queue() == []


def test_each_task_of_an_array_has_its_files(queue, capsys):
    Path("my_problem.py").touch()
    Path("a.pt").touch()
    words = [*shlex.split(SEVERAL), "--parameters", "x"]
    array = ["submit", "--checkpoints", "a.pt", "nets/*.pt", "--summary", "sum/all.h5", "--"]
    assert main([*array, *words]) == 2
    assert "--checkpoints nets/*.pt: no such file" in capsys.readouterr().err and queue() == []
    array.remove("nets/*.pt")
    assert main([*array, *words]) == 0
    first, second = queue()
    assert first == "--parsable logs/hessian-spectrum.sbatch"
    # After any end: a merge of what is there, which names what is missing.
    assert second == "--parsable --dependency=afterany:1 logs/hessian-spectrum-merge.sbatch"
    assert Path("spectra").is_dir() and Path("sum").is_dir()
    assert capsys.readouterr().out.startswith("submitted 1: logs/hessian-spectrum.sbatch, logs in")


def test_a_training_is_queued_again_for_the_folder_that_it_has(queue, capsys):
    words = ["submit", "--", "train", "--dataset", "digits", "--out", "nets/one", "--track", "t.h5"]
    for _ in range(2):
        assert main(words) == 0
        assert Path("nets/one").is_dir()  # a folder of checkpoints is no file that stands there
    assert len(queue()) == 2
    assert "--resume" in Path("logs/hessian-spectrum.sbatch").read_text()


def test_a_dry_run_writes_nothing(queue):
    script_of(JOBS["array.sbatch"])
    assert os.listdir() == [] and queue() == []


def test_without_slurm_submit_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["submit", "--", *shlex.split(DENSITY)]) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err
    assert not os.listdir()
