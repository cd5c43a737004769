"""Another command takes one file and one row; the runner does for it what it does for all."""

import json
import os
import signal

import pytest
import torch
import toy_command
from command_line import fails, replaced
from density_runs import problem
from launching import TORCHRUN, launch
from locations import HELPERS

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.commands import registry
from hessian_spectrum.commands.registry import Command

ROW = Command("power", toy_command.PowerConfig, "toy_command:Power", "the power method")
ZOO = ["--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "30", "--dtype", "float64"]
RUN = ["power", *ZOO, "--num-products", "12"]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "COMMANDS", [*registry.COMMANDS, ROW])
    return tmp_path


def value_of(path):
    with hs.open(path) as run:
        assert run.finished and run.config["command"] == "power"
        return run["values/power"]["value"]


def test_it_is_planned_stopped_and_resumed_to_the_bits_of_a_straight_run(
    inside, capsys, monkeypatch
):
    assert main([*RUN, "--dry-run"]) == 0
    assert capsys.readouterr().out == "12 products\n" and not os.listdir()
    assert main([*RUN, "--out", "straight.h5"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("eigenvalue ") and "written to straight.h5" in said.out
    assert said.err == "12 products\n"

    step = toy_command.Power.step

    def stopped(computation, session):
        step(computation, session)
        if computation.done == 5:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(toy_command.Power, "step", stopped)
        assert main([*RUN, "--out", "run.h5"]) == 75
    said = capsys.readouterr().err
    assert "power: saved at product 5 of 12\n" in said and "stopped by SIGUSR1" in said
    with hs.open("run.h5") as run:
        assert not run.finished and run["values/power"]["done"] == 5
    fails(capsys, [*RUN, "--out", "run.h5"], "run.h5: exists already")
    fails(
        capsys, [*replaced(RUN, "--limit", "29"), "--out", "run.h5", "--resume"], "--limit was 30"
    )
    capsys.readouterr()
    assert main([*RUN, "--out", "run.h5", "--resume"]) == 0
    assert "power: going on at product 6 of 12\n" in capsys.readouterr().err
    assert value_of("run.h5") == value_of("straight.h5")
    fails(capsys, [*RUN, "--out", "run.h5", "--resume"], "is finished: there is nothing to resume")
    assert main([*RUN, "--out", "run.h5", "--overwrite"]) == 0
    assert sorted(os.listdir()) == ["run.h5", "straight.h5"]


def test_a_run_under_way_can_be_asked_how_far_it_is_before_it_saves(inside, capsys, monkeypatch):
    step, asked, errors = toy_command.Power.step, [], []

    def asking(computation, session):
        if computation.done < 2:
            assert main(["info", "run.h5"]) == 0
            said = capsys.readouterr()
            errors.append(said.err)
            asked.append(said.out.splitlines()[0])
            assert main(["info", "--json", "run.h5"]) == 0
            asked.append(json.loads(capsys.readouterr().out)["running"])
        step(computation, session)

    monkeypatch.setattr(toy_command.Power, "step", asking)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert main([*RUN, "--out", "run.h5", "--resume"]) == 0
    assert "power: nothing to resume, starts from the beginning\n" in errors[0]
    capsys.readouterr()
    assert asked[0].startswith("run.h5: power (job 77, host ")
    assert asked[0].endswith(f"process {os.getpid()}) at product 0 of 12; nothing saved yet")
    assert asked[2].endswith("; saved at product 1")
    assert asked[3]["status"]["total"] == 12 and asked[3]["owner"]["job"] == "77"
    assert main(["info", "run.h5"]) == 0
    assert "process" not in capsys.readouterr().out.splitlines()[0]  # it has ended


def test_help_config_files_and_submission_know_it(inside, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "the power method" in capsys.readouterr().out
    assert main([*RUN, "--out", "run.h5"]) == 0
    assert main(["power", "--config", "run.h5", "--out", "again.h5"]) == 0
    assert value_of("again.h5") == value_of("run.h5")
    capsys.readouterr()
    assert main(["submit", "--minutes", "9", "--dry-run", "--", *RUN, "--out", "job.h5"]) == 0
    assert "power" in capsys.readouterr().out


def test_python_runs_it_too(inside):
    config = toy_command.PowerConfig(num_products=300, out="run.h5")
    found = hs.run(config, **problem())
    H = hs.Hessian(hs.Evaluator(**problem()))
    exact = torch.linalg.eigvalsh(H @ torch.eye(H.n, dtype=H.dtype))
    assert found == pytest.approx(exact[exact.abs().argmax()].item(), rel=1e-6)


WORKER = f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
import toy_command
from hessian_spectrum.cli.main import main
from hessian_spectrum.commands import registry

row = registry.Command("power", toy_command.PowerConfig, "toy_command:Power", "the power method")
registry.COMMANDS.append(row)
sys.exit(main(sys.argv[1:]))
"""


def test_on_ranks(inside):
    assert main([*RUN, "--out", "alone.h5"]) == 0
    (inside / "worker.py").write_text(WORKER)
    launch([*TORCHRUN, "2", "worker.py", *RUN, "--out", "run.h5"], inside)
    assert value_of("run.h5") == pytest.approx(value_of("alone.h5"), rel=1e-10)


def test_every_row_names_what_exists_and_has_its_name():
    for row in registry.COMMANDS:
        found = row.implementation()
        assert row.runs != "on ranks" or found.command == row.name
        assert callable(found) and "\n" not in row.help
