"""Densities of many checkpoints in one process: the same as alone, in one file, resumed."""

import dataclasses

import numpy as np
import pytest
import torch
from small_networks import CLASSES, INPUTS, data, mlp
from stopping import StopOnceThere
from torch import nn
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum._core.errors import InputError, Warned
from hessian_spectrum.commands import runner
from hessian_spectrum.commands.signals import Interrupted, StopRequest
from hessian_spectrum.commands.surfaces import Track
from hessian_spectrum.commands.track_curvature import TrackCurvature
from hessian_spectrum.config import DensityConfig, TrackConfig
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.storage.merge import merge

SIZES = {"num_probes": 2, "num_steps": 4, "hvp": "reverse", "device": "cpu"}


def normalized():
    layers = [nn.Linear(INPUTS, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES)]
    return nn.Sequential(*layers).double()


NETWORKS = {"mlp": mlp, "batch norm": normalized}


def problem(model):
    return {"model": model, "loss_fn": F.cross_entropy, "data": data(), "batch_size": 4}


def trained(model, folder, epochs=(2, 4, 9)):
    """Checkpoints whose parameters and running statistics all differ."""
    torch.manual_seed(0)
    paths = []
    for epoch in epochs:
        with torch.no_grad():
            for t in model.state_dict().values():
                if t.is_floating_point():
                    t += 0.3 * torch.rand_like(t)
        paths.append(folder / f"epoch-{epoch:04d}.pt")
        zoo.save_checkpoint(paths[-1], model, torch.optim.SGD(model.parameters(), 1), epoch, {})
    return tuple(paths)


@pytest.fixture(params=NETWORKS)
def model(request):
    torch.manual_seed(1)
    return NETWORKS[request.param]()


def track(paths, out, **options):
    return TrackConfig(checkpoints=paths, out=out, density=True, **{**SIZES, **options})


def same(found, expected):
    for field in ("nodes", "weights", "residuals", "certified"):
        assert np.array_equal(getattr(found, field), getattr(expected, field)), field


def test_each_density_is_the_one_of_the_density_command(model, tmp_path):
    paths = trained(model, tmp_path)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    hs.run(track(paths, tmp_path / "all.h5"), **problem(model))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    alone = [tmp_path / f"{path.stem}.h5" for path in paths]
    for path, out in zip(paths, alone):
        hs.run(DensityConfig(checkpoint=path, out=out, **SIZES), **problem(model))
    merge(tmp_path / "merged.h5", alone)
    with hs.open(tmp_path / "all.h5") as run, hs.open(tmp_path / "merged.h5") as merged:
        assert set(run) - {"trajectory", "values"} == set(merged)
        losses = []
        for path, epoch in zip(paths, (2, 4, 9)):
            same(run[f"density/{path.stem}"], merged[f"density/{path.stem}"])
            assert merged[f"values/{path.stem}"]["epoch"] == epoch  # as the checkpoint says
            values = merged[f"values/{path.stem}"]
            losses.append(values["loss"])
            assert values.items() <= run[f"values/{path.stem}"].items()
        assert run["trajectory"].values["loss"] == pytest.approx(losses, rel=1e-12)
        assert run["trajectory"].steps.tolist() == [2, 4, 9]
        assert run["trajectory"].about["axis"] == "epoch"


def after_densities(out, count):
    """A signal once so many densities are in the file."""

    def enough(out):
        with hs.open(out) as run:
            return sum("density" in key for key in run) >= count

    return StopOnceThere(out, enough)


def compute(config, model, stop=None):
    located = TrackCurvature.located(config)
    zoo.load_checkpoint(model, located.checkpoint)
    chosen = Problem(**problem(model))
    runner.run(TrackCurvature, located, chosen, hs.World(), stop or StopRequest(), quiet=True)


def test_a_resumed_run_computes_only_what_is_missing(model, tmp_path, monkeypatch):
    paths, out = trained(model, tmp_path), tmp_path / "run.h5"
    compute(track(paths, tmp_path / "whole.h5", eigenvalues=True), model)
    config = track(paths, out, eigenvalues=True)
    with pytest.raises(Interrupted):
        compute(config, model, after_densities(out, 2))
    visited, step = [], TrackCurvature._results

    def counted(self, session, index):
        visited.append(index)
        return step(self, session, index)

    monkeypatch.setattr(TrackCurvature, "_results", counted)
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(InputError, match="cannot resume: --num-steps was 4 and is now 5"):
        compute(dataclasses.replace(again, num_steps=5), model)
    compute(again, model)
    assert visited == [2]
    with hs.open(out) as run, hs.open(tmp_path / "whole.h5") as whole:
        assert run.finished
        assert set(run) == set(whole)
        for path in paths:
            same(run[f"density/{path.stem}"], whole[f"density/{path.stem}"])
        for name, values in whole["trajectory"].values.items():
            assert np.array_equal(run["trajectory"].values[name], values), name
            assert np.isfinite(values).all()


def test_other_buffers_are_another_run(tmp_path):
    model = normalized()
    paths, out = trained(model, tmp_path), tmp_path / "run.h5"
    with pytest.raises(Interrupted):
        compute(track(paths, out), model, after_densities(out, 1))
    content = torch.load(paths[1], weights_only=True)
    content["model"]["1.running_mean"] += 1
    torch.save(content, paths[1])
    with pytest.raises(InputError, match="the points are not those of the interrupted run"):
        compute(track(paths, out, resume=True), model)


def test_a_checkpoint_without_finite_loss_has_no_density(tmp_path):
    model = nn.Sequential(nn.Linear(INPUTS, 5), nn.Linear(5, CLASSES))  # in float32
    paths, out = trained(model, tmp_path), tmp_path / "run.h5"
    content = torch.load(paths[1], weights_only=True)
    for weight in ("0.weight", "1.weight"):
        content["model"][weight] *= 1e25  # finite; their products are not
    torch.save(content, paths[1])
    compute(track(paths, out), model)
    with hs.open(out) as run:
        assert [key for key in run if "density" in key] == [
            f"density/{paths[i].stem}" for i in (0, 2)
        ]
        assert np.isfinite(run["trajectory"].values["loss"]).tolist() == [True, False, True]


@pytest.mark.parametrize("density", [False, True])
def test_without_stored_epochs_checkpoints_are_numbered(density, tmp_path):
    model, out = mlp(), tmp_path / "run.h5"
    paths = trained(model, tmp_path)
    torch.save(torch.load(paths[1], weights_only=True)["model"], paths[1])
    config = dataclasses.replace(track(paths, out), density=density)
    config = config if density else TrackConfig(checkpoints=paths, out=out, device="cpu")
    assert Track.chosen(config) is (TrackCurvature if density else Track)
    with pytest.warns(Warned, match=r"numbered 0, 1, \.\.\.: epoch-0004\.pt stores no epoch"):
        hs.run(config, **problem(model))
    with hs.open(out) as run:
        assert run["trajectory"].steps.tolist() == [0, 1, 2]
        assert run["trajectory"].about["axis"] == "index"


def test_epochs_that_do_not_ascend_are_no_axis(tmp_path):
    model = mlp()
    first, second, third = trained(model, tmp_path)
    config = TrackConfig(checkpoints=(second, first, third), out=tmp_path / "x.h5", device="cpu")
    with pytest.warns(Warned, match="the stored epochs do not ascend"):
        found = hs.run(config, **problem(model))
    assert found.steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_products": 60}, "--num-products 60: expected together with --density"),
        ({"seed": 1, "eigenvalues": True}, "--seed 1: expected together with --density"),
        ({"operator": "fisher"}, "expected together with --eigenvalues or --density"),
        ({"density": True, "ranks_per_point": 2}, "all ranks share each checkpoint"),
        ({"density": True, "sigma2": 0.1}, "--sigma2 0.1 without --target-error"),
    ],
)
def test_options_without_use_are_refused(options, reason, tmp_path):
    paths = tuple(tmp_path / f"{i}.pt" for i in range(3))
    with pytest.raises(InputError, match=reason):
        TrackConfig(model="mlp-4-3", dataset="digits", checkpoints=paths, **options).check()


def test_checkpoints_of_one_name_are_refused(tmp_path):
    model = mlp()
    (tmp_path / "b").mkdir()
    paths = (*trained(model, tmp_path)[:2], *trained(model, tmp_path / "b", (4,)))
    with pytest.raises(InputError, match="two files are called epoch-0004"):
        hs.run(track(paths, tmp_path / "x.h5"), **problem(model))
