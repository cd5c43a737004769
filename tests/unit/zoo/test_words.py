"""The Penn Treebank as windows of words, and the language model of Zaremba et al."""

import math
from pathlib import Path

import pytest
import torch
from locations import DATA
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum._core.errors import InputError
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.zoo import build_model, load_dataset, model_for, problem_loader
from hessian_spectrum.zoo.objectives import objective_for
from hessian_spectrum.zoo.words import WINDOW

TRAIN = " a b a c a b \n" * 12 + " d a <unk> \n"


def written(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"ptb.{name}.txt").write_text(text)
    return folder


def words_of(data, windows=slice(None)):
    return [[data.vocabulary[i] for i in row] for row in data.tensors[0][windows].tolist()]


def test_windows_follow_each_other_and_targets_are_the_words_behind(tmp_path):
    data = load_dataset("ptb", data_root=written(tmp_path, train=TRAIN))
    text = TRAIN.replace("\n", "<eos>").split()
    assert len(text) == 12 * 7 + 4 and len(data) == (len(text) - 1) // WINDOW
    assert [word for row in words_of(data) for word in row] == text[: len(data) * WINDOW]
    inputs, targets = (t.flatten() for t in data.tensors)
    assert torch.equal(inputs[1:], targets[:-1])
    assert inputs.dtype == targets.dtype == torch.int64
    assert data.vocabulary == ("a", "b", "<eos>", "c", "<unk>", "d")  # by number, then by word
    assert data.num_classes == 6
    few = load_dataset("ptb", data_root=tmp_path, limit=2)
    assert all(torch.equal(a[:2], b) for a, b in zip(data.tensors, few.tensors))
    assert few.vocabulary == data.vocabulary


def test_words_that_training_does_not_have_are_unknown(tmp_path):
    written(tmp_path, train=TRAIN, test="a z b q \n" * 9)
    data = load_dataset("ptb", data_root=tmp_path, split="test")
    assert words_of(data, slice(1))[0][:6] == ["a", "<unk>", "b", "<unk>", "<eos>", "a"]
    assert data.num_classes == 6


def test_the_validation_file_takes_the_place_of_a_missing_training_file(tmp_path):
    valid = load_dataset("ptb", data_root=written(tmp_path, valid="x y " * 40))
    assert words_of(valid, slice(1)) == [["x", "y"] * (WINDOW // 2)]
    assert valid.vocabulary == ("x", "y", "<eos>", "<unk>")
    train = load_dataset("ptb", data_root=written(tmp_path, train=TRAIN))
    assert words_of(train, slice(1))[0][0] == "a"


@pytest.mark.parametrize(
    "texts, split, words",
    [
        ({}, "train", r"expected ptb\.train\.txt or ptb\.valid\.txt there"),
        ({"test": TRAIN}, "test", r"expected ptb\.train\.txt or ptb\.valid\.txt there"),
        ({"train": TRAIN}, "test", r"expected ptb\.test\.txt there"),
        ({"train": "a b \n"}, "train", "has 3 words; expected more than 20"),
    ],
)
def test_files_that_are_missing_or_too_short_are_refused(tmp_path, texts, split, words):
    with pytest.raises(InputError, match=words):
        load_dataset("ptb", data_root=written(tmp_path, **texts), split=split)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "ptb.train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_dataset("ptb", data_root=tmp_path)


def test_the_shared_treebank_has_its_words():
    if not (DATA / "ptb").exists():
        pytest.skip("no Penn Treebank; set HESSIAN_SPECTRUM_DATA to the shared data")
    data = load_dataset("ptb", data_root=DATA / "ptb", split="test")
    assert len(data) == 82_430 // WINDOW  # the test text's words, with the ends of its lines
    assert data.vocabulary[:3] == ("the", "<unk>", "<eos>")


# The model


def test_the_small_network_of_zaremba_et_al_has_its_number_of_parameters():
    with torch.device("meta"):
        model = build_model("lstm", num_classes=10_000, input_shape=(WINDOW,))
    embedding, scores = 10_000 * 200, 10_000 * 201
    lstm = 4 * 200 * (200 + 200 + 1)
    second_bias = 4 * 200
    count = sum(p.numel() for p in model.parameters())
    assert count == embedding + 2 * (lstm + second_bias) + scores == 4_653_200


def test_parameters_start_between_plus_and_minus_a_tenth():
    model = build_model("lstm", num_classes=300, input_shape=(WINDOW,), width=0.1)
    for parameter in model.parameters():  # torch's own: up to 1 / sqrt(20), or normal
        assert 0.07 < parameter.abs().max() <= 0.1


def test_it_predicts_from_earlier_words_alone_and_windows_are_independent(tmp_path):
    data = load_dataset("ptb", data_root=written(tmp_path, train=TRAIN))
    model = model_for(data, "lstm", "tanh", 0, width=0.05).eval()
    x = data.tensors[0]
    scores = model(x)
    assert scores.shape == (len(x), 6, WINDOW)
    changed = x.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 6
    same = (model(changed) == scores).all(1)
    assert same[:, :7].all() and not same[:, 7:].any()
    assert torch.allclose(model(x[1:2]), scores[1:2], atol=1e-6)


def test_dropout_is_on_the_connections_that_are_not_recurrent(tmp_path):
    data = load_dataset("ptb", data_root=written(tmp_path, train=TRAIN))
    model = model_for(data, "lstm", "tanh", 0, width=0.05, dropout_rate=0.5)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5] * 3
    assert all(m.dropout == 0 for m in model.modules() if isinstance(m, nn.LSTM))


def test_its_loss_is_the_mean_over_words_and_has_second_derivatives(tmp_path):
    root = written(tmp_path, train=TRAIN)
    config = ProblemConfig(
        model="lstm", dataset="ptb", data_root=root, width=0.02, dtype="float64", device="cpu"
    )
    ev = problem_loader.load(config).evaluator()
    x, y = load_dataset("ptb", data_root=root).tensors
    model = ev.model.double()
    chances = model(x).softmax(1).gather(1, y[:, None]).log()
    assert math.isclose(ev.loss().item(), -chances.mean().item(), rel_tol=1e-12)
    assert objective_for("lstm", "cross-entropy").score == "perplexity"
    v, h = torch.randn(ev.n, generator=torch.Generator().manual_seed(0)).double(), 1e-6
    difference = (ev.gradient(ev.theta + h * v) - ev.gradient(ev.theta - h * v)) / (2 * h)
    product = torch.as_tensor(hs.Hessian(ev) @ v)
    assert (product - difference).norm() <= 1e-6 * product.norm()
    measure = hs.spectral_density(hs.Hessian(ev), num_probes=2, num_steps=3)
    assert math.isfinite(measure.trace)


def test_pictures_are_no_words():
    with pytest.raises(InputError, match="takes windows of words"):
        build_model("lstm", input_shape=(1, 8, 8))
