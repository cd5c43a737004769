"""The noise command: whole runs, resumed after a signal, on ranks, stored, asked and drawn."""

import dataclasses
import json
import os

import h5py
import numpy as np
import pytest
import torch
from command_line import fails, replaced
from dense_oracles import dense_hessian
from figures import texts
from launching import TORCHRUN, launch
from small_networks import NETWORKS, data, mlp
from stopping import StopOnceThere
from torch.nn import functional as F

import hessian_spectrum as hs
from hessian_spectrum.cli.main import main
from hessian_spectrum.commands import noise as command
from hessian_spectrum.commands import runner
from hessian_spectrum.commands.signals import Interrupted
from hessian_spectrum.config import NoiseConfig
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.plotting.noise import noise_figure

ZOO = ["--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "30", "--dtype", "float64"]
FAST = ["--hvp", "reverse"]  # recording four matrices' products would take most of the time
RUN = ["noise", *ZOO, "--batch-size", "16", "--num-batches", "4", "--num-products", "60", *FAST]
SIZES = ["--k", "1", "3", "--batch-sizes", "5", "full"]
PARTS = ("", "/covariance", "/gauss-newton", "/residual")
ALL = [*(f"density{part}" for part in PARTS), *(f"eigenpairs{part}" for part in PARTS), "noise"]


def problem():
    torch.manual_seed(0)
    return {"model": mlp(), "loss_fn": F.cross_entropy, "data": data(30), "batch_size": 8}


def make_noise(out, stop=None, arguments=None, **options):
    fields = {"k": ("1", "classes"), "batch_sizes": ("3", "full"), "num_batches": 6, "out": out}
    how = {"num_products": 60, "tol": 1e-10, "hvp": "reverse"}
    config = NoiseConfig(**{**fields, **how, **options})
    runner.run(command.NoiseRun, config, Problem(**(arguments or problem())), hs.World(), stop)


def assert_same(a, b):
    for field in dataclasses.fields(b):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    path = tmp_path_factory.mktemp("straight") / "straight.h5"
    make_noise(path)
    return path


def test_a_run_holds_the_spectra_of_every_matrix_and_the_shares(straight, tmp_path):
    arguments = problem()
    ev, (x, y) = hs.Evaluator(**arguments), arguments["data"]
    eye = torch.eye(ev.n, dtype=torch.float64)
    H = dense_hessian(ev.model, lambda m: F.cross_entropy(m(x), y)).numpy()
    G, C = ((A @ eye).numpy() for A in (hs.GaussNewton(ev), hs.GradientCovariance(ev)))
    with hs.open(straight) as run:
        assert run.finished and list(run) == [*ALL, "values"]
        found = run["noise"]
        assert found.dimensions.tolist() == [1, 3]
        for part, matrix in zip(PARTS, (H, C, G, H - G)):
            values = np.linalg.eigvalsh(matrix)
            pairs, measure = run[f"eigenpairs{part}"], run[f"density{part}"]
            np.testing.assert_allclose(pairs.values[-3:], values[-3:], rtol=1e-9, err_msg=part)
            assert measure.trace == pytest.approx(np.trace(matrix), rel=1e-9)
            assert (pairs.vectors is None) == (part in PARTS[2:])
        smallest = run["eigenpairs/residual"].values[:3]
        np.testing.assert_allclose(smallest, np.linalg.eigvalsh(H - G)[:3], rtol=1e-9)
    v, u = (np.linalg.eigh(matrix)[1][:, -3:] for matrix in (H, C))
    assert found.subspace_overlap(3) == pytest.approx(np.linalg.norm(v.T @ u) ** 2 / 3, rel=1e-9)
    assert found.noise_share(3) == pytest.approx(np.trace(v.T @ C @ v) / np.trace(C), rel=1e-9)
    g = ev.gradient().numpy()
    share = np.linalg.norm(v.T @ g) ** 2 / (g @ g)
    assert found.gradient_share(3)[1, 0] == pytest.approx(share, rel=1e-9)
    make_noise(tmp_path / "one.h5", centered=False, parts=False, num_products=0)
    with hs.open(tmp_path / "one.h5") as run:
        assert list(run) == ["eigenpairs", "eigenpairs/covariance", "noise", "values"]
        moment = np.linalg.eigvalsh(C + np.outer(g, g))[-3:]
        np.testing.assert_allclose(run["noise"].noise_eigenvalues, moment, rtol=1e-9)
        assert not run["noise"].centered and np.isnan(run["noise"].noise_share(1))


@pytest.mark.parametrize("done", [1, 5, 8])
def test_an_interrupted_run_goes_on_with_what_is_missing(done, straight, tmp_path):
    out = tmp_path / "run.h5"

    held = {}  # by the time of the save: asked after every product

    def enough(path):
        saved = path.stat().st_mtime_ns
        if saved not in held:
            with hs.open(path) as run:
                held[saved] = len(run) - 1
        return held[saved] >= done

    with pytest.raises(Interrupted):
        make_noise(out, StopOnceThere(out, enough))
    with hs.open(out) as run:
        assert not run.finished and len(run) - 1 == done and "noise" not in run
    make_noise(out, resume=True)
    with hs.open(out) as run, hs.open(straight) as whole:
        assert list(run) == list(whole) and run.finished and run.plan == whole.plan
        assert_same(run["noise"], whole["noise"])
        for part in PARTS:
            pairs, expected = run[f"eigenpairs{part}"], whole[f"eigenpairs{part}"]
            np.testing.assert_array_equal(pairs.values, expected.values)
    assert os.listdir(tmp_path) == ["run.h5"]


def test_what_a_resume_is_told(tmp_path):
    out = tmp_path / "run.h5"
    make_noise(out, parts=False, num_products=0)
    before = out.read_bytes()
    for options, message in (
        ({}, "is finished: there is nothing to resume"),
        ({"resume": False}, "exists already"),
    ):
        with pytest.raises(hs.InputError, match=message):
            make_noise(out, **{"resume": True, "parts": False, "num_products": 0, **options})
        assert out.read_bytes() == before
    with pytest.raises(Interrupted):
        make_noise(tmp_path / "new.h5", StopOnceThere(tmp_path / "new.h5"))
    moved = problem()
    with torch.no_grad():
        moved["model"][0].weight.mul_(1.5)
    for options, message in (
        ({"k": ("1",)}, "--k was"),
        ({"centered": False}, "--centered was True and is now False"),
        ({"arguments": moved}, "the parameters are not those of"),
    ):
        with pytest.raises(hs.InputError, match=message):
            make_noise(tmp_path / "new.h5", resume=True, **options)
    hs.save(out, run=hs.open(out)["noise"], config={"command": "density"}, overwrite=True)
    with pytest.raises(hs.InputError, match="is not what an interrupted noise has left"):
        make_noise(out, resume=True)
    torch.manual_seed(0)
    by_batch = {**problem(), "model": NETWORKS["batch norm, dropout"](), "batch_norm": "train"}
    with pytest.raises(hs.InputError, match="each sample's loss depend on its minibatch"):
        make_noise(tmp_path / "train.h5", arguments=by_batch)
    assert not (tmp_path / "train.h5").exists()


def test_the_command_line_prints_answers_draws_and_refuses(inside, capsys):
    assert main([*RUN, *SIZES, "--out", "run.h5"]) == 0
    said = capsys.readouterr().out
    for line in ("lambda_1", "gauss newton", "batch size", "largest angle", "tr C "):
        assert line in said
    with hs.open("run.h5") as run:
        found = run["noise"]

    def asked(*words):
        assert main(["query", "run.h5", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    share = asked("gradient_share", "3", "5")
    assert share["value"] == found.mean_gradient_share(3)[0]
    assert share["standard_error"] == found.gradient_share_error(3)[0] and share["batch_size"] == 5
    whole = asked("gradient_share", "3")
    assert (whole["value"], whole["standard_error"]) == (found.mean_gradient_share(3)[1], 0.0)
    overlap = asked("overlap", "3")
    assert (overlap["value"], overlap["random"]) == (found.subspace_overlap(3), 3 / 310)
    np.testing.assert_allclose(asked("angles", "3")["value"], np.degrees(found.principal_angles(3)))
    assert asked("noise_share", "1")["value"] == found.noise_share(1)
    assert asked("curvature_share", "3")["value"] == found.curvature_share(3)
    deviation = asked("deviation")
    assert deviation["value"] == found.mean_deviation()[0] and deviation["batch_size"] == 5
    assert deviation["expected"] == found.expected_deviation()[0]
    for words, start in (
        (("overlap", "3"), "overlap(3) = "),
        (("gradient_share", "1", "5"), "gradient_share(1, 5) = "),
        (("angles", "1"), "angles(1) = "),
    ):
        assert main(["query", "run.h5", *words]) == 0
        assert capsys.readouterr().out.startswith(start)
    assert main(["query", "run.h5"]) == 0
    assert "gradient_share K [SIZE]" in capsys.readouterr().out
    assert main(["plot", "run.h5"]) == 0
    assert (inside / "run.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["plot", "run.h5", "--result", "density/covariance", "--out", "c.png"]) == 0
    capsys.readouterr()
    assert main(["info", "run.h5"]) == 0
    assert "noise: batch sizes 5, 30, dimensions 1, 3" in capsys.readouterr().out
    assert main([*RUN, *SIZES, "--out", "plan.h5", "--dry-run"]) == 0
    assert "products" in capsys.readouterr().out and not (inside / "plan.h5").exists()
    new = [*RUN, *SIZES, "--out", "new.h5"]
    fails(capsys, replaced(new, "--k", "0"), "--k '0': expected 1 or more, or classes")
    fails(capsys, replaced(new, "--k", "311"), "dimension 311: expected 1 to 310")
    fails(capsys, replaced(new, "--batch-sizes", "all"), "--batch-sizes 'all': expected 1 or more")
    fails(capsys, replaced(new, "--batch-sizes", "31"), "batch size 31: expected 1 to 30")
    fails(capsys, replaced(new, "--num-products", "-1"), "--num-products -1: expected 0 or more")
    fails(capsys, [*new, "--tol", "1"], "--tol 1.0: expected a number from 0 to 1")
    covariance = [*new, "--operator", "gradient-covariance"]
    fails(capsys, covariance, "it is compared with the covariance of gradients; expected hessian")
    fails(capsys, ["query", "run.h5", "overlap", "9"], "9 eigenvectors: expected a whole number")
    fails(capsys, ["query", "run.h5", "overlap", "1.5"], "1.5 eigenvectors: expected a whole")
    fails(capsys, ["query", "run.h5", "angles", "2"], "no angles of 2 dimensions")
    fails(capsys, ["query", "run.h5", "gradient_share", "1", "7"], "no minibatches of 7 samples")
    fails(capsys, ["query", "run.h5", "trace", "--result", "noise"], "no query 'trace' of a noise")
    other = ["plot", "run.h5", "--result", "noise", "--view", "log", "--out", "other.png"]
    fails(capsys, other, "noise has the views noise")


def test_the_command_line_on_ranks(inside):
    exact = [*replaced(RUN, "--num-products", "0"), "--tol", "1e-11"]
    program = [*exact, *SIZES, "--out"]
    assert main([*program, "alone.h5"]) == 0
    launch([*TORCHRUN, "3", "-m", "hessian_spectrum", *program, "torchrun.h5"], inside)
    with hs.open("torchrun.h5") as run, hs.open("alone.h5") as alone:
        assert run.provenance["world_size"] == 3
        several, expected = run["noise"], alone["noise"]
    np.testing.assert_allclose(several.gradient_share(3), expected.gradient_share(3), rtol=1e-9)
    np.testing.assert_allclose(several.overlap**2, expected.overlap**2, atol=1e-9)
    np.testing.assert_allclose(several.noise_along, expected.noise_along, rtol=1e-9)


# -- the result ---------------------------------------------------------------------------------


def some_noise(k=3):
    rng = np.random.default_rng(0)
    norms = rng.random((2, 4)) + 1
    norms[1, 1:] = np.nan
    cosine = np.where(np.isnan(norms)[:, :, None], np.nan, rng.random((2, 4, k)) / 2)
    return hs.Noise(
        batch_sizes=np.array([8, 50]),
        gradient_norm=norms,
        deviation=np.where(np.isnan(norms), np.nan, 0.5),
        cosine=cosine,
        eigenvalues=np.array([1.0, 2.0, 5.0][-k:]),
        residuals=np.zeros(k),
        noise_eigenvalues=np.array([0.5, 1.0, 3.0][-k:]),
        noise_residuals=np.zeros(k),
        overlap=np.linalg.qr(rng.random((k, k)))[0] / 2,
        noise_along=np.array([0.1, 0.2, 0.7][-k:]),
        curvature_along=np.array([0.3, 0.8, 4.0][-k:]),
        dimensions=np.array([1, k]),
        angles=np.array([[0.3, *(k - 1) * [np.nan]], np.linspace(1, 0.1, k)]),
        trace=9.0,
        trace_error=0.1,
        noise_trace=np.nan,
        noise_trace_error=np.nan,
        centered=True,
        num_parameters=100,
        num_samples=50,
        seed=0,
    )


def test_it_is_stored_with_its_axes_and_read_as_it_was(tmp_path):
    found, path = some_noise(), tmp_path / "run.h5"
    hs.save(path, found, late=found)
    with hs.open(path) as run:
        assert set(run) == {"noise", "noise/late"}
        assert_same(run["noise"], found)
        assert type(run["noise"].centered) is bool
    with h5py.File(path) as file:
        group = file["noise/main"]
        labels = [dimension.label for dimension in group["overlap"].dims]
        assert labels == ["eigenpair", "noise_eigenpair"]
        assert np.array_equal(group["cosine"].dims[0][0], [8, 50])
        assert np.array_equal(group["angles"].dims[0][0], [1, 3])


@pytest.mark.parametrize(
    "change",
    [
        {"overlap": np.zeros((3, 2))},
        {"batch_sizes": np.array([50, 8])},
        {"dimensions": np.array([1, 4])},
        {"deviation": np.zeros((2, 3))},
    ],
)
def test_what_does_not_belong_together_is_refused(change):
    with pytest.raises(hs.InputError, match="do not belong together"):
        dataclasses.replace(some_noise(), **change)


def test_the_picture_shows_the_results_own_numbers():
    found = some_noise()
    figure = noise_figure(found)
    shares, spectra, cosines = figure.axes[:3]
    for row, bars in enumerate(shares.containers):
        line, _, (segments,) = bars.lines
        means = [found.mean_gradient_share(k)[row] for k in (1, 2, 3)]
        np.testing.assert_allclose(line.get_data(), [[1, 2, 3], means])
        half = [np.diff(segment[:, 1])[0] / 2 for segment in segments.get_segments()]
        errors = [found.gradient_share_error(k)[row] for k in (1, 2, 3)]
        np.testing.assert_allclose(half, errors, atol=1e-15)
    lines = [line.get_ydata() for line in spectra.lines]
    expected = (found.eigenvalues, found.noise_eigenvalues, found.noise_along)
    np.testing.assert_array_equal(lines, [values[::-1] for values in expected])
    (image,) = cosines.images
    np.testing.assert_array_equal(image.get_array(), np.square(found.overlap)[::-1, ::-1])
    figure.draw_without_rendering()
    assert "all the data" in texts(figure) and "overlap of the top 3: 0.25" in texts(figure)
