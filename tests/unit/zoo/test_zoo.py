"""The zoo: what its names promise, and what it says when they cannot be kept."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from locations import DATA
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo import (
    build_model,
    load_checkpoint,
    load_dataset,
    model_for,
    save_checkpoint,
    train,
)
from hessian_spectrum.zoo import datasets as datasets_module


def shared(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"no {DATA / name}; set HESSIAN_SPECTRUM_DATA to the shared data")
    return DATA / name


def one_line(caught: pytest.ExceptionInfo) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def seeded(name: str = "mlp-64-20-10", **options) -> nn.Module:
    torch.manual_seed(1)
    return build_model(name, **{"input_shape": (1, 8, 8), **options})


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def same_state(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# Models


def test_mlp_784_20_10_has_15910_parameters():
    model = build_model("mlp-784-20-10")
    assert num_parameters(model) == 784 * 20 + 20 + 20 * 10 + 10 == 15910
    assert isinstance(model[0], nn.Flatten)
    assert [type(layer) for layer in model[1:]] == [nn.Linear, nn.Tanh, nn.Linear]


def test_mlp_without_hidden_layer_is_softmax_regression():
    assert [type(layer) for layer in build_model("mlp-784-10")] == [nn.Flatten, nn.Linear]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_cnn_takes_every_image_size(shape):
    model = build_model("cnn", input_shape=shape, activation="relu", num_classes=7)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)
    assert 5_000 <= num_parameters(model) <= 20_000
    assert any(isinstance(layer, nn.ReLU) for layer in model)
    assert not any(isinstance(layer, nn.Tanh) for layer in model)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("resnet", {}, ["'resnet'", "mlp-A-B-...-C", "cnn"]),
        ("mlp-784", {}, ["'mlp-784'", "mlp-A-B-...-C"]),
        ("mlp-784-0-10", {}, ["'mlp-784-0-10'"]),
        ("mlp-64-20-10", {}, ["64 inputs", "(1, 28, 28)", "use mlp-784-20-10"]),
        ("mlp-784-20-10", {"num_classes": 3}, ["10 classes", "use mlp-784-20-3"]),
        ("cnn", {"input_shape": (784,)}, ["(784,)", "(C, H, W)"]),
        ("cnn", {"activation": "gelu"}, ["'gelu'", "tanh", "relu"]),
    ],
)
def test_model_that_does_not_exist_or_fit_is_refused(name, options, words):
    with pytest.raises(InputError) as caught:
        build_model(name, **options)
    assert all(word in one_line(caught) for word in words)


# Data sets


def test_digits_are_all_1797_split_without_overlap():
    x_train, y_train = load_dataset("digits").tensors
    x_test, y_test = load_dataset("digits", split="test").tensors
    assert (x_train.shape, x_test.shape) == ((1500, 1, 8, 8), (297, 1, 8, 8))
    x, y = torch.cat([x_train, x_test]), torch.cat([y_train, y_test])
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    # Sums that scikit-learn's copy of the UCI data gives.
    assert (int((x * 16).sum()), int(y.sum())) == (561718, 8070)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)


def test_digits_equal_those_of_scikit_learn():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = load_dataset("digits").tensors
    assert np.array_equal(x[:, 0].numpy() * 16, source.images[:1500])
    assert np.array_equal(y.numpy(), source.target[:1500])


def test_limit_takes_the_first_samples():
    whole, few = load_dataset("digits").tensors, load_dataset("digits", limit=7).tensors
    assert all(torch.equal(a[:7], b) for a, b in zip(whole, few))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"name": "imagenet"}, ["'imagenet'", "digits, mnist, cifar10, arrays"]),
        ({"name": "digits", "split": "valid"}, ["'valid'", "train, test"]),
        ({"name": "digits", "limit": 0}, ["limit is 0", "at least 1"]),
        ({"name": "digits", "image_size": 4}, ["image_size is 4", "torchvision:NAME", "'digits'"]),
        ({"name": "arrays", "image_size": 4}, ["image_size is 4", "leave it out"]),
        ({"name": "mnist"}, ["data_root", "MNIST/raw/train-images-idx3-ubyte"]),
        ({"name": "cifar10"}, ["data_root", "cifar-10-batches-py"]),
        ({"name": "arrays", "split": "test"}, ["data_root", "test_images and test_labels"]),
    ],
)
def test_wrong_request_is_refused(options, words):
    with pytest.raises(InputError) as caught:
        load_dataset(**options)
    assert all(word in one_line(caught) for word in words)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_files_are_named_and_nothing_is_downloaded(name, tmp_path):
    with pytest.raises(InputError) as caught:
        load_dataset(name, data_root=tmp_path)
    assert str(tmp_path) in one_line(caught)
    assert "use --download" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_mnist_reads_the_real_files():
    root = shared("MNIST/raw").parents[1]
    x, y = load_dataset("mnist", data_root=root).tensors
    assert (x.shape, x.dtype, y.shape, y.dtype) == (
        (9000, 1, 28, 28),
        torch.float32,
        (9000,),
        torch.int64,
    )
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert set(y.tolist()) == set(range(10))
    assert len(load_dataset("mnist", data_root=root, split="test")) == 1000


def test_damaged_mnist_is_refused(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(b"\x00\x00\x08")
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_dataset("mnist", data_root=tmp_path)
    assert "incomplete or damaged" in one_line(caught)


def test_cifar10_has_its_channels_first(tmp_path, monkeypatch):
    # The real reader checks the original files' sums, so a stand-in gives its two attributes.
    class Reader:
        def __init__(self, root, train, download):
            assert (root, train, download) == (tmp_path, True, False)
            self.data = np.arange(2 * 32 * 32 * 3, dtype=np.int64).reshape(2, 32, 32, 3) % 256
            self.data = self.data.astype(np.uint8)
            self.targets = [3, 5]

    monkeypatch.setattr(datasets_module.import_torchvision().datasets, "CIFAR10", Reader)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").touch()
    x, y = load_dataset("cifar10", data_root=tmp_path).tensors
    assert x.shape == (2, 3, 32, 32)
    assert torch.equal(x[0, :, 0, 1], torch.tensor([3.0, 4.0, 5.0]) / 255)
    assert y.tolist() == [3, 5]


def test_arrays_read_the_real_npz():
    x, y = load_dataset(
        "arrays", data_root=shared("cifar10_jpeg.npz"), split="test", limit=50
    ).tensors
    assert (x.shape, y.shape, y.dtype) == ((50, 3, 32, 32), (50,), torch.int64)
    assert 0.5 < float(x.max()) <= 1.0


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(
    "names", [("train_images", "train_labels"), ("images", "labels"), ("inputs", "targets")]
)
def test_arrays_scale_bytes_and_leave_floats(tmp_path, suffix, names):
    labels = np.array([2, 0, 1], dtype=np.int32)
    for inputs, expected in (
        (np.full((3, 4, 4), 51, np.uint8), 0.2),
        (np.full((3, 1, 4, 4), -7.5), -7.5),
    ):
        path = write_arrays(tmp_path / f"data{suffix}", {names[0]: inputs, names[1]: labels})
        x, y = load_dataset("arrays", data_root=path).tensors
        assert torch.equal(x, torch.full((3, 1, 4, 4), expected))
        assert (x.dtype, y.dtype, y.tolist()) == (torch.float32, torch.int64, [2, 0, 1])


def test_arrays_without_a_split_are_no_test_set(tmp_path):
    arrays = {"images": np.zeros((3, 4, 4)), "labels": np.zeros(3, int)}
    path = write_arrays(tmp_path / "data.npz", arrays)
    with pytest.raises(InputError, match="test_images and test_labels"):
        load_dataset("arrays", data_root=path, split="test")


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({}, ["(none)", "train_images and train_labels"]),
        ({"pixels": np.zeros(3)}, ["pixels", "train_images and train_labels"]),
        ({"images": np.zeros((3, 4)), "labels": np.zeros(3, int)}, ["(3, 4)", "(N, C, H, W)"]),
        ({"images": np.zeros((3, 4, 4)), "labels": np.zeros(2, int)}, ["(3, 4, 4)", "(2,)"]),
        ({"images": np.zeros((3, 4, 4)), "labels": np.zeros(3)}, ["float64", "integer labels"]),
        ({"images": np.zeros((3, 4, 4), int), "labels": np.zeros(3, int)}, ["int64", "uint8"]),
        ({"images": np.zeros((0, 4, 4)), "labels": np.zeros(0, int)}, ["(0, 4, 4)", "at least"]),
        ({"images": np.full((1, 4, 4), np.nan), "labels": np.zeros(1, int)}, ["NaN", "images"]),
        ({"images": np.zeros((1, 4, 4)), "labels": np.array([-1])}, ["-1", "from 0"]),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_wrong_arrays_are_refused_by_name(tmp_path, suffix, arrays, words):
    path = write_arrays(tmp_path / f"data{suffix}", arrays)
    with pytest.raises(InputError) as caught:
        load_dataset("arrays", data_root=path)
    assert all(word in one_line(caught) for word in [str(path), *words])


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("kept", [0, 20, 0.5, 0.95])
def test_truncated_array_file_is_refused(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).random((50, 8, 8))
    path = write_arrays(tmp_path / f"data{suffix}", {"images": noise, "labels": np.zeros(50, int)})
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if kept in (0, 20) else int(kept * len(whole))])
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_dataset("arrays", data_root=path)
    assert str(path) in one_line(caught)


def test_pickled_missing_and_foreign_array_files_are_refused(tmp_path):
    labels = np.zeros(2, int)
    np.savez(tmp_path / "pickled.npz", images=np.array([{}, {}]), labels=labels)
    np.save(tmp_path / "single.npy", labels)
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    (tmp_path / "data.csv").write_text("1,2\n")
    for name, words in {
        "pickled.npz": "without pickled objects",
        "single.npz": "one array without a name",
        "data.csv": "not a .npz or .h5 file",
        "absent.npz": "no such file",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            load_dataset("arrays", data_root=tmp_path / name)
        assert name in one_line(caught)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            file.update(arrays)
            file.create_group("notes")  # a group is no array, whatever its name
    return path


# Checkpoints


@pytest.mark.parametrize("name", ["mlp-64-20-10", "cnn"])
def test_checkpoint_round_trip_is_exact(tmp_path, name):
    model, path = seeded(name), tmp_path / "runs" / "epoch-0001.pt"
    train(
        model,
        load_dataset("digits", limit=32),
        epochs=1,
        lr=0.1,
        on_epoch=lambda result, model, optimizer: save_checkpoint(
            path, model, optimizer, result.epoch, {"lr": np.float64(0.1), "sizes": (64, 20)}
        ),
    )
    other = build_model(name, input_shape=(1, 8, 8))
    assert not same_state(model, other)
    load_checkpoint(other, path)
    assert same_state(model, other)
    stored = torch.load(path, weights_only=True)
    assert (stored["epoch"], stored["config"]) == (1, {"lr": 0.1, "sizes": [64, 20]})
    optimizer_of(other).load_state_dict(stored["optimizer"])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_every_layout_of_a_state_dict_is_read(tmp_path, prefix, key):
    model, other = seeded(), build_model("mlp-64-20-10", input_shape=(1, 8, 8))
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "c.pt")
    load_checkpoint(other, tmp_path / "c.pt")
    assert same_state(model, other)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_are_read(tmp_path, prefix):
    model, other = seeded("cnn"), build_model("cnn", input_shape=(1, 8, 8))
    save_file({prefix + k: v for k, v in model.state_dict().items()}, tmp_path / "c.safetensors")
    load_checkpoint(other, tmp_path / "c.safetensors")
    assert same_state(model, other)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_of_training_are_dropped_in_any_order(tmp_path, prefix):
    model, other = seeded(), build_model("mlp-64-20-10", input_shape=(1, 8, 8))
    torch.save({prefix + k: v for k, v in model.state_dict().items()}, tmp_path / "c.pt")
    load_checkpoint(nn.DataParallel(torch.compile(other, backend="eager")), tmp_path / "c.pt")
    assert same_state(model, other)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_imaginary_parts_are_refused_by_tensor(tmp_path, suffix):
    path, state = tmp_path / f"c{suffix}", dict(seeded().state_dict())
    state["3.weight"] = state["3.weight"] * (1 + 1j)
    (torch.save if suffix == ".pt" else save_file)(state, path)
    refused(path, ["complex numbers for 3.weight", "float32"])


def test_fractions_are_refused_where_the_model_counts(tmp_path):
    norm, path = nn.BatchNorm1d(2), tmp_path / "c.pt"
    state = {name: t.double() for name, t in norm.state_dict().items()}
    torch.save(state, path)
    load_checkpoint(norm, path)  # float64 of whole numbers
    state["num_batches_tracked"] += 0.5
    torch.save(state, path)
    with pytest.raises(InputError, match=r"float64 for num_batches_tracked.*int64 cannot hold"):
        load_checkpoint(norm, path)


def test_child_that_is_called_module_keeps_its_name(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    torch.save(model.state_dict(), tmp_path / "c.pt")
    other = nn.ModuleDict({"module": nn.Linear(2, 2)})
    load_checkpoint(other, tmp_path / "c.pt")
    assert same_state(model, other)


@pytest.mark.parametrize(
    "content, words",
    [
        (lambda: build_model("cnn").state_dict(), ["another model", "unexpected", "more"]),
        (lambda: build_model("mlp-784-20-10").state_dict(), ["(20, 784) instead of (20, 64)"]),
        (lambda: {"1.weight": torch.zeros(20, 64)}, ["missing: 1.bias, 3.weight and 1 more"]),
        (lambda: {}, ["an empty mapping", "state_dict"]),
        (lambda: [1, 2], ["type list", "state_dict"]),
        (lambda: {"epoch": 3, "lr": 0.1}, ["not tensors", "epoch, lr"]),
        (lambda: build_model("mlp-784-20-10"), ["pickled torch.nn.modules.container.Sequential"]),
    ],
)
def test_foreign_checkpoint_is_refused_and_changes_nothing(tmp_path, content, words):
    path = tmp_path / "c.pt"
    torch.save(content(), path)
    refused(path, words)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_truncated_checkpoint_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"c{suffix}"
    (torch.save if suffix == ".pt" else save_file)(seeded().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, ["cannot be read as a checkpoint", "write it again"])


def test_missing_checkpoint_is_refused(tmp_path):
    refused(tmp_path / "absent.pt", ["no checkpoint file"])


def refused(path: Path, words: list[str]) -> None:
    model = seeded()
    with pytest.raises(InputError) as caught:
        load_checkpoint(model, path)
    message = one_line(caught)
    assert all(word in message for word in [str(path), *words])
    assert len(message) < 600 + len(str(path))
    assert same_state(model, seeded())


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model, path = seeded(), tmp_path / "c.pt"
    save_checkpoint(path, model, optimizer_of(model), 1, {})

    def fail(checkpoint, file):
        Path(file).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, model, optimizer_of(model), 2, {})
    monkeypatch.undo()
    assert torch.load(path, weights_only=True)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


# Training


@pytest.mark.parametrize("optimizer, lr", [("sgd", 0.1), ("adam", 0.01)])
def test_same_seed_gives_the_same_training_bit_for_bit(optimizer, lr):
    data = load_dataset("digits", limit=100)

    def once(seed):
        model = seeded()
        options = {"epochs": 2, "lr": lr, "optimizer": optimizer, "batch_size": 32}
        return model, train(model, data, seed=seed, weight_decay=1e-3, **options)

    (model, results), (again, same), (other, _) = once(3), once(3), once(4)
    assert results == same
    assert same_state(model, again)
    assert not same_state(model, other)


def test_training_leaves_the_global_generator_alone():
    model = seeded()
    before = torch.get_rng_state()
    train(model, load_dataset("digits", limit=50), epochs=1, lr=0.1)
    assert torch.equal(before, torch.get_rng_state())


def test_one_full_batch_step_is_gradient_descent():
    data, model, lr = load_dataset("digits", limit=40), seeded().double(), 0.3
    data.tensors = (data.tensors[0].double(), data.tensors[1])
    x, y = data.tensors
    expected_loss = nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(expected_loss, list(model.parameters()))
    expected = [p.detach() - lr * g for p, g in zip(model.parameters(), gradients)]
    (result,) = train(model, data, epochs=1, lr=lr, batch_size=40)
    # Only the order of the samples in the sum differs: measured 1e-16 to 2e-16.
    for p, q in zip(model.parameters(), expected):
        assert torch.allclose(p, q, rtol=0, atol=1e-14)
    assert result.loss == pytest.approx(expected_loss.item(), rel=1e-14)


def test_ragged_last_batch_is_kept_and_weighted_by_its_size():
    data, model = load_dataset("digits", limit=50), seeded()
    x, y = data.tensors
    expected = nn.functional.cross_entropy(model(x), y).item()
    # Steps this small leave the parameters where they are, so the running mean is the loss.
    (result,) = train(model, data, epochs=1, lr=1e-30, batch_size=49)
    assert result.loss == pytest.approx(expected, rel=1e-6)  # float32; batch means unweighted: 1 %
    assert result.accuracy == (model(x).argmax(1) == y).double().mean().item()


def test_mlp_learns_the_digits():
    calls = []
    model = seeded()
    results = train(
        model,
        load_dataset("digits"),
        test=load_dataset("digits", split="test"),
        epochs=10,
        lr=0.05,
        batch_size=16,
        weight_decay=1e-3,
        on_epoch=lambda result, *_: calls.append(result),
    )
    assert calls == results
    assert [result.epoch for result in results] == list(range(1, 11))
    # Measured 0.926 for the test digits, written by other people than most training digits.
    assert results[-1].test_accuracy > 0.90
    assert results[-1].accuracy > 0.97
    x, y = load_dataset("digits", split="test").tensors
    accuracy = (model(x).argmax(1) == y).double().mean().item()
    assert results[-1].test_accuracy == pytest.approx(accuracy, rel=1e-12)


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_divergence_is_an_error_before_a_checkpoint_is_written(lr):
    calls = []
    with pytest.raises(FloatingPointError, match="use a smaller lr") as caught:
        train(
            seeded(activation="relu"),
            load_dataset("digits", limit=64),
            epochs=3,
            lr=lr,
            batch_size=16,
            on_epoch=lambda *args: calls.append(args),
        )
    assert "epoch 1" in one_line(caught)
    assert not calls


def test_last_step_that_overflows_the_parameters_is_seen():
    # The only loss, before the only step, is finite; the step lr * gradient is not.
    x, y = load_dataset("digits", limit=16).tensors
    bright = TensorDataset(1e3 * x, y)
    with pytest.raises(FloatingPointError, match="a parameter is not finite"):
        train(seeded("mlp-64-10"), bright, epochs=1, lr=1e38, batch_size=16)


def test_model_is_in_eval_mode_between_epochs():
    model, modes = seeded("cnn"), []
    results = train(
        model,
        load_dataset("digits", limit=16),
        test=load_dataset("digits", split="test", limit=16),
        epochs=2,
        lr=0.1,
        on_epoch=lambda result, model, _: modes.append(model.training),
    )
    assert modes == [False, False]
    x, y = load_dataset("digits", split="test", limit=16).tensors
    assert results[-1].test_accuracy == (model(x).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"epochs": 0, "lr": 0.1}, ["epochs is 0", ">= 1"]),
        ({"epochs": 1, "lr": 0.1, "batch_size": 0}, ["batch_size is 0", ">= 1"]),
        ({"epochs": 1, "lr": float("nan")}, ["lr is nan", "> 0"]),
        ({"epochs": 1, "lr": 0.1, "momentum": 1.0}, ["momentum is 1.0", "< 1"]),
        ({"epochs": 1, "lr": 0.1, "weight_decay": float("inf")}, ["weight_decay is inf", ">= 0"]),
        ({"epochs": 1, "lr": 0.1, "optimizer": "lbfgs"}, ["'lbfgs'", "sgd, momentum"]),
    ],
)
def test_wrong_training_settings_are_refused(options, words):
    with pytest.raises(InputError) as caught:
        train(seeded(), load_dataset("digits", limit=10), **options)
    assert all(word in one_line(caught) for word in words)


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_resnets_have_the_published_sizes(name, parameters):
    model = build_model(name, input_shape=(3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_resnet_block_without_its_convolutions_is_its_shortcut():
    model = build_model("resnet20", input_shape=(3, 32, 32)).eval()
    for block in (model[3], model[6]):  # the same width, and twice the channels at half the size
        for parameter in block.parameters():
            torch.nn.init.zeros_(parameter)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(model[3](x), x)
    halved = model[6](x)
    assert torch.equal(halved[:, 8:24], x[:, :, ::2, ::2])
    assert not halved[:, :8].any() and not halved[:, 24:].any()


def test_resnets_without_shortcuts_and_batch_norm():
    options = {"input_shape": (1, 8, 8), "shortcut": False, "batchnorm": False}
    model = build_model("resnet20", **options)
    kinds = {type(m).__name__ for m in model.modules()}
    assert "BatchNorm2d" not in kinds
    for parameter in model[3].parameters():
        torch.nn.init.zeros_(parameter)
    assert not model[3](torch.rand(2, 16, 8, 8)).any()
    with pytest.raises(InputError, match="resnet21: expected a depth of 6 b"):
        build_model("resnet21")


# -- torchvision by name ----------------------------------------------------------------------


def fake_data(monkeypatch, **options):
    """torchvision's own made-up pictures, as many and as large as asked for."""
    datasets = datasets_module.import_torchvision().datasets

    class Pictures(datasets.FakeData):
        def __init__(self):
            super().__init__(**{"size": 5, "image_size": (3, 8, 6), "num_classes": 4, **options})

    monkeypatch.setattr(datasets, "Pictures", Pictures, raising=False)


def test_pictures_of_a_torchvision_data_set_are_scaled_and_cut(monkeypatch):
    fake_data(monkeypatch)
    x, y = load_dataset("torchvision:Pictures").tensors
    assert (x.shape, x.dtype, y.dtype) == ((5, 3, 8, 6), torch.float32, torch.int64)
    assert 0 <= x.min() < 0.1 and 0.9 < x.max() <= 1
    few = load_dataset("torchvision:Pictures", limit=2, image_size=4).tensors[0]
    assert few.shape == (2, 3, 4, 4)


def test_a_torchvision_classifier_has_as_many_outputs_as_the_labels_need(monkeypatch):
    fake_data(monkeypatch)
    data = load_dataset("torchvision:Pictures")
    model = model_for(data, "torchvision:resnet18", "relu", 0)
    assert model.eval()(data.tensors[0]).shape == (5, int(data.tensors[1].max()) + 1)
    assert sum(p.numel() for p in build_model("torchvision:resnet18").parameters()) == 11_181_642


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: load_dataset("torchvision:Nothing"), "torchvision has no data set 'Nothing'"),
        (lambda: load_dataset("torchvision:CIFAR100"), "needs data_root"),
        (
            lambda: load_dataset("torchvision:CIFAR100", data_root="empty"),
            "or let it be fetched by --download",
        ),
        (lambda: load_dataset("torchvision:Pictures", split="test"), "has no splits"),
        (lambda: build_model("torchvision:resnet19"), "it has resnet101"),
    ],
)
def test_torchvision_names_that_mean_nothing_are_refused(make, message, monkeypatch, tmp_path):
    fake_data(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        make()
    assert list(tmp_path.iterdir()) == []  # nothing was downloaded


def test_pictures_of_several_sizes_are_refused_with_the_way_out(monkeypatch):
    fake_data(monkeypatch)
    pictures = datasets_module.import_torchvision().datasets.Pictures
    whole = pictures.__getitem__

    def growing(self, i):
        image, label = whole(self, i)
        return image.resize((6 + i, 8)), label

    monkeypatch.setattr(pictures, "__getitem__", growing)
    with pytest.raises(InputError, match=r"differ in size.*--image-size"):
        load_dataset("torchvision:Pictures")
    assert load_dataset("torchvision:Pictures", image_size=5).tensors[0].shape == (5, 3, 5, 5)
