"""Tiny models of Hugging Face's transformers, as people have them."""

import pytest
import torch

from hessian_spectrum.zoo.torchvision_compat import import_torchvision

pytest.importorskip("transformers", reason="no transformers here; pip install '.[hf]'")
import_torchvision()  # which transformers imports

import transformers as hf  # noqa: E402

VOCABULARY = 17
COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0}
LLAMA = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    **COMMON,
}


def gpt2():
    config = hf.GPT2Config(
        n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0, **COMMON
    )
    return hf.GPT2LMHeadModel(config)


def llama():
    return hf.LlamaForCausalLM(hf.LlamaConfig(tie_word_embeddings=True, **LLAMA))


def mixtral():
    config = hf.MixtralConfig(num_local_experts=3, num_experts_per_tok=2, **LLAMA)
    return hf.MixtralForCausalLM(config)


def bert():
    config = hf.BertConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        **COMMON,
    )
    return hf.BertForMaskedLM(config)


def t5():
    config = hf.T5Config(
        d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, decoder_start_token_id=0, **COMMON
    )
    return hf.T5ForConditionalGeneration(config)


MODELS = {"gpt2": gpt2, "llama": llama, "mixtral": mixtral, "bert": bert, "t5": t5}


def made(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    with torch.no_grad():  # initial weights of 0.02 are nearly a linear model
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(8.0)
    return model


def samples(name, count=3):
    """Ragged samples, with labels where the model is not causal."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for i in range(count):
        ids = torch.randint(1, VOCABULARY, (3 + 2 * i,), generator=generator)
        sample = {"input_ids": ids}
        if name == "bert":
            sample["labels"] = ids.masked_fill(torch.arange(len(ids)) % 2 == 0, -100)
        if name == "t5":
            sample["labels"] = torch.randint(1, VOCABULARY, (2 + i,), generator=generator)
        found.append(sample)
    return found
