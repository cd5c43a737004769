"""Checkpoints under other names than the model's are loaded where they can be meant in one way."""

import re

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import hessian_spectrum as hs
from hessian_spectrum.zoo import load_checkpoint


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


class Language(nn.Module):
    def __init__(self, seed=0, is_tied=True):
        super().__init__()
        torch.manual_seed(seed)
        self.tok, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        if is_tied:
            self.head.weight = self.tok.weight


def compiled(module):
    return torch.compile(module, backend="eager")


def compiled_child(model):
    model[0] = compiled(model[0])
    return model


def before(prefix, state):
    return {prefix + key: t for key, t in state.items()}


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


STATE = net().state_dict
FILES = {
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(net()).state_dict(),
    "averaged, compiled": lambda: torch.optim.swa_utils.AveragedModel(compiled(net())).state_dict(),
    "averaged, compiled child": lambda: {
        "n_averaged": torch.tensor(3),
        **before("module.", compiled_child(net()).state_dict()),
    },
    "compiled": lambda: compiled(net()).state_dict(),
    "compiled child": lambda: compiled_child(net()).state_dict(),
    "tutorial": lambda: {"epoch": 3, "model_state_dict": STATE(), "loss": 0.3},
    "deepspeed": lambda: {"module": STATE(), "global_steps": 7},
    "lightning": lambda: {"epoch": 3, "state_dict": before("model.", STATE())},
    "trainer of one network": lambda: before("trainer.net.", STATE()),
    "before 0.4.1": lambda: {k: t for k, t in STATE().items() if "num_batches" not in k},
    "sparse": lambda: {**STATE(), "0.weight": STATE()["0.weight"].to_sparse()},
    "csr": lambda: {**STATE(), "0.weight": STATE()["0.weight"].to_sparse_csr()},
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("name", FILES)
def test_what_can_be_meant_in_one_way_is_loaded(tmp_path, name):
    torch.save(FILES[name](), tmp_path / "c.pt")
    other = net(1)
    load_checkpoint(other, tmp_path / "c.pt")
    assert same(other, net())


def test_a_file_of_a_plain_model_is_loaded_where_a_child_is_compiled(tmp_path):
    torch.save(STATE(), tmp_path / "c.pt")
    other = compiled_child(net(1))
    load_checkpoint(other, tmp_path / "c.pt")
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), STATE().values()))


def test_counts_of_an_old_file_are_zero_as_torch_has_them(tmp_path):
    torch.save(FILES["before 0.4.1"](), tmp_path / "c.pt")
    other = net(1)
    other[1].num_batches_tracked += 5
    load_checkpoint(other, tmp_path / "c.pt")
    assert other[1].num_batches_tracked == 0


def test_a_count_that_is_missing_beside_others_is_no_old_file(tmp_path):
    def two():
        return nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))

    state = two().state_dict()
    del state["0.num_batches_tracked"]
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(hs.InputError, match=r"missing: 0\.num_batches_tracked"):
        load_checkpoint(two(), tmp_path / "c.pt")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_tied_tensor_may_be_there_under_one_name(tmp_path, prefix):
    save_model(Language(), tmp_path / "c.safetensors")
    state = {"head.weight": Language().head.weight.detach()}
    save_file(before(prefix, state), tmp_path / "d.safetensors")
    for name in "cd":
        other = Language(1)
        load_checkpoint(other, tmp_path / f"{name}.safetensors")
        assert same(other, Language()) and other.head.weight is other.tok.weight


class Pair(nn.Module):
    def __init__(self, names):
        super().__init__()
        for i, name in enumerate(names):
            setattr(self, name, net(i))


def quantized():
    return torch.quantize_per_tensor(torch.ones(5, 4), 0.1, 0, torch.qint8)


REFUSED = {
    "two networks": (lambda: Pair(["student", "teacher"]).state_dict(), r"'student\.'.*teacher\."),
    "a network beside others": (
        lambda: {**before("model.", STATE()), "loss.weight": torch.ones(3)},
        r"under the prefix 'model\.', beside others \(loss\.weight\)",
    ),
    "two state_dicts": (
        lambda: {"student": STATE(), "teacher": STATE()},
        r"student, teacher are state_dicts: save the one that is meant",
    ),
    "whole numbers": (lambda: dict(enumerate(STATE().values())), r"int keys \(0, 1 and"),
    "quantized": (lambda: {**STATE(), "0.weight": quantized()}, r"quantized numbers for 0\.weight"),
    "meta": (
        lambda: {**STATE(), "0.weight": STATE()["0.weight"].to("meta")},
        r"without values for 0\.weight",
    ),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_with_its_names(tmp_path, name):
    content, message = REFUSED[name]
    torch.save(content(), tmp_path / "c.pt")
    model = net(1)
    with pytest.raises(hs.InputError, match=message):
        load_checkpoint(model, tmp_path / "c.pt")
    assert same(model, net(1))


@pytest.mark.parametrize("name", ["a network beside others", "two networks"])
def test_the_way_out_of_a_prefix_is_that_of_the_message(tmp_path, name):
    state = REFUSED[name][0]()
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(hs.InputError) as caught:
        load_checkpoint(net(1), tmp_path / "c.pt")
    written = re.search(r"are meant: (\{.*\})", str(caught.value))[1]
    torch.save(eval(written, {"state": state}), tmp_path / "d.pt")
    other = net(1)
    load_checkpoint(other, tmp_path / "d.pt")
    assert same(other, net(0))


def test_the_file_of_a_part_names_the_part(tmp_path):
    torch.save(STATE(), tmp_path / "c.pt")
    model = Pair(["inner"])
    with pytest.raises(hs.InputError, match=r"load it into model\.inner"):
        load_checkpoint(model, tmp_path / "c.pt")


def test_different_numbers_for_one_tensor_are_refused(tmp_path):
    torch.save(Language(is_tied=False).state_dict(), tmp_path / "c.pt")
    with pytest.raises(hs.InputError, match=r"different numbers for tok\.weight and head\.weight"):
        load_checkpoint(Language(1), tmp_path / "c.pt")
