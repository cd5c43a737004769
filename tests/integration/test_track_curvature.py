"""Eigenpairs and alignments of many checkpoints in one process, and an array's in one file."""

import dataclasses

import numpy as np
import pytest
import torch
from dense_oracles import dense_hessian
from launching import TORCHRUN, launch
from small_networks import data, mlp
from stopping import StopOnceThere
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.cli import main as cli
from hessian_spectrum.commands import runner
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.commands.surfaces import Track
from hessian_spectrum.commands.track_curvature import TrackCurvature
from hessian_spectrum.config import AlignmentConfig, DensityConfig, EigenpairsConfig, TrackConfig
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.plotting import density as plotting
from hessian_spectrum.storage.merge import merge

EPOCHS = (1, 3, 7)
WAY = {"hvp": "reverse", "device": "cpu"}
ENDS = {"largest": 10, "smallest": 2, "tol": 1e-9}
MINIBATCHES = {"batch_sizes": ("3", "full"), "num_batches": 4}


def problem(model):
    return {"model": model, "loss_fn": F.cross_entropy, "data": data(), "batch_size": 4}


@pytest.fixture
def paths(tmp_path):
    torch.manual_seed(1)
    model, found = mlp(), []
    for epoch in EPOCHS:
        with torch.no_grad():
            for p in model.parameters():
                p += 0.3 * torch.rand_like(p)
        found.append(tmp_path / f"epoch-{epoch:04d}.pt")
        zoo.save_checkpoint(found[-1], model, torch.optim.SGD(model.parameters(), 1), epoch, {})
    return tuple(found)


def track(paths, out, **options):
    return TrackConfig(checkpoints=paths, out=out, **WAY, **options)


def test_eigenvalues_are_those_of_the_dense_hessian_at_each_checkpoint(paths, tmp_path):
    config = track(paths, tmp_path / "all.h5", **ENDS)
    assert Track.chosen(config) is TrackCurvature
    model, (x, y) = mlp(), data()

    def loss(model):
        return F.cross_entropy(model(x), y)

    found = hs.run(config, **problem(model))
    assert found.steps.tolist() == list(EPOCHS)
    with hs.open(tmp_path / "all.h5") as run:
        assert run.finished
        for path, epoch in zip(paths, EPOCHS):
            zoo.load_checkpoint(model, path)
            exact = np.linalg.eigvalsh(dense_hessian(model, loss))
            pairs = run[f"eigenpairs/{path.stem}"]
            assert pairs.num_lower == 2 and pairs.converged.all() and pairs.vectors is None
            expected = [*exact[:2], *exact[-10:]]
            assert pairs.values == pytest.approx(expected, abs=1e-8 * exact[-1])
            assert run[f"values/{path.stem}"]["epoch"] == epoch
        assert not any(key.startswith(("density", "alignment")) for key in run)


def test_one_process_and_an_array_of_each_command_give_the_same_file(paths, tmp_path):
    """What jobs of an array write, merged: densities first, whose extremes the pairs replace."""
    model, sizes = mlp(), {"num_probes": 2, "num_steps": 4}
    config = track(
        paths, tmp_path / "all.h5", density=True, alignment=True, **ENDS, **MINIBATCHES, **sizes
    )
    hs.run(config, **problem(model))
    tasks = {
        "density": DensityConfig(**sizes, **WAY),
        "eigenpairs": EigenpairsConfig(k=10, k_smallest=2, tol=ENDS["tol"], vectors=False, **WAY),
        "alignment": AlignmentConfig(k=10, **MINIBATCHES, **WAY),
    }
    merged = tmp_path / "merged.h5"
    for name in ("alignment", "density", "eigenpairs"):
        (tmp_path / name).mkdir()
        outs = [tmp_path / name / f"{path.stem}.h5" for path in paths]
        for path, out in zip(paths, outs):
            hs.run(dataclasses.replace(tasks[name], checkpoint=path, out=out), **problem(model))
        merge(merged, outs)
    with hs.open(tmp_path / "all.h5") as run, hs.open(merged) as array:
        assert set(run) - {"trajectory", "values"} == set(array)
        for path in paths:
            label = path.stem
            a, b = run[f"density/{label}"], array[f"density/{label}"]
            assert np.array_equal(a.nodes, b.nodes) and np.array_equal(a.weights, b.weights)
            a, b = run[f"eigenpairs/{label}"], array[f"eigenpairs/{label}"]
            assert a.num_lower == b.num_lower
            assert a.values == pytest.approx(b.values, abs=1e-9 * b.values[-1])
            a, b = run[f"alignment/{label}"], array[f"alignment/{label}"]
            assert a.batch_sizes.tolist() == [3, len(data()[1])]
            assert np.isfinite(a.captured[0]).all()
            for name in ("alignment", "gradient_norm", "captured", "eigenvalues"):
                x, y = getattr(a, name), getattr(b, name)
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-9, err_msg=name)


def compute(config, model, stop=None):
    located = TrackCurvature.located(config)
    zoo.load_checkpoint(model, located.checkpoint)
    chosen = Problem(**problem(model))
    runner.run(TrackCurvature, located, chosen, hs.World(), stop or StopRequest(), quiet=True)


@pytest.mark.parametrize("options", [ENDS, {"alignment": True, "largest": 3, **MINIBATCHES}])
def test_a_resumed_run_computes_only_what_is_missing(paths, tmp_path, monkeypatch, options):
    model, out = mlp(), tmp_path / "run.h5"
    config = track(paths, out, **options)
    compute(dataclasses.replace(config, out=tmp_path / "whole.h5"), model)

    def enough(out):
        with hs.open(out) as run:
            return sum(key.startswith("eigenpairs") for key in run) >= 2

    with pytest.raises(Interrupted):
        compute(config, model, StopOnceThere(out, enough))
    visited, step = [], TrackCurvature._results

    def counted(self, session, index):
        visited.append(index)
        return step(self, session, index)

    monkeypatch.setattr(TrackCurvature, "_results", counted)
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(InputError, match="cannot resume: --largest was"):
        compute(dataclasses.replace(again, largest=4), model)
    compute(again, model)
    assert visited == [2]
    with hs.open(out) as run, hs.open(tmp_path / "whole.h5") as whole:
        assert set(run) == set(whole)
        for key in run:
            for name in ("values", "residuals", "alignment", "captured"):
                if key.startswith(("eigenpairs", "alignment")) and hasattr(run[key], name):
                    a, b = getattr(run[key], name), getattr(whole[key], name)
                    np.testing.assert_array_equal(a, b, err_msg=f"{key} {name}")


def test_without_the_largest_an_alignment_has_no_shares(paths, tmp_path):
    config = track(paths, tmp_path / "x.h5", alignment=True, smallest=1, **MINIBATCHES)
    hs.run(config, **problem(mlp()))
    with hs.open(tmp_path / "x.h5") as run:
        found = run[f"alignment/{paths[0].stem}"]
        assert found.eigenvalues.size == 0 and np.isnan(found.captured).all()
        assert run[f"eigenpairs/{paths[0].stem}"].num_lower == 1


def test_the_ratio_of_outliers_by_epoch(paths, tmp_path, capsys):
    out = str(tmp_path / "all.h5")
    hs.run(track(paths, out, **ENDS), **problem(mlp()))
    assert cli.main(["query", out, "outlier_ratio", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    with hs.open(out) as run:
        for line, path, epoch in zip(lines[1:], paths, EPOCHS):
            values = run[f"eigenpairs/{path.stem}"].values
            assert line.split()[:2] == [str(epoch), path.stem]
            assert float(line.split()[2]) == pytest.approx(values[-1] / values[-10], rel=1e-7)


def test_each_view_of_a_track_of_checkpoints(paths, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "all.h5")
    more = {"density": True, "num_probes": 2, "num_steps": 4, "alignment": True}
    hs.run(track(paths, out, eigenvalues=True, **more, **ENDS, **MINIBATCHES), **problem(mlp()))
    saved = []
    monkeypatch.setattr(plotting, "save_figure", lambda figure, out: saved.append(figure))
    with hs.open(out) as run:
        pairs = [run[f"eigenpairs/{path.stem}"] for path in paths]
        aligned = [run[f"alignment/{path.stem}"] for path in paths]
        way = run["trajectory"]
    expected = {
        "loss": {"loss": way.values["loss"]},
        "distance": {"from the start": way.distance_from_start},
        "zeta": {"_child1": [p.values[-1] / p.values[-10] for p in pairs]},
        "alignment": {"3 samples": [a.mean()[0] for a in aligned]},
    }
    for view in ("density", "ridge", "eigenvalues", *expected):
        assert cli.main(["plot", out, "--view", view, "--overwrite"]) == 0, view
        axes = saved[-1].axes[0]
        lines = {line.get_label(): line for line in axes.get_lines()}
        for label, values in expected.get(view, {}).items():
            drawn = lines.get(label, axes.get_lines()[0])
            assert np.asarray(drawn.get_ydata()) == pytest.approx(values, rel=1e-12), view
            assert drawn.get_xdata().tolist() == list(EPOCHS)
    # Without eigenpairs the view shows the extremes that are in the trajectory.
    only = str(tmp_path / "only.h5")
    hs.save(only, way)
    assert cli.main(["plot", only, "--view", "eigenvalues"]) == 0
    (largest, *_) = saved[-1].axes[0].get_lines()
    assert largest.get_ydata() == pytest.approx(way.values["largest"])
    assert cli.main(["plot", only, "--view", "zeta"]) == 2
    assert "this is a trajectory" in capsys.readouterr().err


def test_iterates_of_one_epoch_stand_at_their_steps(paths, tmp_path, capsys):
    for path, step in zip(paths, (40, 41, 107)):
        content = torch.load(path, weights_only=True)
        torch.save({**content, "epoch": 2, "step": step}, path)
    out = str(tmp_path / "all.h5")
    hs.run(track(paths, out, largest=2), **problem(mlp()))
    capsys.readouterr()
    assert cli.main(["query", out, "outlier_ratio", "2"]) == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["step", "40", "41", "107"]
    assert "do not say of which epochs" not in said.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"largest": 0}, "--largest 0: expected 1 or more"),
        ({"largest": 10, "ranks_per_point": 2}, "all ranks share each checkpoint"),
        ({"num_batches": 5, "largest": 1}, "--num-batches 5: expected together with --alignment"),
        ({"largest": 2, "num_products": 60}, "expected together with --density"),
        ({"alignment": True, "batch_sizes": ("0",)}, "--batch-sizes '0': expected 1 or more"),
    ],
)
def test_options_without_use_are_refused(options, said, paths):
    with pytest.raises(InputError, match=said):
        TrackConfig(model="mlp-4-3", dataset="digits", checkpoints=paths, **options).check()


MODEL = ["--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "50", "--dtype", "float64"]


def test_on_ranks_the_results_are_those_of_one_process(tmp_path):
    samples = zoo.load_dataset("digits", limit=50)
    names = []
    for i in range(3):
        names.append(str(tmp_path / f"{i}.pt"))
        torch.save(zoo.model_for(samples, "mlp-64-4-10", "tanh", i).state_dict(), names[-1])
    words = ["track", *MODEL, "--checkpoints", *names, "--hvp", "reverse", "--tol", "1e-9"]
    words += ["--largest", "3", "--smallest", "1", "--alignment", "--batch-sizes", "7", "full"]
    words += ["--num-batches", "3", "--density", "--num-probes", "2", "--num-steps", "4", "--out"]
    assert cli.main([*words, str(tmp_path / "alone.h5")]) == 0
    launch([*TORCHRUN, "3", "-m", "hessian_spectrum", *words, "ranks.h5"], tmp_path)
    with hs.open(tmp_path / "alone.h5") as alone, hs.open(tmp_path / "ranks.h5") as ranks:
        assert set(alone) == set(ranks)
        for i in range(3):
            a, b = alone[f"eigenpairs/{i}"], ranks[f"eigenpairs/{i}"]
            scale = a.values[-1]
            np.testing.assert_allclose(b.values, a.values, atol=1e-10 * scale)
            a, b = alone[f"alignment/{i}"], ranks[f"alignment/{i}"]
            np.testing.assert_allclose(b.alignment, a.alignment, atol=1e-10 * scale)
            np.testing.assert_allclose(b.captured, a.captured, atol=1e-6)
            a, b = alone[f"density/{i}"], ranks[f"density/{i}"]
            np.testing.assert_allclose(b.nodes, a.nodes, atol=1e-9 * scale)
