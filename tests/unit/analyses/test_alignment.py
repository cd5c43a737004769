"""Alignment of gradients: its dense definition, closed forms, minibatches whoever holds them."""

import dataclasses

import numpy as np
import pytest
import torch
from alignment_problems import N, eigenpairs, evaluator
from dense_oracles import dense_hessian
from small_networks import CLASSES, INPUTS, NETWORKS, data, mlp
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import hessian_spectrum as hs
from hessian_spectrum.analyses.alignment_result import joined
from hessian_spectrum.loss.sample_gradients import draw, minibatch_gradients, numbers


def dense_gradient(model, x, y, weight_decay=0.0, loss_fn=F.cross_entropy):
    model.eval()
    named = [p for p in model.parameters() if p.requires_grad]
    loss = loss_fn(model(x), y)
    parts = torch.autograd.grad(loss, named, materialize_grads=True)
    return torch.cat([(g + weight_decay * p).reshape(-1) for g, p in zip(parts, named)]).detach()


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_the_dense_definition(network):
    ev = evaluator(network, weight_decay=0.2)
    x, y = data(N)
    ev.model.eval()
    matrix = dense_hessian(ev.model, lambda m: F.cross_entropy(m(x), y))
    matrix += 0.2 * torch.eye(ev.n, dtype=torch.float64)
    pairs = eigenpairs(matrix, 3)
    found = hs.alignment(ev, (1, 7, "full"), 4, pairs=pairs, seed=3)
    assert found.batch_sizes.tolist() == [1, 7, N]
    assert found.counts().tolist() == [4, 4, 1]
    vectors = torch.from_numpy(pairs.vectors)
    for s, size in enumerate((1, 7, N)):
        for b in range(4 if size < N else 1):
            chosen = draw(N, size, 3, b)
            g = dense_gradient(ev.model, x[chosen], y[chosen], 0.2)
            cosine = vectors @ g / g.norm()
            expected = {
                "alignment": g @ matrix @ g / (g @ g),
                "gradient_norm": g.norm(),
                "captured": cosine.square().sum(),
                "share": g @ matrix @ g / (g @ g) / pairs.values[-1],
            }
            for name, value in expected.items():  # measured: 2e-15
                assert getattr(found, name)[s, b] == pytest.approx(value.item(), rel=1e-9), name
            np.testing.assert_allclose(found.cosine[s, b], cosine, atol=1e-9)
    assert np.isnan(found.alignment[-1, 1:]).all()


class Bowl(nn.Module):
    """Its loss for a sample x is (theta - x)^T D (theta - x) / 2."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta)

    def forward(self, x):
        return self.theta - x


def test_of_a_quadratic_it_is_the_closed_form():
    curvature = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    x = torch.randn(30, 4, dtype=torch.float64)
    theta = torch.ones(4, dtype=torch.float64)

    def loss_fn(outputs, targets):
        return (outputs.square() @ curvature).mean() / 2

    ev = hs.Evaluator(Bowl(theta), loss_fn, (x, torch.zeros(30)), batch_size=8)
    eye = np.eye(4)
    pairs = hs.EigenPairs(curvature.numpy()[1:], np.zeros(3), np.ones(3, bool), eye[1:])
    found = hs.alignment(ev, (2, 11), 6, pairs=pairs)
    for s, size in enumerate((2, 11)):
        for b in range(6):
            off = theta - x[draw(30, size, 0, b)].mean(0)
            d = curvature
            g2 = (d**2 * off**2).sum()
            expected = (d**3 * off**2).sum() / g2
            assert found.alignment[s, b] == pytest.approx(expected.item(), rel=1e-12)
            np.testing.assert_allclose(found.cosine[s, b] ** 2, (d**2 * off**2 / g2)[1:], rtol=1e-9)
            # What is not in the span of the last three lies along the first.
            first = (off[0] ** 2 / g2).item()
            assert found.captured[s, b] == pytest.approx(1 - first, rel=1e-12)
    np.testing.assert_allclose(
        found.mean_square_cosine().sum(axis=1), found.mean("captured"), rtol=1e-12
    )


def test_a_minibatch_is_weighted_as_the_loss_is_also_where_targets_are_ignored():
    torch.manual_seed(0)
    model, x = nn.Linear(INPUTS, 4 * CLASSES).double(), data(12)[0]
    y = torch.randint(0, CLASSES, (12, 4))
    y[:, 1:][torch.rand(12, 3) < 0.6] = -100
    y[7] = -100
    model = nn.Sequential(model, nn.Unflatten(1, (CLASSES, 4)))
    ev = hs.Evaluator(model, nn.CrossEntropyLoss(), (x, y), batch_size=5, weight_decay=0.1)
    minibatches = [draw(12, 5, 0, b) for b in range(6)] + [np.array([7])]
    found = minibatch_gradients(ev, ev.theta, minibatches, numbers(ev))
    counted = {int((y[chosen] != -100).sum()) for chosen in minibatches}
    assert len(counted) > 3
    for g, chosen in zip(found[:-1], minibatches):
        expected = dense_gradient(model, x[chosen], y[chosen], 0.1)
        torch.testing.assert_close(g, expected, rtol=1e-12, atol=1e-14)
    assert found[-1].isnan().all()  # a mean over nothing
    result = hs.alignment(ev, (1,), 30)  # one of them is sample 7
    missing = [b for b in range(30) if draw(12, 1, 0, b)[0] == 7]
    assert missing and np.isnan(result.alignment[0, missing]).all()
    assert result.counts()[0] == 30 - len(missing)
    assert np.isfinite(result.mean()).all() and np.isfinite(result.std()).all()


class Rows(IterableDataset):
    def __init__(self, samples):
        self.rows = list(zip(*data(samples)))

    def __iter__(self):
        return iter(self.rows)


@pytest.mark.parametrize("memory", [1, 1 << 20])
def test_samples_are_the_same_however_they_are_read_and_gathered(memory):
    expected = evaluator(batch_size=N)
    minibatches = [draw(N, 7, 0, b) for b in range(3)]
    theta = expected.theta
    wanted = minibatch_gradients(expected, theta, minibatches, numbers(expected))
    streamed = hs.Evaluator(expected.model, F.cross_entropy, Rows(N), batch_size=4)
    assert streamed.batches.interleaved
    for ev in (evaluator(batch_size=3), streamed):
        found = minibatch_gradients(ev, theta, minibatches, numbers(ev), memory)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("named", [True, False])
def test_batches_of_several_shapes_are_not_joined(named):
    """Sentences padded to the longest of their batch, and their names."""
    torch.manual_seed(0)
    lengths = [3, 5, 2, 6, 4, 4, 3]
    rows = [(torch.randint(0, 9, (t,)), f"s{i}") for i, t in enumerate(lengths)]

    def collate(samples):
        words = nn.utils.rnn.pad_sequence([w for w, _ in samples], True, padding_value=0)
        return {"words": words, **({"names": [name for _, name in samples]} if named else {})}

    embedding = nn.Embedding(9, 3).double()

    def forward(model, batch):
        return model(batch["words"]).tanh().sum((1, 2)).square()

    ev = hs.Evaluator(
        embedding,
        lambda out, batch: out.mean(),
        DataLoader(rows, batch_size=3, collate_fn=collate),
        forward=forward,
    )
    found = minibatch_gradients(ev, ev.theta, [np.array([0, 3, 4, 6])], numbers(ev))[0]
    batches = list(DataLoader(rows, batch_size=3, collate_fn=collate))
    places = [(0, 0), (1, 0), (1, 1), (2, 0)]
    out = torch.cat([forward(embedding, batches[b])[i : i + 1] for b, i in places])
    (expected,) = torch.autograd.grad(out.mean(), embedding.weight)
    torch.testing.assert_close(found, expected.reshape(-1), rtol=1e-12, atol=1e-14)


def test_blocks_change_nothing_and_tell_how_far_they_are():
    ev = evaluator()
    told = []
    found = hs.alignment(ev, (3, N), 5, at_once=2, on_chunk=told.append)
    assert told == [2, 4, 5, 6]
    before = ev.counts.products
    whole = hs.alignment(ev, (3, "full"), 5)
    assert ev.counts.products - before == 6
    np.testing.assert_allclose(found.alignment, whole.alignment, rtol=1e-12)
    apart = joined([hs.alignment(ev, (N,), 5), hs.alignment(ev, (3,), 5)])
    np.testing.assert_array_equal(apart.alignment, whole.alignment)
    np.testing.assert_array_equal(apart.batch_sizes, whole.batch_sizes)


def test_minibatches_are_drawn_evenly_and_without_replacement():
    drawn = np.array([draw(10, 4, 0, b) for b in range(2000)])
    assert (np.diff(drawn, axis=1) > 0).all()
    counts = np.bincount(drawn.ravel(), minlength=10)
    # 800 expected each, standard deviation sqrt(2000 * 0.4 * 0.6) = 22
    assert abs(counts - 800).max() < 5 * 22
    assert not np.array_equal(draw(10, 4, 1, 0), draw(10, 4, 0, 0))
    assert draw(10, 4, 7, 3).tolist() == [1, 2, 7, 8]  # the same on every machine


def test_the_spread_is_that_of_the_minibatches():
    values = np.array([[1.0, 2.0, np.nan, 6.0], [5.0, np.nan, np.nan, np.nan]])
    found = hs.Alignment(
        batch_sizes=np.array([2, 9]),
        alignment=values,
        gradient_norm=np.ones((2, 4)),
        cosine=np.zeros((2, 4, 0)),
        captured=np.full((2, 4), np.nan),
        eigenvalues=np.empty(0),
        residuals=np.empty(0),
        num_samples=9,
        seed=0,
    )
    assert found.mean().tolist() == [3.0, 5.0]
    assert found.std()[0] == np.std([1, 2, 6], ddof=1) and np.isnan(found.std()[1])
    assert found.standard_error().tolist() == [found.std()[0] / np.sqrt(3), 0.0]
    assert np.isnan(found.share).all() and np.isnan(found.mean("captured")).all()


def test_frozen_statistics_of_batch_norm_are_those_of_all_the_data():
    ev = evaluator("batch norm, dropout", batch_norm="recalibrate")
    found = minibatch_gradients(ev, ev.theta, [np.arange(N), np.arange(4)], numbers(ev))
    torch.testing.assert_close(found[0], ev.gradient(), rtol=1e-10, atol=1e-12)
    rest = minibatch_gradients(ev, ev.theta, [np.arange(4, N)], numbers(ev))[0]
    torch.testing.assert_close(4 * found[1] + (N - 4) * rest, N * ev.gradient())


def test_what_is_refused():
    ev = evaluator()
    x, y = data(N)
    pairs = eigenpairs(dense_hessian(ev.model, lambda m: F.cross_entropy(m(x), y)), 2)
    cases = [
        ({"batch_sizes": (N + 1,)}, "batch size 24: expected 1 to 23, the number of samples"),
        ({"batch_sizes": (0,)}, "batch size 0"),
        ({"batch_sizes": ("all",)}, "batch size 'all'.*or 'full'"),
        ({"batch_sizes": ()}, "batch_sizes is empty"),
        ({"batch_sizes": (2,), "num_batches": 0}, "num_batches=0"),
        ({"batch_sizes": (2,), "at_once": 0}, "at_once=0"),
    ]
    wrong = [
        (pairs.vectors[:, :-1], r"has shape \(2, 52\); expected \(2, 53\)"),
        (2 * pairs.vectors, "not orthonormal: off by 3.0e"),
        (np.eye(53)[:2], "pairs are of another matrix"),
    ]
    for vectors, message in wrong:
        other = hs.EigenPairs(pairs.values, pairs.residuals, pairs.converged, vectors)
        cases.append(({"batch_sizes": (2,), "pairs": other}, message))
    for options, message in cases:
        with pytest.raises(hs.InputError, match=message):
            hs.alignment(ev, **options)
    by_batch = evaluator("batch norm, dropout", batch_norm="train")
    with pytest.raises(hs.InputError, match="batch_norm='train': samples are normalized"):
        hs.alignment(by_batch, (2,), 2)
    assert np.isfinite(hs.alignment(by_batch, ("full",), 2).alignment[0, 0])


def test_eigenvalues_alone_give_shares():
    ev = evaluator()
    pairs = hs.EigenPairs(np.array([0.5, 2.0]), np.zeros(2), np.ones(2, bool))
    found = hs.alignment(ev, (4,), 3, pairs=pairs)
    np.testing.assert_array_equal(found.share, found.alignment / 2.0)
    assert np.isnan(found.cosine).all() and found.cosine.shape == (1, 3, 2)


def test_eigenvectors_of_the_lower_end_are_left_out():
    ev = evaluator()
    pairs = hs.eigenpairs(hs.Hessian(ev), 2, "both", tol=1e-9)
    found = hs.alignment(ev, (4, 9), 3, pairs=pairs)
    upper = hs.EigenPairs(*(x[2:] for x in (pairs.values, pairs.residuals, pairs.converged)))
    top = hs.alignment(ev, (4, 9), 3, pairs=dataclasses.replace(upper, vectors=pairs.vectors[2:]))
    assert found.cosine.shape == (2, 3, 2)
    np.testing.assert_array_equal(found.captured, top.captured)
    lower = hs.eigenpairs(hs.Hessian(ev), 2, "smallest")
    with pytest.raises(hs.InputError, match="of the lower end only"):
        hs.alignment(ev, (4,), 3, pairs=lower)


def test_single_precision_finds_the_same():
    torch.manual_seed(0)
    double = evaluator()
    single = hs.Evaluator(mlp().float(), F.cross_entropy, data(N), batch_size=5)
    single.model.load_state_dict(double.model.state_dict())
    a, b = (hs.alignment(ev, (3, 11), 8) for ev in (double, single))
    np.testing.assert_allclose(a.alignment, b.alignment, rtol=1e-4)
