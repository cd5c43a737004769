"""Blocks of heads, layers and experts are those of the dense Hessian."""

import pytest
import torch
from torch import nn

import hessian_spectrum as hs


class Attending(nn.Module):
    """One of torch's attentions, and a linear layer."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


def evaluator(**options):
    torch.manual_seed(0)
    data = torch.randn(5, 3, 4).double(), torch.arange(5) % 3
    return hs.Evaluator(Attending(**options).double(), nn.CrossEntropyLoss(), data)


def named(ev):
    return ev.layout.unflatten(torch.arange(ev.n))


def test_a_head_has_its_rows_and_its_columns():
    ev = evaluator()
    at, blocks = named(ev), hs.parameter_blocks(ev, "heads")
    assert list(blocks) == ["attention.head0", "attention.head1"]
    rows = torch.tensor([2, 3, 6, 7, 10, 11])  # of q, k and v, for the second head
    expected = torch.cat(
        [
            at["attention.in_proj_weight"][rows].flatten(),
            at["attention.in_proj_bias"][rows],
            at["attention.out_proj.weight"][:, 2:].flatten(),
        ]
    )
    assert torch.equal(blocks["attention.head1"], expected.sort().values)


def test_layers_and_patterns():
    ev = evaluator()
    at = named(ev)
    layers = hs.parameter_blocks(ev, "layers")
    assert list(layers) == ["attention", "attention.out_proj", "last"]
    assert torch.equal(layers["last"], torch.cat([t.flatten() for t in list(at.values())[-2:]]))
    patterns = hs.parameter_blocks(ev, ["last.*", "*bias"])
    assert torch.equal(patterns["last.*"], layers["last"])
    assert len(patterns["*bias"]) == 12 + 4 + 3


@pytest.mark.parametrize("kind", ["heads", "layers", ["last.*", "*bias"]])
def test_spectra_of_all_blocks_are_those_of_the_dense_blocks(kind):
    ev = evaluator()
    hessian = hs.Hessian(ev)
    every = torch.eye(ev.n, dtype=torch.float64)
    dense = hs.Hessian(ev, plan=hs.ProductPlan("linearize")) @ every
    blocks = hs.parameter_blocks(ev, kind)
    before = ev.counts.passes
    steps = max(map(len, blocks.values()))
    # A probe and as many steps as a block has eigenvalues: each is a node.
    found = hs.spectral_densities(hessian, blocks, num_probes=1, num_steps=steps)
    assert ev.counts.passes - before <= steps + 2  # one for all blocks in each step
    for name, entries in blocks.items():
        values = torch.linalg.eigvalsh(dense[entries][:, entries])
        scale = values.abs().max()
        assert found[name].n == len(entries)
        assert found[name].trace == pytest.approx(
            values.sum().item(), abs=3 * len(values) * scale.item()
        )
        pairs = hs.eigenpairs(hs.Restricted(hessian, entries=entries), 1)
        assert abs(pairs.values - values[[0, -1]].numpy()).max() < 1e-9 * scale


def test_wrong_blocks_are_refused():
    ev = evaluator()
    hessian = hs.Hessian(ev)
    with pytest.raises(hs.InputError, match="no parameter matches 'first"):
        hs.parameter_blocks(ev, ["first.*"])
    with pytest.raises(hs.InputError, match="'layers' among others; give it alone"):
        hs.parameter_blocks(ev, ["layers", "heads"])
    with pytest.raises(hs.InputError, match="'experts': the model has none"):
        hs.parameter_blocks(ev, "experts")
    for entries, message in (
        (torch.tensor([0.5]), "expected whole numbers"),
        (torch.tensor([0, ev.n]), "from 0 to"),
        (torch.tensor([2, 1]), "expected ascending"),
        (torch.tensor([1, 1]), "expected ascending"),
        (torch.tensor([], dtype=torch.int64), "expected whole numbers"),
    ):
        with pytest.raises(hs.InputError, match=message):
            hs.Restricted(hessian, entries=entries)
    with pytest.raises(hs.InputError, match="either name patterns or entries"):
        hs.Restricted(hessian)
