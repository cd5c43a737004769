"""The command line: whole runs on real digits, wrong input, interruption and resumption."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from command_line import fails, replaced
from locations import ROOT
from own_problem import OWN

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum.cli.main import main

MODEL = "mlp-64-6-10"
ZOO = ["--model", MODEL, "--dataset", "digits", "--limit", "100", "--dtype", "float64"]
SMALL = [*ZOO, "--num-probes", "3", "--num-steps", "12", "--batch-size", "40"]


def test_density_writes_a_file_that_answers_without_the_model(inside, capsys):
    assert main(["density", *SMALL, "--out", "run.h5"]) == 0
    said = capsys.readouterr()
    assert "36 products in 12 passes" in said.err
    assert "largest eigenvalue" in said.out

    with hs.open("run.h5") as run:
        measure, pairs = run["density"], run["eigenpairs"]
        assert run.finished
        assert run.config["command"] == "density"
        assert run.config["num_steps"] == 12
        assert run.plan["dtype"] == "float64"
        for name in ("digests", "libraries", "seconds", "world_size", "package_commit", "command"):
            assert name in run.provenance
        # And loss, gradient, and a product formed twice for its error.
        assert (run.provenance["products"], run.provenance["passes"]) == (38, 16)
        assert run["values"]["loss"] == pytest.approx(2.3, abs=0.3)
    assert measure.weights.shape == (3, 36)
    assert tuple(pairs.values) == measure.support

    data = zoo.load_dataset("digits", limit=100)
    model = zoo.model_for(data, MODEL, "tanh", 0)
    loss_fn = torch.nn.CrossEntropyLoss()
    evaluator = hs.Evaluator(model, loss_fn, data, dtype=torch.float64, batch_size=40)
    assert run.plan["products"]["mode"] == "linearize" and run.plan["products"]["keep"]
    hessian = hs.Hessian(evaluator, plan=hs.ProductPlan(**run.plan["products"]))
    straight = hs.spectral_density(hessian, 3, 12)
    np.testing.assert_array_equal(straight.nodes, measure.nodes)
    np.testing.assert_array_equal(straight.weights, measure.weights)


def test_query_plot_and_info_read_what_density_wrote(inside, capsys):
    main(["density", *SMALL, "--out", "run.h5"])
    with hs.open("run.h5") as run:
        measure = run["density"]
    capsys.readouterr()
    assert main(["query", "run.h5", "mass", "-0.5", "inf", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["value"] == measure.mass(-0.5, np.inf)
    assert answer["standard_error"] == measure.standard_error("mass", -0.5, np.inf)
    assert main(["query", "run.h5", "density", "0.1", "--sigma2", "1e-3"]) == 0
    assert "density(0.1) = " in capsys.readouterr().out
    assert main(["plot", "run.h5"]) == 0
    assert main(["plot", "run.h5", "--result", "eigenpairs", "--out", "pairs.svg"]) == 0
    assert (inside / "run.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert main(["info", "run.h5"]) == 0
    assert "num_steps: 12" in capsys.readouterr().out
    assert main(["info", "run.h5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"]
    fails(capsys, ["plot", "run.h5"], "exists already")
    fails(capsys, ["query", "run.h5", "mass", "1"], "mass takes 2 numbers (A B), got 1")
    fails(capsys, ["query", "run.h5", "trace", "--result", "x"], "holds no 'x'; it holds density")
    fails(capsys, ["query", "no.h5", "trace"], "no such file")
    (inside / "text.h5").write_text("not a result")
    fails(capsys, ["info", "text.h5"], "text.h5: is not an HDF5 file")


def test_plot_draws_each_view_and_refuses_options_that_it_would_ignore(inside, capsys):
    main(["density", *SMALL, "--out", "run.h5"])
    for view in ("density", "log", "cumulative", "certified"):
        assert main(["plot", "run.h5", "--view", view, "--out", f"{view}.png"]) == 0
    assert len({(inside / f"{v}.png").read_bytes() for v in ("density", "log", "certified")}) == 3
    options = ["--view", "log", "--decades", "0.2", "--floor", "1e-3", "--out", "wide.png"]
    assert main(["plot", "run.h5", *options]) == 0
    assert (inside / "wide.png").read_bytes() != (inside / "log.png").read_bytes()
    plot = ["plot", "run.h5", "--out", "other.png"]
    ignored = "--sigma2 with --view log: expected --view density or certified"
    fails(capsys, [*plot, "--view", "log", "--sigma2", "1"], ignored)
    fails(capsys, [*plot, "--floor", "1"], "--floor with --view density: expected --view log")
    pairs = [*plot, "--result", "eigenpairs", "--view", "log"]
    fails(capsys, pairs, "--view log: eigenpairs has the views eigenvalues, participation")
    pairs = [*plot, "--result", "eigenpairs", "--sigma2", "1"]
    fails(capsys, pairs, "--sigma2 with --view eigenvalues: expected --view density or certified")
    assert not (inside / "other.png").exists()


def test_reading_commands_do_not_import_torch(inside):
    main(["density", *SMALL, "--out", "run.h5"])
    script = (
        "import sys; from hessian_spectrum.cli.main import main;"
        "main(['query','run.h5','trace']); main(['plot','run.h5']); main(['info','run.h5']);"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=_environment())


PROBLEM = """
import torch
from hessian_spectrum import zoo

def make(limit=50, activation="tanh"):
    data = zoo.load_dataset("digits", limit=limit)
    return zoo.model_for(data, "mlp-64-6-10", activation, 0), torch.nn.CrossEntropyLoss(), data

def wrong():
    return 3

def divided():
    data = zoo.load_dataset("digits", limit=100)
    model = zoo.model_for(data, "mlp-64-6-10", "tanh", 0)
    return {"model": model, "loss_fn": lambda out, y: 2 * torch.nn.functional.cross_entropy(out, y),
            "data": data, "weight_decay": 0.5}
"""


def density_of(path):
    with hs.open(path) as run:
        return run["density"]


def test_a_problem_from_the_users_own_file(inside, capsys):
    (inside / "mine.py").write_text(PROBLEM)
    options = ["--dtype", "float64", "--num-probes", "3", "--num-steps", "12", "--batch-size", "40"]
    own = ["density", "--problem", "mine.py:make", *options]
    assert main([*own, "--problem-arg", "limit=100", "--out", "own.h5"]) == 0
    assert main(["density", *SMALL, "--out", "zoo.h5"]) == 0
    assert np.array_equal(density_of("own.h5").nodes, density_of("zoo.h5").nodes)
    # A dict of Evaluator's arguments: twice the loss, and a weight decay.
    assert main(["density", "--problem", "mine.py:divided", *options, "--out", "two.h5"]) == 0
    np.testing.assert_allclose(
        density_of("two.h5").nodes, 2 * density_of("zoo.h5").nodes + 0.5, rtol=1e-9
    )
    fails(capsys, ["density", "--problem", "mine.py:nothing"], "has no function nothing")
    fails(capsys, ["density", "--problem", "mine.py:wrong"], "returned a int")
    fails(capsys, ["density", "--problem", "other.py:make"], "other.py: no such file")
    fails(capsys, [*own, "--problem-arg", "limit"], "expected KEY=VALUE")


def test_options_from_a_file_are_overridden_by_the_command_line(inside, capsys):
    (inside / "run.toml").write_text(
        'model = "mlp-64-6-10"\ndataset = "digits"\nlimit = 100\ndtype = "float64"\n'
        "num-probes = 3\nnum_steps = 9\nbatch_size = 40\nout = 'a.h5'\n"
    )
    assert main(["density", "--config", "run.toml", "--num-steps", "12"]) == 0
    assert main(["density", "--config", "a.h5", "--out", "b.h5"]) == 0
    assert main(["density", *SMALL, "--out", "c.h5"]) == 0
    for path in ("a.h5", "b.h5"):
        assert np.array_equal(density_of(path).nodes, density_of("c.h5").nodes)
    (inside / "bad.json").write_text('{"num_step": 3}')
    fails(capsys, ["density", "--config", "bad.json"], "unknown option num_step; expected among")
    fails(capsys, ["density", "--config", "none.toml"], "no such file")


def checkpoint(path, model=MODEL, spoil=False):
    data = zoo.load_dataset("digits", limit=100)
    network = zoo.model_for(data, model, "tanh", 0)
    if spoil:
        network[1].weight.data[2, 3] = torch.nan
    torch.save(network.state_dict(), path)


def test_wrong_input_is_one_line_exit_code_2_and_no_file(inside, capsys):
    run = ["density", *SMALL]
    checkpoint("other.pt", "mlp-64-7-10")
    checkpoint("nan.pt", spoil=True)
    (inside / "cut.pt").write_bytes((inside / "nan.pt").read_bytes()[:900])
    images = np.zeros((4, 1, 8, 8), np.float32)
    np.savez("empty.npz", images=images[:0], labels=np.zeros(0, np.int64))
    np.savez("labels.npz", images=images, labels=np.array([0, 1, 2, 12]))
    (inside / "there.h5").write_text("mine")
    (inside / "file").write_text("mine")

    fails(capsys, [*run, "--checkpoint", "none.pt"], "no checkpoint file at none.pt")
    fails(capsys, [*run, "--checkpoint", "other.pt"], "other.pt belongs to another model")
    fails(capsys, [*run, "--checkpoint", "cut.pt"], "cut.pt cannot be read as a checkpoint")
    fails(capsys, [*run, "--checkpoint", "nan.pt"], "parameter 1.weight has 1 entries that are NaN")
    arrays = ["density", "--model", MODEL, "--dataset", "arrays", "--data-root"]
    fails(capsys, [*arrays, "empty.npz"], "empty.npz")
    fails(capsys, [*arrays, "labels.npz"], "label 12, but the model has 10 outputs")
    fails(capsys, [*arrays, "none.npz"], "none.npz")
    fails(capsys, [*run, "--out", "nowhere/run.h5"], "does not exist")
    fails(capsys, [*run, "--out", "file/run.h5"], "file")
    fails(capsys, [*run, "--out", "there.h5"], "exists already")
    fails(
        capsys,
        replaced(run, "--num-steps", "9999"),
        "--num-steps 9999 exceeds the number of parameters",
    )
    fails(capsys, replaced(run, "--num-probes", "0"), "--num-probes 0: expected 1 or more")
    fails(capsys, replaced(run, "--limit", "0"), "limit")
    fails(capsys, ["density", "--model", "vgg9", "--dataset", "digits"], "unknown model")
    fails(capsys, ["density", "--model", "resnet21", "--dataset", "digits"], "a depth of 6 b + 2")
    fails(capsys, ["density", "--model", MODEL, "--dataset", "faces"], "faces")
    fails(capsys, ["density", "--model", MODEL], "--dataset is missing")
    fails(capsys, ["density"], "name a problem")
    fails(capsys, [*run, "--parameters", "conv*"], "no parameter matches 'conv*'")
    fails(capsys, ["train", "--dataset", "digits", "--out", "file"], "file is a file")
    fails(capsys, ["train", "--dataset", "digits", "--out", "a/b"], "does not exist")
    assert (inside / "there.h5").read_text() == "mine"


def test_train_then_density_of_a_network_with_batch_norm(inside, capsys):
    train = ["train", "--model", "cnn", "--dataset", "digits", "--limit", "200", "--lr", "0.05"]
    train += ["--epochs", "3", "--every", "2", "--out", "nets"]
    assert main(train) == 0
    assert sorted(os.listdir("nets")) == ["epoch-0002.pt", "epoch-0003.pt"]
    fails(capsys, train, "holds 2 checkpoints already")
    run = ["density", "--model", "cnn", "--dataset", "digits", "--limit", "60"]
    run += ["--checkpoint", "nets/epoch-0003.pt", "--num-probes", "2", "--num-steps", "5"]
    assert main(run) == 0
    with hs.open("density.h5") as result:
        assert result.plan["dtype"] == "float32"
        assert 0 < result["values"]["loss"] < 2.3


def test_demo_writes_its_file_and_picture(inside, capsys):
    assert main(["demo", "--epochs", "2", "--num-products", "20"]) == 0
    assert "How to read it" in capsys.readouterr().out
    assert {"digits.h5", "digits.png", "checkpoints"} <= set(os.listdir("demo"))
    fails(capsys, ["demo"], "exists")


# -- interruption --------------------------------------------------------------------------------

# Not the fastest way to multiply, so that a signal finds the run under way.
LONG = [*ZOO, "--num-probes", "4", "--num-steps", "100", "--batch-size", "5", "--hvp", "reverse"]
LONG += ["--keep-state", "never", "--out", "run.h5"]


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _interrupted(number, *options, after="run.h5.d/manifest.json"):
    """Start a run of many seconds, wait for ``after`` to appear, send the signal."""
    command = [sys.executable, "-m", "hessian_spectrum", "density", *LONG, *options]
    process = subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True)
    if after == "start":
        while " products in " not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.5)  # into the steps
    else:
        deadline = time.monotonic() + 60
        while not os.path.exists(after) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
    process.send_signal(number)
    return process.wait(), process.stderr.read()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The file of a run that nothing interrupts."""
    path = tmp_path_factory.mktemp("straight") / "straight.h5"
    assert main(["density", *LONG[:-1], str(path)]) == 0
    return path


def _same_bits(path, other):
    a, b = density_of(path), density_of(other)
    return np.array_equal(a.nodes, b.nodes) and np.array_equal(a.weights, b.weights)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *[pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGUSR1, signal.SIGINT)],
    ],
)
def test_a_signal_saves_the_state_and_resume_gives_the_same_bits(inside, straight, number, capsys):
    code, said = _interrupted(number, after="start")
    assert code == 75
    assert "the same command with --resume continues" in said
    with hs.open("run.h5") as run:  # readable, with what was finished
        assert not run.finished
        assert run["density"].mass(-np.inf, np.inf) == pytest.approx(1)
    fails(capsys, ["density", *LONG], "exists already")
    fails(capsys, ["density", *LONG, "--resume", "--seed", "1"], "--seed was 0 and is now 1")
    checkpoint("other.pt")
    assert main(["density", *LONG, "--resume"]) == 0
    assert _same_bits("run.h5", straight)
    assert sorted(p for p in os.listdir() if p.startswith("run.h5")) == ["run.h5"]
    with hs.open("run.h5") as run:
        products = run.provenance["products"]
    with hs.open(straight) as run:
        assert products == run.provenance["products"]  # none twice but one, for its error
    fails(capsys, ["density", *LONG, "--resume"], "is finished: there is nothing to resume")


def test_a_signal_before_the_first_step_is_one_line_and_leaves_nothing(inside):
    (inside / "slow.py").write_text(
        "import time, pathlib\ndef make():\n    pathlib.Path('made').touch()\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "hessian_spectrum", "density", "--problem", "slow.py:make"]
    process = subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True)
    while not os.path.exists("made"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    said = process.stderr.read().strip()
    assert said.startswith("hessian-spectrum: stopped by SIGTERM")
    assert "\n" not in said
    assert not os.path.exists("density.h5")


def test_sigkill_leaves_the_last_checkpoint_and_resume_gives_the_same_bits(inside, straight):
    code, _ = _interrupted(signal.SIGKILL, "--checkpoint-minutes", "0.002")
    assert code == -signal.SIGKILL
    assert os.path.exists("run.h5.lock")  # of a dead process: taken over
    assert main(["density", *LONG, "--resume"]) == 0
    assert _same_bits("run.h5", straight)


def test_resume_without_anything_to_resume_starts(inside, straight):
    assert main(["density", *LONG, "--resume"]) == 0
    assert _same_bits("run.h5", straight)


def test_resume_of_other_parameters_is_refused(inside, capsys):
    checkpoint("net.pt")
    options = ["--checkpoint", "net.pt"]
    assert _interrupted(signal.SIGTERM, *options, after="start")[0] == 75
    network = torch.load("net.pt", weights_only=True)
    network["1.bias"] += 1
    torch.save(network, "net.pt")
    fails(capsys, ["density", *LONG, *options, "--resume"], "the parameters are not those of")
    few = replaced(LONG, "--num-steps", "2")
    assert main(["density", *few, *options, "--overwrite"]) == 0


def test_a_second_writer_is_refused(inside):
    # Minibatches of one sample: the first must still be at work when the second has started.
    words = ["density", *replaced(LONG, "--batch-size", "1")]
    command = [sys.executable, "-m", "hessian_spectrum", *words]
    first = subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True)
    while " products in " not in first.stderr.readline():
        assert first.poll() is None
    second = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    assert second.returncode == 2
    assert "another process is writing here" in second.stderr
    first.terminate()
    assert first.wait() == 75


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        ("gauss-newton", "GaussNewton"),
        ("fisher", "Fisher"),
        ("gradient-covariance", "GradientCovariance"),
        ("gradient-second-moment", "GradientCovariance"),
        ("gauss-newton-residual", "GaussNewtonResidual"),
        ("likelihood-curvature", "LikelihoodCurvature"),
    ],
)
def test_density_of_another_curvature_matrix(inside, operator, name):
    assert main(["density", *SMALL, "--operator", operator, "--out", "run.h5"]) == 0
    with hs.open("run.h5") as run:
        measure, plan = run["density"], run.plan
    assert plan["operator"] == operator
    data = zoo.load_dataset("digits", limit=100)
    model = zoo.model_for(data, MODEL, "tanh", 0)
    loss_fn = torch.nn.CrossEntropyLoss()
    evaluator = hs.Evaluator(model, loss_fn, data, dtype=torch.float64, batch_size=40)
    options = {"centered": operator == "gradient-covariance"} if "gradient" in operator else {}
    expected = getattr(hs, name)(evaluator, plan=hs.ProductPlan(**plan["products"]), **options)
    nodes = hs.spectral_density(expected, 3, 12).nodes
    np.testing.assert_allclose(measure.nodes, nodes, atol=1e-12)
    is_semidefinite = operator not in ("gauss-newton-residual", "likelihood-curvature")
    assert (measure.support[0] > -1e-12) == is_semidefinite and measure.support[1] > 0


def test_batch_norm_by_minibatch_is_recorded_and_its_minibatches_cannot_change(inside, capsys):
    command = ["density", *SMALL, "--batch-norm", "train", "--out", "run.h5"]
    command[command.index(MODEL)] = "cnn"
    assert main([*command, "--checkpoint-minutes", "0"]) == 0
    with hs.open("run.h5") as run:
        assert run.plan["batch_norm"] == run.config["batch_norm"] == "train"
        first = run["density"]
    command += ["--overwrite"]
    command[command.index("--batch-size") + 1] = "50"
    assert main(command) == 0
    assert abs(density_of("run.h5").trace / first.trace - 1) > 1e-3
    capsys.readouterr()
    assert main([*command, "--operator", "gradient-covariance"]) == 2
    assert "(BatchNorm2d)" in capsys.readouterr().err


def test_the_stored_options_give_the_result_again_when_the_problem_changes_its_mind(inside):
    (inside / "mine.py").write_text(OWN)
    run = ["density", "--problem", "mine.py:make", "--num-probes", "2", "--num-steps", "4"]
    assert main([*run, "--out", "a.h5"]) == 0
    (inside / "mine.py").write_text(OWN.replace("0.5", "0.1").replace("(data, 7", "(data, 9"))
    assert main(["density", "--config", "a.h5", "--out", "b.h5"]) == 0
    with hs.open("a.h5") as a, hs.open("b.h5") as b:
        assert np.array_equal(a["density"].nodes, b["density"].nodes)
        assert (a.config["weight_decay"], a.config["batch_size"]) == (0.5, 7)
