"""The train command: interrupted anywhere and resumed, its files, and the same on several ranks."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from command_line import fails
from launching import LAUNCHERS, TORCHRUN, launch
from locations import ROOT
from stopping import StopOnceThere

import hessian_spectrum as hs
from hessian_spectrum import zoo
from hessian_spectrum.cli.main import main
from hessian_spectrum.commands.signals import Interrupted
from hessian_spectrum.commands.train import train
from hessian_spectrum.config import TrainConfig
from hessian_spectrum.zoo.trainer import Training

CNN = ["train", "--model", "cnn", "--dataset", "digits", "--limit", "60", "--lr", "0.02"]
CNN += [
    "--batch-size",
    "7",
    "--optimizer",
    "nesterov",
    "--every",
    "2",
    "--ema",
    "0.9",
    "--swa",
    "1",
]
CNN += ["--augment", "flip-crop", "--switch", "3:rk2-adam-heun:1e-3", "--lr-drop", "1:0.5"]


def content(path):
    return torch.load(path, weights_only=True)


def equal(a, b):
    """Are two trees of tensors and numbers the same, bit for bit?"""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def same_training(a, b):
    """Two folders with the same checkpoints, apart from the options of the runs."""
    names = sorted(os.listdir(a))
    assert names == sorted(os.listdir(b)) and len(names) >= 6
    for name in names:
        one, other = content(a / name), content(b / name)
        one.pop("config"), other.pop("config")
        assert equal(one, other), name
    return True


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a training that nothing interrupted."""
    out = tmp_path_factory.mktemp("straight") / "nets"
    assert main([*CNN, "--epochs", "5", "--out", str(out)]) == 0
    return out


def test_a_training_leaves_checkpoints_and_averages(straight):
    epochs = ("0002", "0004", "0005")
    expected = {f"{kind}-{epoch}.pt" for epoch in epochs for kind in ("epoch", "ema", "swa")}
    assert set(os.listdir(straight)) == expected
    model = zoo.model_for(zoo.load_dataset("digits"), "cnn", "tanh", 0)
    parameters = []
    for name in sorted(expected):
        zoo.load_checkpoint(model, straight / name)
        parameters.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert zoo.stored_epoch(straight / name) == int(name[-7:-3])
        assert zoo.stored_step(straight / name) == 9 * int(name[-7:-3])
    # The mean over the ends of one epoch is the end of epoch 2.
    assert len({tuple(p.tolist()) for p in parameters}) == len(expected) - 1


@pytest.mark.parametrize("step", [1, 13, 20, 27, 30])  # of 9 an epoch; 27 is between two
def test_a_signal_saves_and_a_resumed_training_is_the_straight_one(straight, tmp_path, step):
    config = dict(
        model="cnn", dataset="digits", limit=60, lr=0.02, batch_size=7, optimizer="nesterov",
        every=2, ema=0.9, swa=1, augment="flip-crop", switch=("3:rk2-adam-heun:1e-3",),
        lr_drop=("1:0.5",), epochs=5, out=tmp_path / "nets", checkpoint_minutes=0.0,
    )  # fmt: skip
    state = tmp_path / "nets" / "training.pt"
    stop = StopOnceThere(state, lambda path: content(path)["step"] >= step)
    with pytest.raises(Interrupted):
        train(TrainConfig(**config), stop=stop)
    assert content(state)["step"] in (step, step + 1)
    train(TrainConfig(**config, resume=True))
    assert same_training(straight, tmp_path / "nets")


def started(words, log):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "hessian_spectrum", *words]
    return subprocess.Popen(command, env=environment, stderr=log, stdout=log)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_killed_training_is_resumed_bit_for_bit(straight, inside, number):
    words = [*CNN, "--epochs", "5", "--out", "nets", "--checkpoint-minutes", "0"]
    with open("log", "w") as log:
        process = started(words, log)
        deadline = time.monotonic() + 120
        while not os.path.exists("nets/epoch-0002.pt") and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)  # into the next epoch
        process.send_signal(number)
        code = process.wait(60)
    assert code == (75 if number == signal.SIGTERM else -number)
    assert os.path.exists("nets/training.pt")
    assert main([*words, "--resume"]) == 0
    assert same_training(straight, inside / "nets")


def test_a_finished_training_can_go_on_for_more_epochs(straight, inside, capsys):
    words = [*CNN, "--out", "nets"]
    assert main([*words, "--epochs", "3"]) == 0
    assert main([*words, "--epochs", "3", "--resume"]) == 0
    assert "finished already" in capsys.readouterr().err
    assert main([*words, "--epochs", "5", "--resume"]) == 0
    assert "going on at step 28" in capsys.readouterr().err
    for kind in ("epoch", "ema", "swa"):
        os.remove(f"nets/{kind}-0003.pt")
    assert same_training(straight, inside / "nets")
    fails(capsys, [*words, "--epochs", "4", "--resume"], "has reached epoch 5; give that many")


def test_a_training_that_was_stopped_at_its_new_end_has_a_checkpoint(tmp_path):
    config = dict(model="mlp-64-4-10", dataset="digits", limit=30, batch_size=10, every=9)
    config |= dict(out=tmp_path / "nets", checkpoint_minutes=0.0)
    state = tmp_path / "nets" / "training.pt"
    stop = StopOnceThere(state, lambda path: content(path)["step"] >= 5)  # of 3 an epoch
    with pytest.raises(Interrupted):
        train(TrainConfig(**config, epochs=4), stop=stop)
    assert content(state)["step"] == 6
    last = train(TrainConfig(**config, epochs=2, resume=True))
    assert last.name == "epoch-0002.pt" and zoo.stored_step(last) == 6
    assert os.listdir(tmp_path / "nets") == ["epoch-0002.pt"]


def test_resume_without_a_state_starts_and_other_options_are_refused(inside, capsys):
    words = [*CNN[:-2], "--epochs", "1", "--out", "nets", "--resume"]
    assert main(words) == 0
    assert "nothing to resume" in capsys.readouterr().err
    words[words.index("--batch-size") + 1] = "8"
    fails(capsys, words, "with other options: --batch-size 8 (then 7); give the same ones")


SMALL = ["train", "--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "30", "--out", "nets"]


def test_overwrite_deletes_what_train_wrote_and_nothing_else(inside, capsys):
    assert main([*SMALL, "--epochs", "2", "--every", "1"]) == 0
    torch.save({"model": {}}, "nets/epoch-100.pt")  # three digits: not a name of ours
    (inside / "nets" / "notes.txt").write_text("mine")
    fails(capsys, [*SMALL, "--epochs", "1"], "holds 2 checkpoints already")
    assert main([*SMALL, "--epochs", "1", "--overwrite"]) == 0
    assert sorted(os.listdir("nets")) == ["epoch-0001.pt", "epoch-100.pt", "notes.txt"]
    torch.save({"model": {}}, "nets/epoch-0007.pt")
    fails(capsys, [*SMALL, "--epochs", "1", "--overwrite"], "epoch-0007.pt is no checkpoint of")
    assert sorted(os.listdir("nets"))[:2] == ["epoch-0001.pt", "epoch-0007.pt"]


def test_a_checkpoint_of_an_earlier_version_is_overwritten_but_not_resumed(inside, capsys):
    model = zoo.build_model("mlp-64-4-10", input_shape=(1, 8, 8))
    (inside / "nets").mkdir()
    path = inside / "nets" / "epoch-0009.pt"
    zoo.save_checkpoint(path, model, torch.optim.SGD(model.parameters(), 0.1), 9, {"lr": 0.1})
    fails(capsys, [*SMALL, "--epochs", "1", "--resume"], "does not hold the state of a training")
    assert main([*SMALL, "--epochs", "1", "--overwrite"]) == 0
    assert os.listdir("nets") == ["epoch-0001.pt"]


def test_what_cannot_be_trained_is_refused(inside, capsys):
    fails(capsys, [*SMALL, "--init", "he"], "--init he: expected torch, or one of")
    fails(capsys, [*SMALL, "--lr-drop", "5"], "--lr-drop 5: expected EPOCH:FACTOR")
    fails(capsys, [*SMALL, "--switch", "5:lbfgs:1"], "--switch 5:lbfgs:1: expected")
    fails(capsys, [*SMALL, "--ema", "1"], "--ema 1.0: expected")
    fails(capsys, [*SMALL, "--optimizer", "nesterov", "--momentum", "0"], "nesterov with momentum")
    fails(capsys, [*SMALL, "--track-every", "5"], "--track-every has no effect without --track")
    assert os.listdir(".") == []


# -- several ranks ---------------------------------------------------------------------------------

# Minibatches of 7 are uneven, and the last of 50 samples has one: one rank has none.
ON_RANKS = ["train", "--model", "cnn", "--dataset", "digits", "--limit", "50", "--lr", "0.05"]
ON_RANKS += ["--batch-size", "7", "--epochs", "2", "--every", "1", "--ema", "0.9"]
PROBED = ["--track-every", "100", "--track-probe", "20", "--track-overhead", "1"]


def largest_difference(a, b):
    numbers = [(x, y) for x, y in zip(a.values(), b.values()) if x.is_floating_point()]
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in numbers)


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("rk2-heun", marks=pytest.mark.slow)])
def test_ranks_give_the_parameters_of_one_process(inside, optimizer):
    for dtype, bound in (("float64", 1e-10), ("float32", 3e-5)):
        words = [*ON_RANKS, "--dtype", dtype, "--optimizer", optimizer, "--augment", "flip-crop"]
        for many, start in (("one", [sys.executable]), ("two", [*TORCHRUN, "2"])):
            options = ["--out", f"{many}-{dtype}", "--track", f"{many}-{dtype}.h5", *PROBED]
            launch([*start, "-m", "hessian_spectrum", *words, *options], inside)
        names = sorted(os.listdir(f"one-{dtype}"))
        assert names == sorted(os.listdir(f"two-{dtype}")) and len(names) == 4
        for name in names:
            one, two = (content(f"{many}-{dtype}/{name}")["model"] for many in ("one", "two"))
            # Parameters, and BatchNorm's running statistics. Measured 8e-15 and 3e-6.
            assert largest_difference(two, one) < bound
        tracks = []
        for many in ("one", "two"):
            with hs.open(f"{many}-{dtype}.h5") as run:
                assert run.finished and run["track"].steps.tolist() == [1, 10]
                tracks.append(run["track"])
        for name in (
            "loss",
            "gradient_norm",
            "minibatch_loss",
            "minibatch_gradient_norm",
            "cosine",
        ):
            np.testing.assert_allclose(tracks[1][name], tracks[0][name], rtol=10 * bound)


def test_adversarial_examples_of_ranks_are_those_of_one_process(inside):
    words = [*ON_RANKS, "--loss", "fast-gradient-sign", "--dtype", "float64"]
    assert main([*words, "--out", "one"]) == 0
    launch([*TORCHRUN, "2", "-m", "hessian_spectrum", *words, "--out", "two"], inside)
    one, two = (content(f"{many}/epoch-0002.pt")["model"] for many in ("one", "two"))
    assert largest_difference(two, one) < 1e-10


@pytest.mark.parametrize("launcher", ["mpi", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_training_goes_on_on_another_number_of_ranks(inside, launcher):
    words = [*ON_RANKS, "--dtype", "float64", "--out", "nets"]
    words[words.index("--epochs") + 1] = "1"
    launch([*LAUNCHERS[launcher](3), "-m", "hessian_spectrum", *words], inside)
    words[words.index("--epochs") + 1] = "2"
    assert main([*words, "--resume"]) == 0
    assert main([*words[:-1], "straight"]) == 0
    for name in ("epoch-0002.pt", "ema-0002.pt"):
        one, other = (content(f"{folder}/{name}")["model"] for folder in ("straight", "nets"))
        assert largest_difference(other, one) < 1e-10


# -- iterates and curvature ------------------------------------------------------------------------


def test_iterates_are_kept_of_windows_with_where_they_start(inside, capsys):
    words = [*SMALL, "--batch-size", "10", "--epochs", "4", "--every", "4"]  # 3 steps an epoch
    assert main([*words, "--keep-steps", "2:3", "--keep-epochs", "4"]) == 0
    names = [f"step-{step:06d}.pt" for step in (1, 2, 3, 9, 10, 11, 12)]
    assert sorted(os.listdir("nets")) == ["epoch-0004.pt", *names]
    model = zoo.build_model("mlp-64-4-10", input_shape=(1, 8, 8))
    for name in names:
        path, step = inside / "nets" / name, int(name[5:11])
        assert (zoo.stored_step(path), zoo.stored_epoch(path)) == (step, step // 3)
        zoo.load_checkpoint(model, path)
    end = content("nets/epoch-0004.pt")
    assert equal(content("nets/step-000012.pt")["model"], end["model"])
    # One step of gradient descent with momentum leads from one to the next.
    before, after = (content(f"nets/step-{step:06d}.pt")["model"] for step in (11, 12))
    momentum = end["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.allclose(before["1.weight"] - 0.1 * momentum, after["1.weight"], atol=1e-7)
    track = ["track", "--model", "mlp-64-4-10", "--dataset", "digits", "--limit", "30"]
    assert main([*track, "--checkpoints", *(f"nets/{name}" for name in names)]) == 0
    with hs.open("track.h5") as run:
        assert run["trajectory"].steps.tolist() == [1, 2, 3, 9, 10, 11, 12]
        assert run["trajectory"].about["axis"] == "step"
    words[words.index("--epochs") + 1] = "1"
    assert main([*words, "--overwrite", "--keep-steps", "1:1"]) == 0
    kept = ["step-000000.pt", "step-000001.pt"]
    assert sorted(os.listdir("nets")) == ["epoch-0001.pt", *kept]
    start = zoo.model_for(zoo.load_dataset("digits", limit=30), "mlp-64-4-10", "tanh", 0)
    assert equal(dict(content("nets/step-000000.pt")["model"]), dict(start.state_dict()))
    fails(capsys, [*words, "--keep-steps", "3:2"], "--keep-steps 3:2: expected FIRST:LAST")
    fails(capsys, [*words, "--keep-epochs", "0"], "--keep-epochs 0: epochs count from 1")


TRACKED = [*CNN, "--epochs", "2", "--checkpoint-minutes", "0"]
TRACKED += ["--track", "track.h5", "--track-every", "5", "--track-probe", "20"]
TRACKED += ["--track-overhead", "1", "--track-density-every", "10"]


def assert_same_track(one, other, steps):
    with hs.open(one) as a, hs.open(other) as b:
        assert sorted(a) == sorted(b) and a.finished and b.finished
        assert a["track"].steps.tolist() == b["track"].steps.tolist() == steps
        assert set(a["track"].values) == set(b["track"].values)
        for name in set(a["track"].values) - {"seconds"}:
            np.testing.assert_array_equal(a["track"][name], b["track"][name], err_msg=name)
        np.testing.assert_array_equal(a["track"].eigenvalues, b["track"].eigenvalues)


def reached(step):
    state = "killed/training.pt"
    return os.path.exists(state) and content(state)["step"] >= step


def test_a_tracked_training_is_the_training_and_is_resumed_with_its_file(inside):
    plain = [*CNN, "--epochs", "2"]
    assert main([*plain, "--out", "plain"]) == 0
    assert main([*TRACKED, "--out", "nets"]) == 0
    os.rename("track.h5", "straight.h5")
    a, b = (content(f"{folder}/epoch-0002.pt") for folder in ("plain", "nets"))
    assert equal(dict(a["model"]), dict(b["model"]))
    with hs.open("straight.h5") as run:
        assert "density/step-000010" in run
        track, first = run["track"], content("nets/epoch-0002.pt")
        assert first["tracker"]["records"] == 4
        # Nesterov's rule, at the learning rate of each epoch.
        lr = np.where(track.steps <= 9, 0.02, 0.01)
        np.testing.assert_allclose(track["threshold"], (2 + 2 * 0.9) / ((1 + 2 * 0.9) * lr))
    with open("log", "w") as log:
        process = started([*TRACKED, "--out", "killed"], log)
        deadline = time.monotonic() + 120
        while not reached(11) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait(60)
    assert content("killed/training.pt")["step"] < 18
    assert main([*TRACKED, "--out", "killed", "--resume"]) == 0
    assert_same_track("straight.h5", "track.h5", [1, 5, 10, 15])


def test_a_tracked_training_that_ends_before_its_first_save_is_resumed(inside, monkeypatch):
    words = [*SMALL, "--epochs", "3", "--every", "3", "--batch-size", "10", "--track", "track.h5"]
    words += ["--track-overhead", "1", "--track-every", "3", "--track-probe", "20"]
    assert main(words) == 0
    os.rename("track.h5", "straight.h5")
    shutil.rmtree("nets")
    step = Training.step

    def killed(training):
        if training.step_number == 5:
            raise RuntimeError("the end")
        return step(training)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="the end"):
        patched.setattr(Training, "step", killed)
        main(words)
    with hs.open("track.h5") as run:
        assert run["track"].steps.tolist() == [1, 3]
    assert content("nets/training.pt")["step"] == 0
    assert main([*words, "--resume"]) == 0
    assert_same_track("straight.h5", "track.h5", [1, 3, 6, 9])


def test_a_track_of_another_run_is_left_alone(inside, capsys):
    words = [*SMALL, "--epochs", "1", "--track", "there.h5"]
    (inside / "there.h5").write_text("mine")
    fails(capsys, words, "there.h5")
    assert (inside / "there.h5").read_text() == "mine" and not os.path.exists("nets")


# -- a table of trainings --------------------------------------------------------------------------

GRID = [*SMALL[:-2], "--epochs", "2", "--every", "2", "--out", "table"]
GRID += ["--grid", "optimizers=plain-sgd:0.1,adam:0.01", "seeds=0,3"]
NAMES = ["plain-sgd-seed0", "plain-sgd-seed3", "adam-seed0", "adam-seed3"]


def test_a_grid_fills_a_folder_and_is_resumed(inside, capsys):
    assert main([*GRID, "--grid-member", "3"]) == 0  # as a task of a job array
    assert os.listdir("table") == ["adam-seed3"]
    alone = [*SMALL[:-2], "--epochs", "2", "--every", "2", "--optimizer", "adam", "--lr", "0.01"]
    assert main([*alone, "--seed", "3", "--out", "alone"]) == 0
    a, b = (content(f"{where}/epoch-0002.pt") for where in ("alone", "table/adam-seed3"))
    assert equal(dict(a["model"]), dict(b["model"]))
    capsys.readouterr()
    assert main([*GRID, "--resume"]) == 0
    said = capsys.readouterr()
    assert sorted(os.listdir("table")) == sorted(NAMES)
    assert "table/adam-seed0:" in said.out and "table/adam-seed3" not in said.out
    models = [content(f"table/{name}/epoch-0002.pt")["model"]["3.weight"] for name in NAMES]
    assert len({tuple(w.flatten().tolist()) for w in models}) == 4
    fails(capsys, GRID, "plain-sgd-seed0 holds 1 checkpoints already")
    (inside / "grid.toml").write_text('grid = ["seed=1,2"]\n')
    assert main(["train", "--config", "grid.toml", *alone[1:], "--out", "other"]) == 0
    assert sorted(os.listdir("other")) == ["seed1", "seed2"]


def test_what_diverges_in_a_grid_leaves_the_others(inside, capsys):
    words = [*SMALL[:-2], "--activation", "relu", "--epochs", "1", "--out", "table"]
    words += ["--batch-size", "10", "--grid", "lr=1e38,0.1"]
    assert main(words) == 1
    assert "1 of 2: lr1e38 (training diverged" in capsys.readouterr().err
    assert sorted(os.listdir("table")) == ["lr0.1"]


@pytest.mark.parametrize(
    "grid, words",
    [
        (["optimizer"], "--grid optimizer: expected OPTION=VALUE,VALUE"),
        (["colour=red"], "--grid colour=red: expected OPTION=VALUE,VALUE"),
        (["out=a,b"], "--grid out=a,b: expected OPTION=VALUE"),
        (["optimizer=lbfgs"], "--grid optimizer=lbfgs: optimizer is 'lbfgs'; expected 'sgd' or"),
        (["seed=a"], "--grid seed=a: seed is 'a'; expected a whole number"),
        (["seed=-1"], "--seed -1: expected 0 or more"),
        (["optimizer=sgd:0"], "--lr 0: expected a learning rate above 0"),
        (["seed=1,1"], "--grid seed=1,1: gives seed1 twice"),
        (["seed=1", "--grid-member", "1"], "--grid-member 1: the grid has 1"),
    ],
)
def test_a_grid_of_another_form_is_refused(inside, capsys, grid, words):
    fails(capsys, [*SMALL, "--grid", *grid], words)
    assert os.listdir(".") == []
