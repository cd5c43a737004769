"""Batches in containers of other kinds, and data whose items are minibatches."""

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import hessian_spectrum as hs

N = 23


def net(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def samples(count=N, classes=3):
    torch.manual_seed(0)
    return torch.randn(count, 4, dtype=torch.float64), torch.randint(classes, (count,))


class Encoding(UserDict):
    """As the batches of language models: attributes are entries; knows where it came from."""

    def __init__(self, data, source):
        super().__init__(data)
        self.source = source

    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Outer:
    inner: Batch
    ids: torch.Tensor


def stacked(pairs):
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


COLLATE = {
    "UserDict": (lambda x, y: UserDict(x=x, y=y), lambda b: (b["x"], b["y"])),
    "subclass": (lambda x, y: Encoding({"x": x, "y": y}, "here"), lambda b: (b.x, b.y)),
    "nested": (lambda x, y: {"a": [UserDict(x=x)], "y": y}, lambda b: (b["a"][0]["x"], b["y"])),
    "dataclass": (Batch, lambda b: (b.x, b.y)),
    "frozen": (
        lambda x, y: Outer(Batch(x, y, y > 0), torch.arange(len(x))),
        lambda b: (b.inner.x, b.inner.y),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [5, 50])
@pytest.mark.parametrize("name", list(COLLATE))
def test_batches_in_other_containers_are_cut_cast_and_counted(name, batch_size, dtype):
    made, parts = COLLATE[name]
    pairs = list(zip(*samples()))
    loader = DataLoader(pairs, batch_size, collate_fn=lambda some: made(*stacked(some)))
    ev = hs.Evaluator(
        net(),
        lambda z, b: F.cross_entropy(z, parts(b)[1]),
        loader,
        forward=lambda model, b: model(parts(b)[0]),
        dtype=dtype,
    )
    expected = hs.Evaluator(net(), nn.CrossEntropyLoss(), samples(), dtype=dtype)
    assert ev.num_samples == N
    assert ev.loss().item() == pytest.approx(expected.loss().item(), rel=1e-6)
    v = torch.ones(ev.n, dtype=dtype)
    found = hs.Hessian(ev, plan=hs.ProductPlan(batch_size=3)) @ v
    assert torch.allclose(found, hs.Hessian(expected) @ v, rtol=1e-4, atol=1e-6)


def test_what_a_container_keeps_beside_its_entries_travels_with_it():
    seen = set()

    def forward(model, batch):
        seen.add((type(batch), batch.source))
        return model(batch.x)

    made = COLLATE["subclass"][0]
    loader = DataLoader(list(zip(*samples())), 5, collate_fn=lambda some: made(*stacked(some)))
    hs.Evaluator(net(), lambda z, b: F.cross_entropy(z, b.y), loader, forward=forward)
    assert seen == {(Encoding, "here")}


def test_a_batch_in_which_no_tensor_can_be_found_is_refused_by_its_type():
    class Graph:
        def __init__(self, pairs):
            self.x, self.y = stacked(pairs)

    loader = DataLoader(list(zip(*samples())), 5, collate_fn=Graph)
    with pytest.raises(hs.InputError, match="a batch is a Graph in which no tensor can be found"):
        hs.Evaluator(
            net(), lambda z, b: F.cross_entropy(z, b.y), loader, forward=lambda m, b: m(b.x)
        )


# -- ready-made minibatches ----------------------------------------------------------------------


class Ready(Dataset):
    def __init__(self, size):
        x, y = samples(60, 10)
        self.items = list(zip(x.split(size), y.split(size)))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize("size", [10, 20, 25])  # 10 = the number of classes; 25: uneven
@pytest.mark.parametrize("kind", ["list", "tuple", "dataset", "loader"])
def test_items_that_are_minibatches_are_refused(kind, size):
    ready = Ready(size)
    data = {
        "list": ready.items,
        "tuple": tuple(ready.items),
        "dataset": ready,
        "loader": DataLoader(ready, batch_size=1),
    }[kind]
    with pytest.raises(hs.InputError, match="each item of the data is a minibatch, it seems"):
        hs.Evaluator(net(10), nn.CrossEntropyLoss(), data)


@pytest.mark.parametrize("size", [10, 25])
def test_the_ways_out_of_the_message_are_ways_out(size):
    x, y = samples(60, 10)
    expected = F.cross_entropy(net(10)(x), y).item()
    loader = DataLoader(Ready(size), batch_size=None)
    inputs, targets = zip(*Ready(size).items)
    for data in (loader, (torch.cat(inputs), torch.cat(targets))):
        ev = hs.Evaluator(net(10), nn.CrossEntropyLoss(), data)
        assert ev.num_samples == 60
        assert ev.loss().item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda z, y: F.cross_entropy(z.transpose(1, 2), y),  # of a batch of sequences alone
        lambda z, y: F.cross_entropy(z.reshape(-1, 3), y.reshape(-1)),  # of one sequence, too
    ],
)
def test_sequences_with_a_target_for_each_entry_are_samples(loss_fn):
    torch.manual_seed(0)
    x, y = torch.randn(12, 6, 4, dtype=torch.float64), torch.randint(3, (12, 6))
    expected = hs.Evaluator(net(), loss_fn, (x, y), count=lambda b: b[1].numel()).loss()
    for data in (TensorDataset(x, y), list(zip(x, y))):
        ev = hs.Evaluator(net(), loss_fn, data, count=lambda b: b[1].numel())
        assert ev.num_samples == 12 and torch.equal(ev.loss(), expected)
