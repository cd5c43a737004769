"""--scratch: where Krylov vectors are on a disk while a command runs."""

import tempfile

import numpy as np
import pytest

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.planning import product_planner

NETWORK = ["--model", "mlp-64-3-10", "--dataset", "digits", "--limit", "40", "--hvp", "reverse"]


@pytest.fixture
def on_disk(monkeypatch):
    """Every plan puts the Krylov vectors on a disk; the folders of the files that hold them."""
    plan, temporary, folders = product_planner.plan, tempfile.TemporaryFile, []

    def planned(*given, **options):
        return plan(*given, **options, place="disk")

    def opened(dir=None, **options):
        folders.append(str(dir))
        return temporary(dir=dir, **options)

    monkeypatch.setattr(product_planner, "plan", planned)
    monkeypatch.setattr(tempfile, "TemporaryFile", opened)
    return folders


@pytest.mark.parametrize(
    "command",
    [["density", "--num-probes", "2", "--num-steps", "4"], ["eigenpairs", "--k", "2"]],
    ids=lambda words: words[0],
)
def test_vectors_go_to_the_nodes_own_disk(command, on_disk, tmp_path, monkeypatch):
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    command = [*command, *NETWORK]
    monkeypatch.setenv("SLURM_TMPDIR", str(own))
    scratch = ["--scratch", "${SLURM_TMPDIR}"]
    assert main([*command, *scratch, "--out", str(tmp_path / "a.h5")]) == 0
    assert set(on_disk) == {str(own)} and list(own.iterdir()) == []
    on_disk.clear()
    assert main([*command, "--out", str(tmp_path / "b.h5")]) == 0  # beside the result
    assert set(on_disk) == {str(tmp_path)}
    with hs.open(tmp_path / "a.h5") as run, hs.open(tmp_path / "b.h5") as beside:
        field = "nodes" if command[0] == "density" else "values"
        found, expected = (getattr(r[command[0]], field) for r in (run, beside))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_a_run_is_resumed_with_another_scratch_folder(on_disk, tmp_path, monkeypatch):
    command = ["density", "--num-probes", "2", *NETWORK, "--out", str(tmp_path / "a.h5")]
    for folder, steps in (("one", "3"), ("two", "5")):
        (tmp_path / folder).mkdir()
        words = ["--scratch", str(tmp_path / folder), "--num-steps", steps, "--resume"]
        assert main([*command, *words, "--keep-state", "always"]) == 0
        assert set(on_disk) == {str(tmp_path / folder)}
        on_disk.clear()


@pytest.mark.parametrize(
    ("scratch", "reason"),
    [
        ("${NO_SUCH_VARIABLE}", "--scratch ${NO_SUCH_VARIABLE}: this variable is not set here"),
        ("/no/such/folder", "--scratch /no/such/folder: there is no folder /no/such/folder on "),
    ],
)
def test_a_scratch_folder_that_is_not_there_is_refused(scratch, reason, tmp_path, capsys):
    command = ["density", *NETWORK, "--scratch", scratch, "--out", str(tmp_path / "a.h5")]
    assert main(command) == 2
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
