"""Language models as people have them: their own loss, and the dense Hessian of it."""

import pytest
import torch
from language_models import VOCABULARY, hf, made, samples
from torch.func import functional_call

import hessian_spectrum as hs

NAMES = ("gpt2", "llama", "mixtral", "bert", "t5")


def own_loss(model, batch):
    """Of one batch without padding, by the model's own code in float32 at most."""
    model.config._experts_implementation = "eager"
    with torch.no_grad():
        return model.eval()(**{k: v[None] for k, v in batch.items()}).loss.item()


def targets(name, sample):
    labels = sample.get("labels", sample["input_ids"])
    shifted = labels[1:] if name in ("gpt2", "llama", "mixtral") else labels
    return int((shifted != -100).sum())


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_models_own_however_it_is_batched(name):
    model, data = made(name), samples(name)
    causal = name in ("gpt2", "llama", "mixtral")
    parts = [{**s, "labels": s["input_ids"]} if causal else s for s in data]
    counts = [targets(name, s) for s in data]
    expected = sum(own_loss(model, s) * c for s, c in zip(parts, counts)) / sum(counts)
    losses = [
        hs.Evaluator.from_huggingface(model, data, batch_size=size).loss().item() for size in (1, 3)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[0] == pytest.approx(expected, rel=1e-5)  # theirs rounds logits to float32


@pytest.mark.parametrize("name", NAMES)
def test_in_float64_nothing_is_rounded_to_float32(name):
    """A step of 1e-6 shows it: rounded losses would be off by 0.1 of a slope of 1."""
    model, data = made(name).float(), samples(name, 2)  # as it is loaded
    for kind in (hs.Evaluator, hs.ShardedEvaluator):
        ev = kind.from_huggingface(model, data, dtype=torch.float64)
        v = torch.randn(ev.n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        v /= v.norm()
        ahead, behind = (ev.loss(ev.theta + step * v) for step in (1e-6, -1e-6))
        slope = ev.gradient() @ v
        assert ((ahead - behind) / 2e-6 - slope).abs() < 1e-6 * ev.gradient().norm()


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_dense_hessian(name):
    """Whole and sharded, against reverse over reverse of the model's logits, sample by sample."""
    model, data = made(name).eval(), samples(name, 2)
    options = {"parameters": ["*.0.*"], "batch_size": 2}
    ev = hs.Evaluator.from_huggingface(model, data, **options)
    total = sum(targets(name, s) for s in data)
    forward, loss_fn = ev.function._module._outputs, ev.loss_fn

    def loss(theta):
        found = 0.0
        for sample in data:
            batch = {k: v[None] for k, v in sample.items()}
            batch.setdefault("labels", batch["input_ids"])
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            named = ev.layout.unflatten(theta)
            logits = functional_call(Outputs(model, forward), named_of(named), (batch,))
            found = found + loss_fn(logits, batch) * targets(name, sample) / total
        return found

    theta = ev.theta.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(ev.n, 2, dtype=torch.float64, generator=generator)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (g,) = torch.autograd.grad(loss(theta), theta, create_graph=True)
        expected = torch.stack(
            [torch.autograd.grad(g, theta, x, retain_graph=True)[0] for x in v.T], dim=1
        )
    assert expected.norm() > 1e-3
    found = hs.Hessian(ev) @ v
    assert (found - expected).norm() < 1e-9 * expected.norm()
    sharded = hs.ShardedEvaluator.from_huggingface(model, data, **options)
    found = hs.ShardedHessian(sharded, products="exact") @ v
    assert (found - expected).norm() < 1e-9 * expected.norm()


class Outputs(torch.nn.Module):
    def __init__(self, model, forward):
        super().__init__()
        self.model, self.outputs = model, forward

    def forward(self, batch):
        return self.outputs(self.model, batch)


def named_of(named):
    return {f"model.{name}": t for name, t in named.items()}


def test_every_kind_of_data_is_the_same_data():
    model, ids = made("gpt2"), torch.randint(1, VOCABULARY, (3, 5))
    expected = hs.Evaluator.from_huggingface(model, ids).loss()
    kinds = {
        "columns": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "lists": {"input_ids": ids.tolist()},
        "encoding": hf.BatchEncoding({"input_ids": ids, "labels": ids}),
        "samples": [{"input_ids": row, "text": "beside"} for row in ids],
    }
    for name, data in kinds.items():
        assert hs.Evaluator.from_huggingface(model, data).loss() == expected, name
    cut = hs.Evaluator.from_huggingface(model, ids, max_length=3)
    assert cut.loss() == hs.Evaluator.from_huggingface(model, ids[:, :3]).loss()


def test_what_cannot_be_formed_is_refused_with_its_way_out():
    model, ids = made("gpt2"), torch.randint(1, VOCABULARY, (2, 4))
    make = hs.Evaluator.from_huggingface
    for data, message in (
        ("a text", "expected a list of texts"),
        (["a text"], "pass their tokenizer="),
        (ids.double(), "expected token ids"),
        ([1, 2], "a sample is a int; expected a dict"),
        ([{"tokens": ids[0]}], "expected input_ids"),
        (ids[:0], "the data set is empty"),
        (7, "dataset is a int"),
    ):
        with pytest.raises(hs.InputError, match=message):
            make(model, data)
    with pytest.raises(hs.InputError, match="has any of them a target"):
        make(model, ids[:, :1])
    with pytest.raises(hs.InputError, match="expected one of transformers"):
        make(torch.nn.Linear(2, 2), ids)
    with pytest.raises(hs.InputError, match="needs labels"):
        make(made("bert"), ids)
    with pytest.raises(hs.InputError, match="is not known here"):
        make(hf.BertModel(made("bert").config), ids)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(hs.InputError, match="attn_implementation='sdpa'"):
        make(model, ids)


class OtherLoss(hf.GPT2LMHeadModel):
    def forward(self, *args, **options):
        found = super().forward(*args, **options)
        if found.loss is not None:
            found.loss = found.loss + 1.0
        return found


def test_another_loss_than_the_mean_over_targets_is_refused():
    model = OtherLoss(made("gpt2").config)
    with pytest.raises(hs.InputError, match="does its loss have other terms"):
        hs.Evaluator.from_huggingface(model, torch.randint(1, VOCABULARY, (2, 4)))


def test_adapters_are_the_parameters():
    peft = pytest.importorskip("peft", reason="no peft here")
    model = peft.get_peft_model(
        made("gpt2"), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    ).double()
    ev = hs.Evaluator.from_huggingface(model, samples("gpt2"))
    assert all("lora" in name for name in ev.layout.names)
    assert hs.eigenpairs(hs.Hessian(ev), 1).converged.all()


HEADS = {  # (blocks, entries of each): q, k, v and o of a head, with biases where there are such
    "gpt2": (4, 3 * (8 * 4 + 4) + 4 * 8),
    "llama": (4, 4 * (8 * 4)),
    "mixtral": (4, 4 * (8 * 4)),
    "bert": (4, 3 * (8 * 4 + 4) + 4 * 8),
    "t5": (6, 4 * (8 * 4)),
}


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_found(name):
    ev = hs.Evaluator.from_huggingface(made(name), samples(name, 1))
    blocks = hs.parameter_blocks(ev, "heads")
    number, size = HEADS[name]
    assert len(blocks) == number
    assert {len(entries) for entries in blocks.values()} == {size}
    counts = torch.cat(list(blocks.values())).bincount()
    # Of llama's kind the only group of keys and values belongs to both heads.
    assert counts.max() == (2 if name in ("llama", "mixtral") else 1)


def test_experts_are_found():
    ev = hs.Evaluator.from_huggingface(made("mixtral"), samples("mixtral", 1))
    blocks = hs.parameter_blocks(ev, "experts")
    assert len(blocks) == 2 * 3
    assert {len(entries) for entries in blocks.values()} == {3 * 8 * 12}


def test_every_head_of_a_trained_model_has_the_spectrum_of_its_dense_block():
    model, data = made("gpt2"), samples("gpt2", 2)
    ev = hs.Evaluator.from_huggingface(model, data)
    theta = ev.theta
    for _ in range(5):
        theta = theta - 0.02 * ev.gradient(theta)
    many = hs.Hessian(ev, theta, plan=hs.ProductPlan("linearize", chunk=32, keep=True))
    for entries in hs.parameter_blocks(ev, "heads").values():
        chosen = torch.eye(ev.n, dtype=torch.float64)[:, entries]
        dense = (many @ chosen)[entries]
        values = torch.linalg.eigvalsh((dense + dense.T) / 2)
        block = hs.Restricted(many, entries=entries)
        found = hs.eigenpairs(block, (1, 2), tol=1e-10, copies=False).values
        assert abs(found - values[[0, -2, -1]].numpy()).max() < 1e-9 * values.abs().max()


@pytest.fixture
def folder(tmp_path):
    """A causal model with a tokenizer of words, as save_pretrained writes them; and a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made("gpt2").float().save_pretrained(tmp_path / "model", safe_serialization=True)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0").save_pretrained(
        tmp_path / "model"
    )
    (tmp_path / "text.txt").write_text("w2 w3 w4 w5\n\nw6 w7 w8\nw9 w2 w3 w4 w5 w6 w7\n")
    return tmp_path


def test_a_folder_and_a_text_on_the_command_line(folder, capsys):
    from hessian_spectrum.cli.main import main

    words = ["density", "--problem", f"huggingface:{folder / 'model'}", "--dtype", "float64"]
    words += ["--text", str(folder / "text.txt"), "--num-probes", "2", "--num-steps", "5"]
    for more in ([], ["--sharded"], ["--blocks", "heads"], ["--sharded", "--blocks", "heads"]):
        name = "-".join(["run", *(m.strip("-") for m in more)])
        assert main([*words, *more, "--out", str(folder / f"{name}.h5")]) == 0, more
    with hs.open(folder / "run.h5") as run, hs.open(folder / "run-sharded.h5") as sharded:
        expected, found = run["density"].nodes, sharded["density"].nodes
        assert abs(found - expected).max() < 1e-9 * abs(expected).max()
    with (
        hs.open(folder / "run-blocks-heads.h5") as run,
        hs.open(folder / "run-sharded-blocks-heads.h5") as sharded,
    ):
        keys = [key for key in run if key.startswith("density/")]
        assert len(keys) == 4
        for key in keys:
            scale = abs(run[key].nodes).max()
            assert abs(run[key].nodes - sharded[key].nodes).max() < 1e-8 * scale
    assert main(["plot", str(folder / "run-blocks-heads.h5"), "--out", str(folder / "b.png")]) == 0
    capsys.readouterr()
    for place, change, message in (
        (2, "huggingface:nowhere", "there is no folder nowhere"),
        (6, str(folder / "none.txt"), "cannot be read"),
        (2, f"huggingface:{folder}", "cannot be loaded as a causal model"),
    ):
        assert words[place - 1] in ("--problem", "--text")
        wrong = [*words[:place], change, *words[place + 1 :]]
        assert main([*wrong, "--out", str(folder / "no.h5")]) == 2
        assert message in capsys.readouterr().err
