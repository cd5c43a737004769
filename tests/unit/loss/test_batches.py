"""How data becomes minibatches: what is read how often, what is refused, what a digest tells."""

import io

import pytest
import torch
from small_networks import CLASSES, N, Rows, data, mlp, relative, spoiled
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

import hessian_spectrum as hs
from hessian_spectrum.distributed import memory
from hessian_spectrum.loss import batching, loaders
from hessian_spectrum.loss.digests import of_data
from hessian_spectrum.loss.loaders import deal

SIZE = 4  # of a minibatch: 4 + 4 + 2
FIXED = 2 * N  # up to 32 samples are read twice each, to see that they do not change


@pytest.fixture
def full(monkeypatch):
    """A device with no room for data."""
    monkeypatch.setattr(loaders, "available", lambda world: 0)


def evaluator(samples, loss_fn=F.cross_entropy, **options):
    return hs.Evaluator(mlp(), loss_fn, samples, batch_size=SIZE, **options)


# -- data that does not fit --------------------------------------------------------------------


def test_data_that_is_read_in_each_pass_has_the_same_weight_and_products(full, monkeypatch):
    torch.manual_seed(1)
    streamed = evaluator(Rows(*data()))
    monkeypatch.undo()
    torch.manual_seed(1)
    kept = evaluator(Rows(*data()))
    assert (kept.batches.kept, streamed.batches.kept) == (True, False)
    assert streamed.total_weight == kept.total_weight == N
    eye = torch.eye(kept.n, dtype=torch.float64)
    assert torch.equal(hs.Hessian(streamed) @ eye, hs.Hessian(kept) @ eye)
    assert torch.equal(streamed.gradient(), kept.gradient())
    assert streamed.digests() == {**kept.digests(), "data": None}


@pytest.mark.parametrize("share", [None, 0.0, 0.5])
def test_construction_reads_the_data_once_and_again_what_does_not_fit(monkeypatch, share):
    rows, (x, y) = Rows(*data()), data()
    if share is not None:
        room = share * N * (x[0].nbytes + y[0].nbytes)
        monkeypatch.setattr(loaders, "available", lambda world: room / loaders.KEEP_SHARE)
    ev = evaluator(rows)
    # Batches of 4: the first is too much for no room, the second for half of the data's. The first
    # sample once more: is it a minibatch?
    assert rows.reads == 1 + FIXED + {None: 0, 0.0: SIZE, 0.5: 2 * SIZE}[share] + N
    before = rows.reads
    ev.loss()
    assert rows.reads == before + (N if share is not None else 0)


def last(index, value):
    """The data with the last sample's input or target replaced."""
    x, y = data()
    (x if index == 0 else y)[-1] = value
    return x, y


def fails_on_two_samples(outputs, y):
    if len(y) == 2:
        raise ValueError("an odd batch")
    return F.cross_entropy(outputs, y)


def infinite_for_a_five(outputs, y):
    return (outputs.sum(1) / (y - 5)).mean()


LATE = {
    "NaN": (last(0, torch.nan), F.cross_entropy, "minibatch 2 of the data has NaN"),
    "label": (last(1, CLASSES), F.cross_entropy, "minibatch 2 has the label 3"),
    "loss": (data(), fails_on_two_samples, "minibatch 2 cannot be evaluated: ValueError: an odd"),
    "value": (last(1, 5), infinite_for_a_five, "the loss of minibatch 2 is not finite"),
}


@pytest.mark.parametrize("room", ["room", "no room"])
@pytest.mark.parametrize("name", LATE)
def test_the_last_minibatch_is_checked_like_the_first(name, room, request):
    if room == "no room":
        request.getfixturevalue("full")
    samples, loss_fn, message = LATE[name]
    with pytest.raises(hs.InputError, match=message):
        evaluator(samples, loss_fn)


def test_ranks_of_one_node_share_its_memory(monkeypatch):
    def meminfo(path):
        return io.StringIO("MemTotal: 4000 kB\nMemAvailable: 1000 kB\n")

    monkeypatch.setattr(memory, "open", meminfo, raising=False)
    assert memory.available(hs.World()) == 1_024_000
    assert memory.available(hs.World(1, 8, local_size=4)) == 256_000
    # Data of 100 kB fits into a quarter of all, but not into that of a share.
    x = torch.zeros(12_500, 1, dtype=torch.float64)
    y = torch.zeros(12_500, 0)
    for local_size, fits in ((1, True), (4, False)):
        world = hs.World(local_size=local_size)
        assert deal((x, y), 5000, world, torch.float64).kept == fits


# -- torch's random state ----------------------------------------------------------------------


def test_passes_over_a_loader_draw_nothing_from_torchs_random_state(full):
    ev = evaluator(DataLoader(Rows(*data()), SIZE, shuffle=True))
    before = torch.get_rng_state()
    for _ in range(2):
        ev.loss()
    assert torch.equal(torch.get_rng_state(), before)


# -- what is no fixed set of samples -----------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, order):
        self.order, (self.x, self.y) = order, data()

    def __iter__(self):
        for i in self.order():
            yield self.x[i], self.y[i]


def sampled(**options):
    rows = Rows(*data())
    return DataLoader(rows, SIZE, sampler=RandomSampler(rows, **options))


UNSETTLED = {
    "with replacement": (lambda: sampled(replacement=True), "does not visit each sample once"),
    "fewer samples": (lambda: sampled(num_samples=N - 1), "does not visit each sample once"),
    "random stream": (
        lambda: Stream(lambda: torch.randperm(N)),
        "two passes over the Stream begin with different batches",
    ),
    "empty stream": (lambda: Stream(lambda: []), "0 batches; expected at least one sample"),
}


@pytest.mark.parametrize("name", UNSETTLED)
def test_data_that_is_no_fixed_set_of_samples_is_refused(name):
    samples, message = UNSETTLED[name]
    with pytest.raises(hs.InputError, match=message):
        evaluator(samples())


def test_a_stream_in_a_fixed_order_and_a_permuting_sampler_are_the_data_they_visit():
    torch.manual_seed(1)
    expected = evaluator(data())
    for samples in (Stream(lambda: range(N)), sampled()):
        torch.manual_seed(1)
        ev = evaluator(samples)
        assert ev.digests() == expected.digests()
        assert relative(ev.gradient(), expected.gradient()) < 1e-13  # measured: 2e-16


# -- digests -----------------------------------------------------------------------------------


def digest_of(x, y):
    return of_data(deal((x, y), SIZE, hs.World(), torch.float64), hs.World())


def test_a_digest_counts_samples_that_occur_twice_and_ignores_their_order():
    x, y = data()
    a, b, c, d = ([i, i] for i in range(4))
    # A sum by exclusive or would be zero for both.
    assert digest_of(x[a + b], y[a + b]) != digest_of(x[c + d], y[c + d])
    assert digest_of(x[a + b], y[a + b]) == digest_of(x[[1, 0, 0, 1]], y[[1, 0, 0, 1]])
    assert digest_of(x, y) != digest_of(x, y.roll(1))  # which target goes with which input
    assert digest_of(x, y) != digest_of(*spoiled(0, 0.0))


class LateStream(IterableDataset):
    """In a fixed order at first."""

    def __iter__(self):
        x, y = data()
        order = torch.cat([torch.arange(2 * SIZE), 2 * SIZE + torch.randperm(N - 2 * SIZE)])
        return zip(x[order], y[order])


def test_a_stream_that_is_fixed_in_its_first_batches_only_is_refused():
    with pytest.raises(hs.InputError, match="begin with different batches"):
        deal(LateStream(), SIZE, hs.World(), torch.float64)


class EagerStream(IterableDataset):
    """Draws when an iteration begins, not at its first sample."""

    def __iter__(self):
        x, y = data()
        return zip(x + torch.rand(1), y)


def test_a_stream_that_draws_when_its_iteration_begins_is_refused():
    with pytest.raises(hs.InputError, match="two passes over the EagerStream begin with different"):
        evaluator(EagerStream())


def test_a_large_minibatch_is_cut_into_any_number_of_pieces():
    x = torch.arange(10_001)
    cut = batching.pieces((x, x), 4)
    assert [len(a) for a, _ in cut] == 2500 * [4] + [1]
    assert torch.equal(torch.cat([a for a, _ in cut]), x)
