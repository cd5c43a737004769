"""Each refusal says the true cause, where it is, and what to write instead.

The table has, for each input, the cause in the message and the way out that the message says; the
way out is taken, and gives the right number.
"""

import re
from collections import UserDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from dense_oracles import dense_hessian
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

import hessian_spectrum as hs
from hessian_spectrum.loss import loaders
from hessian_spectrum.zoo import load_checkpoint

DOUBLE = torch.float64


def samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=generator, dtype=DOUBLE)
    return x, torch.arange(12) % 3


X, Y = samples()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def evaluator(model=None, data=None, loss_fn=F.cross_entropy, **options):
    data = (X, Y) if data is None else data
    return hs.Evaluator(model or net(), loss_fn, data, **options)


def dense(ev, kind=hs.Hessian, **options):
    return kind(ev, **options) @ torch.eye(ev.n, dtype=DOUBLE)


def oracle(model=None, loss_fn=F.cross_entropy, inputs=X, targets=Y):
    return dense_hessian(model or net(), lambda m: loss_fn(m(inputs), targets))


# -- models ------------------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self, lookup):
        super().__init__()
        torch.manual_seed(1)
        self.e, self.h = lookup, nn.Linear(3, 3)
        nn.init.normal_(self.e.weight)
        self.double()

    def pooled(self, w):
        return self.e(w).mean(1)

    def forward(self, w):
        return self.h(torch.tanh(self.pooled(w)))


class Called(Words):
    def __init__(self, **options):
        super().__init__(nn.Embedding(8, 3))
        self.options = options

    def pooled(self, w):
        return F.embedding(w, self.e.weight, **self.options).mean(1)


class Bags(Words):
    def pooled(self, w):
        return self.e(w)


class Maximum(Words):
    def pooled(self, w):
        return self.e(w).amax(1)


W = torch.randint(8, (12, 4), generator=torch.Generator().manual_seed(3))


def without_renormalization():
    model = Words(nn.Embedding(8, 3, max_norm=0.7))
    model.e.weight.data.renorm_(2, 0, 0.7)
    model.e.max_norm = None
    ev = evaluator(model, (W, Y))
    same = F.cross_entropy(Words(nn.Embedding(8, 3, max_norm=0.7))(W), Y)
    assert ev.loss().item() == pytest.approx(same.item(), 1e-6)  # torch divides by norm + 1e-7
    return dense(ev), oracle(model, inputs=W)


def on_meta():
    with torch.device("meta"):
        return net()


def from_meta():
    model = on_meta().to_empty(device="cpu")
    model.load_state_dict(net().state_dict())
    return dense(evaluator(model)), oracle()


def lazy():
    return nn.Sequential(nn.LazyLinear(3)).double()


def called_once():
    model = lazy()
    model(X[:2])
    return dense(evaluator(model)), oracle(model)


def exported(**options):
    return torch.export.export(net(), (X,), **options).module()


def exported_with_dynamic_shapes():
    model = exported(dynamic_shapes=({0: torch.export.Dim("batch")},))
    return dense(evaluator(model, batch_size=5)), oracle()


class FSDPModule(nn.Module):  # of the name of torch's, which needs a process group
    pass


class Sharded(FSDPModule, nn.Linear):
    pass


def unsharded():
    sharded, model = Sharded(4, 3).double(), nn.Linear(4, 3).double()
    model.load_state_dict(sharded.state_dict())
    return dense(evaluator(model)), oracle(model)


def quantized():
    return torch.ao.quantization.quantize_dynamic(net().float(), {nn.Linear}, torch.qint8)


# -- data --------------------------------------------------------------------------------------


class Rows(Dataset):
    """Samples that ``make`` gives, by number."""

    def __init__(self, make, count=12):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.make(i)


class NoLength(Dataset):
    def __getitem__(self, i):
        return X[i], Y[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y))


def picture(i):
    image = pytest.importorskip("PIL.Image")
    return image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2) * (i + 1)), int(Y[i])


def to_tensor(i):
    image, label = picture(i)
    return torch.from_numpy(np.array(image)).reshape(4) / 255, label


def of_pictures():
    inputs = torch.stack([to_tensor(i)[0] for i in range(12)]).double()
    return dense(evaluator(data=Rows(to_tensor), dtype=DOUBLE)), oracle(inputs=inputs)


def ragged(i):
    return W[i, : 2 + i % 3], int(Y[i])


def padded(samples):
    words, labels = zip(*samples)
    return nn.utils.rnn.pad_sequence(words, True), torch.tensor(labels)


def with_padding():
    model, words = Words(nn.Embedding(8, 3)), padded([ragged(i) for i in range(12)])[0]
    ev = evaluator(model, DataLoader(Rows(ragged), 12, collate_fn=padded))
    return dense(ev), oracle(model, inputs=words)


def unlabelled():
    def loss(z, _):
        return z.square().mean(1).mean()

    data = [{"x": x} for x in X]
    ev = evaluator(data=data, loss_fn=loss, forward=lambda m, b: m(b["x"]))
    return dense(ev), oracle(loss_fn=loss)


# -- losses ------------------------------------------------------------------------------------

REGRESSION = X[:, 0] * X[:, 1]


def line():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def squares(z, y):
    return (z - y).square().mean()


def of_regression(loss_fn):
    ev = evaluator(line(), (X, REGRESSION.view(-1, 1)), loss_fn)
    return dense(ev), oracle(line(), loss_fn, targets=REGRESSION.view(-1, 1))


PAIRS = torch.randn(24, 2, 5, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def normalized(model, batch):
    return F.normalize(model(batch["x"]), dim=-1)


def contrastive(z, _=None):
    return F.cross_entropy(z[:, 0] @ z[:, 1].T / 0.5, torch.arange(len(z)))


def contrastive_evaluator(**options):
    return evaluator(
        encoder(), [{"x": x} for x in PAIRS], contrastive, forward=normalized, **options
    )


def minibatches_as_samples():
    ev = evaluator(
        encoder(),
        [{"x": x} for x in PAIRS.split(8)],
        lambda z, _: torch.stack([contrastive(minibatch) for minibatch in z]),
        forward=normalized,
        reduction="none",
        batch_size=1,
    )

    def loss(model):
        parts = [contrastive(normalized(model, {"x": x})) for x in PAIRS.split(8)]
        return torch.stack(parts).mean()

    return dense(ev), dense_hessian(encoder(), loss)


def spoken():
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "x": torch.randn(8, 3, generator=generator, dtype=DOUBLE),
            "t": torch.randint(1, 5, (3,), generator=generator),
            "n": torch.tensor(8),
            "k": torch.tensor(k),
        }
        for k in (3, 2, 1)
    ]


def speaker():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()


def ctc(z, b):
    return F.ctc_loss(z.log_softmax(-1).transpose(0, 1), b["t"], b["n"], b["k"])


def ctc_by_recursion(z, b):
    """Graves et al. 2006, equations 6 and 7, in the log domain; torch's mean divides by length."""
    losses = []
    for logits, target, count in zip(z.log_softmax(-1), b["t"], b["k"].tolist()):
        path = torch.zeros(2 * count + 1, dtype=torch.long)
        path[1::2] = target[:count]
        none = torch.tensor(-1e30, dtype=DOUBLE)
        may_skip = torch.zeros(len(path), dtype=torch.bool)
        may_skip[2:] = (path[2:] != 0) & (path[2:] != path[:-2])
        reached = torch.where(torch.arange(len(path)) < 2, logits[0, path], none)
        for row in logits[1:]:
            one = torch.cat([none[None], reached[:-1]])
            two = torch.where(may_skip, torch.cat([none[None], one[:-1]]), none)
            reached = torch.logsumexp(torch.stack([reached, one, two]), 0) + row[path]
        losses.append(-torch.logsumexp(reached[-2:], 0) / count)
    return torch.stack(losses).mean()


def speech(loss_fn):
    return evaluator(speaker(), spoken(), loss_fn, forward=lambda m, b: m(b["x"]))


def by_recursion(kind):
    ev = speech(ctc_by_recursion)
    assert ev.loss().item() == pytest.approx(speech(ctc).loss().item(), 1e-12)
    assert (ev.gradient() - speech(ctc).gradient()).norm() < 1e-12
    if kind is hs.GaussNewton:  # its trace is that of J^T A J with A of softmax outputs
        found = dense(ev, kind)
        return found, jacobian_form()
    batch = torch.utils.data.default_collate(spoken())
    return dense(ev), dense_hessian(speaker(), lambda m: ctc_by_recursion(m(batch["x"]), batch))


def jacobian_form():
    """J^T A J, J of the outputs and A the Hessian of the criterion, by torch.func."""
    model, batch = speaker(), torch.utils.data.default_collate(spoken())
    named = {name: p.detach() for name, p in model.named_parameters()}
    outputs = torch.func.functional_call(model, named, (batch["x"],))
    parts = torch.func.jacrev(
        lambda named: torch.func.functional_call(model, named, (batch["x"],)).reshape(-1)
    )(named)
    jacobian = torch.cat([part.flatten(1) for part in parts.values()], 1)
    bend = torch.autograd.functional.hessian(
        lambda z: ctc_by_recursion(z.view_as(outputs), batch), outputs.reshape(-1)
    )
    return jacobian.T @ bend @ jacobian


# -- forms of products -------------------------------------------------------------------------


def hooked(hook=lambda module, inner, outer: None):
    model = net()
    model.handle = model[1].register_full_backward_hook(hook)
    return model


def to_array(module, inner, outer):
    inner[0].detach().numpy()


class TensorHook(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        h = self.net[1](self.net[0](x))
        if h.requires_grad:
            h.register_hook(lambda g: g * min(1.0, 1e9 / g.norm().item()))
        return self.net[2](h)


def product(model, mode):
    return dense(evaluator(model), plan=hs.ProductPlan(mode))


def without_handle(mode):
    model = hooked()
    model.handle.remove()
    return product(model, mode), oracle()


# -- checkpoints -------------------------------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.other = net(), nn.Linear(2, 2)


def loaded(content, path):
    torch.save(content, path / "c.pt")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    load_checkpoint(model, path / "c.pt")
    return dense(evaluator(model)), oracle()


def in_bytes():
    state = net().state_dict()
    scale = {"scale": 2.0**-29, "zero_point": 0, "dtype": torch.qint32}
    return {key: torch.quantize_per_tensor(t.float(), **scale) for key, t in state.items()}


class Row(NamedTuple):
    refused: object
    cause: str
    mended: object
    takes_path: bool = False


TABLE = {
    "max_norm": Row(
        lambda: evaluator(Words(nn.Embedding(8, 3, max_norm=0.7)), (W, Y)),
        r"layer e \(Embedding\) has max_norm=0.7.*model\.e\.weight\.data\.renorm_\(2, 0, 0\.7\)",
        without_renormalization,
    ),
    "max_norm of a call": Row(
        lambda: evaluator(Called(max_norm=0.7), (W, Y)),
        r"embedding is called with max_norm=0\.7.*call it without",
        lambda: (dense(evaluator(Called(), (W, Y))), oracle(Called(), inputs=W)),
    ),
    "bag of maxima": Row(
        lambda: hs.Hessian(evaluator(Bags(nn.EmbeddingBag(8, 3, mode="max")), (W, Y))),
        r"bag of embeddings with mode='max' has none: write nn\.Embedding.* amax",
        lambda: (
            dense(evaluator(Maximum(nn.Embedding(8, 3)), (W, Y))),
            oracle(Maximum(nn.Embedding(8, 3)), inputs=W),
        ),
    ),
    "meta": Row(
        lambda: evaluator(on_meta()),
        r"weight of the layer 0 \(Linear\) is on the device meta.*to_empty\(device='cpu'\)",
        from_meta,
    ),
    "lazy": Row(
        lambda: evaluator(lazy()),
        r"layer 0 \(LazyLinear\) is lazy.*call the model once",
        called_once,
    ),
    "exported": Row(
        lambda: evaluator(exported()),
        r"part of minibatch 0.*made by torch\.export.*dynamic_shapes=",
        exported_with_dynamic_shapes,
    ),
    "sharded": Row(
        lambda: evaluator(Sharded(4, 3)),
        r"given as model is sharded over ranks \(FSDP\).*the full state_dict",
        unsharded,
    ),
    "frozen": Row(
        lambda: evaluator(net().requires_grad_(False)),
        r"no trainable parameter: requires_grad is False.*model\.requires_grad_\(True\)",
        lambda: (
            dense(evaluator(net().requires_grad_(False).requires_grad_(True))),
            oracle(),
        ),
    ),
    "quantized": Row(
        lambda: evaluator(quantized()),
        r"the layer 0 \(torch\.ao\.nn\.quantized\.\S+Linear\) is quantized.*before quantization",
        lambda: (dense(evaluator(net())), oracle()),
    ),
    "pictures": Row(
        lambda: evaluator(data=Rows(picture)),
        r"entry \[0\] of the batch's sample 0 is a picture \(Image\).*ToTensor\(\)",
        of_pictures,
    ),
    "pictures of a loader": Row(
        lambda: evaluator(data=DataLoader(Rows(picture), batch_sampler=[[0, 1], [2]])),
        r"entry \[0\] of the batch's sample 0 is a picture \(Image\).*ToTensor\(\)",
        of_pictures,
    ),
    "None": Row(
        lambda: evaluator(data=Rows(lambda i: (X[i], None))),
        r"entry \[1\] of the batch's sample 0 is None.*leave that entry out",
        unlabelled,
    ),
    "lengths of samples": Row(
        lambda: evaluator(Words(nn.Embedding(8, 3)), Rows(ragged)),
        r"entry \[0\] has the shape \(2,\).*\(3,\) in sample 1.*collate_fn=f",
        with_padding,
    ),
    "no __len__": Row(
        lambda: evaluator(data=NoLength()),
        r"NoLength has no __len__.*IterableDataset",
        lambda: (dense(evaluator(data=Stream(), batch_size=5)), oracle()),
    ),
    "no __len__, in a loader": Row(
        lambda: evaluator(data=DataLoader(NoLength(), 4)),
        r"NoLength has no __len__.*IterableDataset",
        lambda: (dense(evaluator(data=Rows(lambda i: (X[i], Y[i])))), oracle()),
    ),
    "lists": Row(
        lambda: evaluator(data=(X.tolist(), Y.tolist())),
        r"pair of lists of numbers.*torch\.tensor\(inputs\)",
        lambda: (
            dense(evaluator(data=(torch.tensor(X.tolist(), dtype=DOUBLE), torch.tensor(Y)))),
            oracle(),
        ),
    ),
    "MSE of (N, 1) and (N,)": Row(
        lambda: evaluator(line(), (X, REGRESSION), nn.MSELoss()),
        r"^the model's outputs have the shape \(12, 1\), but the targets \(12,\).*y\.view\(-1, 1\)",
        lambda: of_regression(nn.MSELoss()),
    ),
    "squares of (N, 1) and (N,)": Row(
        lambda: evaluator(line(), (X, REGRESSION), squares),
        r"two parts give.*outputs have the shape \(12, 1\).*y\.view\(-1, 1\)",
        lambda: of_regression(squares),
    ),
    "MSE of (1, 1) and (1,)": Row(
        lambda: evaluator(line(), (X, REGRESSION), nn.MSELoss(), batch_size=1),
        r"minibatches 0 and 1 together.*outputs have the shape \(2, 1\).*y\.view\(-1, 1\)",
        lambda: of_regression(nn.MSELoss()),
    ),
    "a sum as a mean": Row(
        lambda: evaluator(loss_fn=lambda z, y: F.cross_entropy(z, y, reduction="sum")),
        r"two parts give.*returns the sum of its samples: pass reduction='sum'",
        lambda: (
            dense(evaluator(loss_fn=nn.CrossEntropyLoss(reduction="sum"), reduction="sum")),
            oracle(),
        ),
    ),
    "contrastive": Row(
        lambda: contrastive_evaluator(batch_size=8),
        r"two parts give.*contrastive.*batch_size=1, reduction='none'",
        minibatches_as_samples,
    ),
    "contrastive, counted": Row(
        lambda: contrastive_evaluator(batch_size=8, count=lambda b: len(b["x"])),
        r"two parts give.*contrastive.*batch_size=1, reduction='none'",
        minibatches_as_samples,
    ),
    "CTC": Row(
        lambda: hs.Hessian(speech(ctc)),
        r"second derivatives cannot be formed.*CTC.*torch\.logsumexp",
        lambda: by_recursion(hs.Hessian),
    ),
    "CTC in Gauss-Newton": Row(
        lambda: hs.GaussNewton(speech(ctc)),
        r"^the loss's second derivatives cannot be formed.*CTC.*torch\.logsumexp",
        lambda: by_recursion(hs.GaussNewton),
    ),
    "a hook by forward": Row(
        lambda: product(hooked(), "forward"),
        r"products by forward .*module 1 \(Tanh\) has a hook on gradients.*handle\.remove\(\)",
        lambda: without_handle("forward"),
    ),
    "a hook by linearize": Row(
        lambda: product(hooked(), "linearize"),
        r"products by linearize .*module 1 \(Tanh\) has a hook.*ProductPlan\('reverse'\)",
        lambda: (product(hooked(), "reverse"), oracle()),
    ),
    "a hook that makes an array": Row(
        lambda: product(hooked(to_array), "reverse-batched"),
        r"products by reverse-batched .*module 1 \(Tanh\) has a hook.*ProductPlan\('reverse'\)",
        lambda: (product(hooked(to_array), "reverse"), oracle()),
    ),
    "a hook on a tensor": Row(
        lambda: product(TensorHook(), "reverse-batched"),
        r"products by reverse-batched .*Tensor\.register_hook.*ProductPlan\('reverse'\)",
        lambda: (product(TensorHook(), "reverse"), oracle()),
    ),
    "a prefix beside others": Row(
        lambda path: loaded(Wrapped().state_dict(), path),
        r"under the prefix 'net\.', beside others \(other\.weight",
        lambda path: loaded(
            {
                key.removeprefix("net."): t
                for key, t in Wrapped().state_dict().items()
                if key.startswith("net.")
            },
            path,
        ),
        True,
    ),
    "numbers as names": Row(
        lambda path: loaded(dict(enumerate(net().state_dict().values())), path),
        r"int keys \(0, 1 and 2 more\).*save model\.state_dict\(\)",
        lambda path: loaded(net().state_dict(), path),
        True,
    ),
    "quantized checkpoint": Row(
        lambda path: loaded(in_bytes(), path),
        r"quantized numbers for 0\.weight.*dequantize\(\)",
        lambda path: loaded({key: t.dequantize() for key, t in in_bytes().items()}, path),
        True,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TABLE)
def test_the_message_has_the_cause_and_its_way_out_the_right_number(name, tmp_path):
    row = TABLE[name]
    path = [tmp_path] if row.takes_path else []
    with pytest.raises(hs.InputError) as caught:
        row.refused(*path)
    assert re.search(row.cause, " ".join(str(caught.value).split())), caught.value
    found, expected = row.mended(*path)
    assert (found - expected).norm() < 1e-12 * expected.norm()  # measured: 5e-16


# -- what is meant is accepted -----------------------------------------------------------------


def in_float32(z, y):
    return F.cross_entropy(z.float(), y)


def reversed_product():
    eye = np.eye(evaluator().n)
    return torch.from_numpy((hs.Hessian(evaluator()) @ eye[:, ::-1]).copy()).flip(1), oracle()


def of_dicts(kind):
    data = [{"x": x, "y": y} for x, y in zip(X, Y)]
    if kind is UserDict:
        data = DataLoader(data, 5, collate_fn=lambda rows: UserDict(loaders.default_collate(rows)))
    ev = evaluator(
        data=data,
        loss_fn=lambda z, b: F.cross_entropy(z, b["y"]),
        forward=lambda m, b: m(b["x"]),
        count=lambda b: len(b["y"]),
    )
    return dense(ev), oracle()


def two_samples():
    data = [[0.5, 1.0], [2.0, -1.0]]
    model = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1), nn.Tanh(), nn.Flatten(0))
    model = model.double()
    x, y = torch.tensor(data, dtype=DOUBLE).T
    return dense(evaluator(model, data, nn.MSELoss())), oracle(model, nn.MSELoss(), x, y)


def same_dimensions():
    """Targets (N, 1) for outputs (N, 3): each output of a sample with that sample's own target."""
    y, loss_fn = REGRESSION.view(-1, 1), nn.MSELoss()
    return dense(evaluator(data=(X, y), loss_fn=loss_fn)), oracle(loss_fn=loss_fn, targets=y)


ACCEPTED = {
    "a loss in float32": (
        lambda: (dense(evaluator(loss_fn=in_float32)), oracle(loss_fn=in_float32)),
        1e-6,  # measured: 2e-8
    ),
    "a loss in float32, in minibatches": (
        lambda: (dense(evaluator(loss_fn=in_float32, batch_size=5)), oracle(loss_fn=in_float32)),
        1e-6,  # measured: 1e-7
    ),
    "a sequence with a loss in float32": (
        lambda: (
            dense(
                evaluator(data=list(zip(X.split(3), Y.split(3))), loss_fn=in_tokens, batch_size=3)
            ),
            oracle(loss_fn=in_float32),
        ),
        1e-6,  # measured: 2e-8
    ),
    "an array with negative strides": (reversed_product, 1e-12),
    "dicts": (lambda: of_dicts(dict), 1e-12),
    "UserDicts": (lambda: of_dicts(UserDict), 1e-12),
    "two samples in lists": (two_samples, 1e-12),
    "a tensor and a list": (lambda: (dense(evaluator(data=(X, Y.tolist()))), oracle()), 1e-12),
    "targets that are broadcast in a sample": (same_dimensions, 1e-12),
    "exported for all sizes": (exported_with_dynamic_shapes, 1e-12),
    "a hook, and no plan": (lambda: (dense(evaluator(hooked())), oracle()), 1e-12),
}


def in_tokens(z, y):
    """As the losses of language models: (B, T, C) and (B, T), in float32."""
    return F.cross_entropy(z.flatten(0, -2).float(), y.flatten())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_meant_is_accepted(name):
    make, tolerance = ACCEPTED[name]
    found, expected = make()
    assert (found - expected).norm() < tolerance * expected.norm()  # measured otherwise: 3e-16
