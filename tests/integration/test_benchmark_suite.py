"""The suite of studies: it runs them apart, resumes, and a check that is wrong fails it."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
from locations import ROOT

from benchmarks.suite import Context, Finding, array_job, results, tables
from benchmarks.suite.registry import Registry, UnknownStudy
from benchmarks.suite.results import NotAResult, Result

TOYS = ROOT / "tests" / "helpers" / "toy_studies"


def suite(*words, data="nowhere"):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", *map(str, words)]
    if words[0] == "run":
        command += ["--data", data, *([] if "--studies" in words else ["--studies", str(TOYS)])]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_studies_run_apart_and_are_not_repeated(tmp_path):
    out = tmp_path / "results"
    first = suite("run", "all", "--out", out, "--jobs", 2)
    assert first.returncode == 1  # three of them fail
    found = results.read(out / "test")
    assert {name: r.status for name, r in found.items()} == {
        "killed": "failed",
        "needs_data": "no data",
        "raises": "failed",
        "tidy": "done",
        "turned": "done",
    }
    assert "no luck" in found["raises"].error and "exit code -9" in found["killed"].error
    assert "no MNIST in nowhere" in found["needs_data"].error
    verdicts = [f.verdict for f in found["tidy"].findings]
    assert verdicts == ["holds", "cannot be judged at this scale", "does not hold"]
    assert not found["tidy"].failed and found["turned"].failed
    assert "  two: 2, expected -2.1 to -1.9: does not hold\n" in first.stdout
    assert found["tidy"].about["libraries"]["torch"] and found["tidy"].notes == "a note"
    assert (out / "test" / "tidy.log").read_text() == "said by tidy\n"
    with h5py.File(out / "test" / "tidy.h5") as file:
        assert file["numbers/two"][:].tolist() == [2.0]
        assert json.loads(file.attrs["result"])["study"] == "tidy"

    again = suite("run", "tidy", "killed", "--out", out)
    assert again.returncode == 0, again.stderr
    assert "tidy: is there already" in again.stdout
    assert results.read(out / "test")["killed"].status == "done"  # it went on
    assert suite("run", "tidy", "--out", out, "--again").returncode == 0
    assert (out / "test" / "tidy" / "times").read_text() == "x"  # begun anew


def test_a_study_that_takes_too_long_is_stopped(tmp_path):
    study = (
        (TOYS / "tidy.py").read_text().replace("    print(", "    import time; time.sleep(1e4)\n#")
    )
    (tmp_path / "hangs.py").write_text(study)
    done = suite("run", "hangs", "--out", tmp_path, "--minutes", "0.00001", "--studies", tmp_path)
    assert done.returncode == 1
    assert "was stopped after" in results.read(tmp_path / "test")["hangs"].error


@pytest.mark.parametrize(
    "words, said",
    [
        (["run", "nothing"], "no study in"),
        (["run", "tidy", "--share", "2/2"], "expected I/N"),
        (["table", "nowhere"], "no such folder"),
    ],
)
def test_wrong_words_are_usage_errors(words, said, tmp_path):
    done = suite(*words)
    assert done.returncode == 2
    assert said in done.stderr


def finding(**changed):
    fields = {"claim": "a", "source": "s", "measured": 1.0, "low": 0.0, "high": 2.0}
    return Finding(**{**fields, **changed})


def result(**changed):
    fields = {"study": "one", "title": "t", "source": "s", "scale": "test", "key": "k"}
    return Result(**{**fields, "status": "done", "findings": (finding(),), **changed})


def test_findings_survive_json_with_infinities():
    for one in (finding(high=math.inf), finding(low=-math.inf, uncertainty=0.5, unit="s")):
        assert Finding.of_json(json.loads(json.dumps(one.to_json()))) == one
    missing = finding(measured=math.nan)
    assert missing.verdict == "does not hold" and missing.is_failure
    assert math.isnan(Finding.of_json(missing.to_json()).measured)
    assert finding(high=math.inf).expected == "at least 0"
    assert finding(low=-math.inf).expected == "at most 2"


def test_the_last_collected_wins_but_no_failure_replaces_what_is_done(tmp_path):
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    results.write(result(findings=(finding(measured=0.5),)), {}, a)
    results.write(result(), {"x": [1]}, b)
    results.write(result(study="two", status="failed", findings=()), {}, b)
    assert results.collect([a, b], out)["one"].findings[0].measured == 1.0
    assert h5py.File(out / "one.h5")["x"][:].tolist() == [1]
    results.write(result(status="failed", findings=()), {}, a)
    results.write(result(study="two"), {}, a)
    found = results.collect([a], out)
    assert found["one"].status == found["two"].status == "done"
    assert results.read(out) == found


def test_foreign_and_damaged_files_are_refused(tmp_path):
    for text in ("{", "[]", '{"form": 1}', '{"form": 99, "findings": []}'):
        (tmp_path / "one.json").write_text(text)
        with pytest.raises(NotAResult, match=r"one\.json"):
            results.read(tmp_path)


def test_a_comparison_names_what_changed_by_more_than_its_uncertainty():
    before = {"one": result(findings=(finding(uncertainty=0.1), finding(claim="b")))}
    same = {"one": result(findings=(finding(measured=1.2, uncertainty=0.1), finding(claim="b")))}
    assert tables.compared(before, same).startswith("nothing has changed")
    other = (finding(measured=2.5, uncertainty=0.1), finding(claim="b", measured=1.2))
    said = tables.compared(before, {"one": result(findings=other), "two": result(study="two")})
    assert "one: a: 1 +- 0.1 -> 2.5 +- 0.1, +1.5 +- 0.28 (95 %); holds -> does not hold" in said
    assert "one: b: 1 -> 1.2, +0.2" in said and "two: only in the second set" in said


def test_the_table_names_the_reasons_and_keeps_its_columns():
    reason = finding(claim="x | y", low=5.0, high=6.0, why_not="too small")
    lines = tables.markdown({"one": result(findings=(finding(), reason))}).splitlines()
    assert lines[3] == "| one | x \\| y | s | 5 to 6 | 1 | does not hold (1) |"
    assert lines[-1] == "1. too small"


def test_an_array_job_deals_out_all_studies(tmp_path):
    names = Registry(TOYS).names()
    array, collect = array_job.scripts(names, "cpu", tmp_path, 2, ["--time=9"], ["--data", "d"])
    assert "#SBATCH --array=0-1" in array and "#SBATCH --time=9" in array
    assert "--share $SLURM_ARRAY_TASK_ID/2" in array and "--data d" in array
    assert f"{tmp_path}/part-0/cpu {tmp_path}/part-1/cpu --out {tmp_path}/cpu" in collect
    assert {*names[0::2], *names[1::2]} == set(names)


def test_patterns_choose_studies():
    toys = Registry(TOYS)
    assert toys.chosen(["t*"]) == ["tidy", "turned"]
    with pytest.raises(UnknownStudy, match="expected one of: killed, needs_data"):
        toys.chosen(["tidy", "t?"])


def test_what_is_kept_is_not_made_again_for_the_same_options(tmp_path):
    context = Context("one", "test", tmp_path, tmp_path, tmp_path)
    made = []

    def make():
        made.append(1)
        return {"x": [1.0, 2.0], "n": 3}

    for options in ((1,), (1,), (2,)):
        found = context.kept("a", options, make)
        assert found["x"].tolist() == [1.0, 2.0] and found["n"] == 3
    assert len(made) == 2


def test_every_study_has_a_test_and_says_what_it_is():
    registry = Registry()
    for name in registry.names():
        study = registry.load(name)
        assert "test" in study.scales and "cpu" in study.scales, name
        assert len(registry.about(name)) > 200, name
        assert study.source and study.title.endswith("?"), name


def test_results_do_not_depend_on_who_reads(tmp_path):
    results.write(replace(result(), options={"path": Path("x")}), {}, tmp_path)
    assert results.read(tmp_path)["one"].options == {"path": "x"}


def test_a_file_of_other_options_is_computed_again(tmp_path):
    context = Context("one", "test", tmp_path, tmp_path, tmp_path)
    path = tmp_path / "run.h5"
    words = ["density", "--model", "mlp-64-3-10", "--dataset", "digits", "--limit", 20]
    words += ["--num-probes", 2, "--num-steps"]
    found = []
    for steps in (3, 3, 4):
        with context.computed(path, *words, steps) as run:
            assert run.finished and run.plan["num_steps"] == steps
            found.append(run.provenance["seconds"])
    assert found[0] == found[1] != found[2]
