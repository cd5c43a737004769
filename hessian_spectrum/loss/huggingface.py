"""Models of Hugging Face's transformers: their own loss, as a mean over the targets that count.

The loss is formed here from the model's logits, since the models' own code rounds them to float32,
and compared with the model's own on a batch: what a model of another kind means by its loss is not
guessed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset

from hessian_spectrum._core.errors import InputError, in_one_line, is_out_of_memory, require_whole

IGNORED = -100  # labels that do not count
# By the model's own name of its loss: are logits those of the next target?
SHIFTED = {
    "ForCausalLM": True,
    "ForMaskedLM": False,
    "ForConditionalGeneration": False,
    "ForTokenClassification": False,
    "ForSequenceClassification": False,
}
FUSED = ("flash_attention_2", "flash_attention_3", "flex_attention", "paged_attention")
PADDED = {"labels": IGNORED, "decoder_input_ids": 0, "token_type_ids": 0, "attention_mask": 0}
AGREEMENT = 1e-2  # relative: the model's own loss may be formed in half precision
SAMPLES = 2  # on which both losses are compared
LENGTH = 1024  # tokens of a sample of a text, at most, unless it is said


def arguments(
    model: nn.Module,
    dataset: Any,
    tokenizer: Any = None,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
) -> dict[str, Any]:
    """The arguments of ``Evaluator`` for a model of transformers.

    Args:
        model: causal, masked or sequence-to-sequence, or a classifier of tokens or sequences; with
            adapters of peft, whose other parameters are constants.
        dataset: token ids (N, T); columns (a dict or BatchEncoding of tensors or lists); a Dataset
            or list of samples that are dicts; or texts, with a tokenizer. Samples may differ in
            length: they are padded on the right, which is masked. Without "labels" the model is
            to be causal: they are its inputs.
        tokenizer: of texts.
        batch_size: samples of a minibatch.
        max_length: longer samples are cut. Default: none of tokens, ``LENGTH`` of texts.

    Raises:
        InputError: what is given is of no use; the model's loss is none of these, or not the one
            that is formed here; its attention is a kernel that is called by itself.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise InputError(
            f"model is a {type(model).__name__}; expected one of transformers, such as "
            "AutoModelForCausalLM.from_pretrained(folder)"
        )
    require_whole(1, batch_size=batch_size, **({"max_length": max_length} if max_length else {}))
    kind = _kind(model)
    attention = getattr(model.config, "_attn_implementation", None)
    if attention in FUSED:
        raise InputError(
            f"the model's attention is {attention}, which has no second derivatives; load it with "
            "attn_implementation='sdpa' or 'eager'"
        )
    if getattr(model.config, "output_router_logits", False):
        logging.getLogger("hessian_spectrum").warning(
            "the loss is without the routers' auxiliary one (config.output_router_logits), which "
            "is no mean over samples"
        )
    samples = _samples(dataset, tokenizer, max_length)
    if not len(samples):
        raise InputError("the data set is empty: 0 samples; expected at least one")
    padding = _padding_of(model, tokenizer)
    collate = _Collate(padding, SHIFTED[kind] and "labels" not in samples[0])
    _require_labels(samples[0], kind)
    found = {
        "model": model,
        "loss_fn": TargetLoss(SHIFTED[kind]),
        "data": DataLoader(samples, batch_size, collate_fn=collate),
        "forward": _Logits(),
        "count": _Count(SHIFTED[kind]),
    }
    _compare(model, found, collate([samples[i] for i in range(min(SAMPLES, len(samples)))]))
    return found


class TargetLoss(nn.Module):
    """Mean cross entropy of the targets that are not ignored: (logits, batch) -> ().

    Args:
        shifted: logits at a position are those of the target at the next one.
    """

    def __init__(self, shifted: bool):
        super().__init__()
        self.shifted = shifted

    def forward(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        labels = _targets(batch["labels"], self.shifted)
        # Labels are shifted, not logits: a slice of these would be a copy of all of them.
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


class _Logits:
    """forward(model, batch) -> logits (..., classes)."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        given = {name: t for name, t in batch.items() if name != "labels"}
        if getattr(model.config, "is_encoder_decoder", False):
            if "decoder_input_ids" not in given:
                given["decoder_input_ids"] = _started(model, batch["labels"])
        options: dict[str, Any] = {"return_dict": True}
        if hasattr(model.config, "use_cache"):
            options["use_cache"] = False
        if getattr(model.config, "output_router_logits", False):
            options["output_router_logits"] = False
        with _experts_one_by_one(model.config), _AsFloat64():
            return model(**given, **options).logits


@contextmanager
def _experts_one_by_one(config: Any) -> Iterator[None]:
    """The fused products of experts are for half precision, and have no second derivatives."""
    before = getattr(config, "_experts_implementation", None)
    if before not in (None, "eager"):
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        if before is not None:
            config._experts_implementation = before


class _AsFloat64(TorchFunctionMode):
    """Whatever is to be float32 becomes float64, once an argument is: at the embeddings.

    Many models cast norms, softmax and rotations to float32, which is more than half precision and
    less than float64: the loss would be a staircase whose steps derivatives do not see.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_double = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # By what it computes with: parameters of a sharded model are not where the model's are.
        self.is_double = self.is_double or any(
            isinstance(a, Tensor) and a.dtype == torch.float64 for a in args
        )
        if not self.is_double:
            return func(*args, **(kwargs or {}))
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if (kwargs or {}).get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **(kwargs or {}))


class _Count:
    """count(batch): the targets that are not ignored."""

    def __init__(self, shifted: bool):
        self.shifted = shifted

    def __call__(self, batch: Mapping[str, Tensor]) -> float:
        return float((_targets(batch["labels"], self.shifted) != IGNORED).sum())


def _targets(labels: Tensor, shifted: bool) -> Tensor:
    return F.pad(labels, (0, 1), value=IGNORED)[..., 1:] if shifted else labels


def _started(model: Any, labels: Tensor) -> Tensor:
    """A decoder's inputs: the targets, one position later, as transformers has them."""
    start = model.config.decoder_start_token_id
    pad = model.config.pad_token_id
    shifted = F.pad(labels, (1, 0), value=0 if start is None else start)[..., :-1]
    return shifted.masked_fill(shifted == IGNORED, 0 if pad is None else pad)


# -- the model -------------------------------------------------------------------------------------


def _kind(model: Any) -> str:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind = getattr(base, "loss_type", None)
    names = [cls.__name__ for cls in type(base).__mro__]
    for known in SHIFTED:
        if kind == known or any(name.endswith(known) for name in names):
            break
    else:
        known = "ForCausalLM" if any(n.endswith("LMHeadModel") for n in names) else ""
    if not known:
        raise InputError(
            f"the loss of a {type(base).__name__} is not known here (a model {kind or 'of no name'}"
            f"); known are {', '.join(SHIFTED)}; use Evaluator(model, loss_fn, data, forward=..., "
            "count=...)"
        )
    if known == "ForSequenceClassification" and getattr(base.config, "num_labels", 2) < 2:
        raise InputError(
            "the model has one output, of a regression; use Evaluator(model, loss_fn, data, "
            "forward=lambda model, batch: model(...).logits)"
        )
    return known


def _padding_of(model: Any, tokenizer: Any) -> int:
    for source in (tokenizer, model.config):
        found = getattr(source, "pad_token_id", None)
        if isinstance(found, int) and found >= 0:
            return found
    return 0  # it is masked, and its label does not count


def _compare(model: nn.Module, made: Mapping[str, Any], batch: dict[str, Tensor]) -> None:
    """InputError unless the model's own loss of a batch is that which is formed here."""
    place = next(model.parameters()).device
    if place.type == "meta" or any(type(p).__name__ == "DTensor" for p in model.parameters()):
        return  # it has no values here; ranks compare later
    batch = {name: t.to(place) for name, t in batch.items()}
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            with _experts_one_by_one(model.config):
                own = model(**batch, return_dict=True).loss
            found = made["loss_fn"](made["forward"](model, batch), batch)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"the model cannot evaluate its own loss of a batch: {in_one_line(error)}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    if not found.isfinite():
        raise InputError(
            f"the mean cross entropy of the targets of {SAMPLES} samples is {found.item()}; has "
            "any of them a target? A text of one token has none, nor do labels of -100"
        )
    if own is None or not math.isclose(own.item(), found.item(), rel_tol=AGREEMENT):
        said = "none" if own is None else f"{own.item():.6g}"
        raise InputError(
            f"the model's own loss of {SAMPLES} samples is {said}, but the mean cross entropy of "
            f"its targets is {found.item():.6g}; does its loss have other terms? Use Evaluator("
            "model, loss_fn, data, forward=..., count=...)"
        )


# -- the data --------------------------------------------------------------------------------------


def _samples(dataset: Any, tokenizer: Any, max_length: int | None) -> Any:
    """Samples by number, dicts of sequences."""
    if isinstance(dataset, Tensor):
        if dataset.ndim != 2 or dataset.is_floating_point():
            raise InputError(
                f"dataset is a tensor of shape {tuple(dataset.shape)}, {dataset.dtype}; expected "
                "token ids of shape (samples, tokens)"
            )
        dataset = {"input_ids": dataset}
    if isinstance(dataset, str):
        raise InputError("dataset is one text; expected a list of texts, such as its lines")
    if isinstance(dataset, Mapping) or (hasattr(dataset, "data") and "input_ids" in dataset):
        columns = {name: column for name, column in dataset.items() if column is not None}
        lengths = {len(column) for column in columns.values()}
        if "input_ids" not in columns or len(lengths) != 1:
            raise InputError(
                f"dataset has the columns {', '.join(map(str, columns))} of lengths "
                f"{sorted(lengths)}; expected input_ids, and columns of one length"
            )
        dataset = [
            {name: column[i] for name, column in columns.items()} for i in range(lengths.pop())
        ]
    if isinstance(dataset, Sequence) and dataset and isinstance(dataset[0], str):
        if tokenizer is None:
            raise InputError("dataset holds texts; pass their tokenizer=")
        texts = [text for text in dataset if text.strip()]
        tokens = tokenizer(texts, truncation=True, max_length=max_length or LENGTH)
        dataset = [{"input_ids": ids} for ids in tokens["input_ids"]]
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise InputError(
            f"dataset is a {type(dataset).__name__}; expected token ids, texts, columns, or a "
            "Dataset or list of samples that are dicts"
        )
    return _Cut(dataset, max_length)


class _Cut(Dataset):
    """Samples as dicts of tensors, no longer than ``most``."""

    def __init__(self, samples: Any, most: int | None):
        self.samples, self.most = samples, most

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.samples[index]
        if not isinstance(sample, Mapping) and not hasattr(sample, "keys"):
            raise InputError(
                f"a sample is a {type(sample).__name__}; expected a dict with input_ids"
            )
        found = {}
        for name in sample.keys():
            try:
                found[name] = torch.as_tensor(sample[name])
            except (TypeError, ValueError, RuntimeError):
                continue  # a text beside the tokens
        if "input_ids" not in found:
            raise InputError(
                f"a sample has the entries {', '.join(map(str, sample.keys()))}; expected input_ids"
            )
        return {name: t[: self.most] if t.ndim else t for name, t in found.items()}


class _Collate:
    """Samples -> one batch, padded on the right."""

    def __init__(self, padding: int, labels_are_inputs: bool):
        self.padding, self.labels_are_inputs = padding, labels_are_inputs

    def __call__(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        rows = []
        for sample in samples:
            row = dict(sample)
            row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
            if self.labels_are_inputs:
                mask = row["attention_mask"] == 0
                row["labels"] = row["input_ids"].masked_fill(mask, IGNORED)
            rows.append(row)
        batch = {}
        for name in rows[0]:
            column = [row[name] for row in rows]
            value = PADDED.get(name, self.padding)
            batch[name] = (
                nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=value)
                if column[0].ndim
                else torch.stack(column)
            )
        return batch


def _require_labels(sample: Mapping[str, Tensor], kind: str) -> None:
    if "labels" not in sample and not SHIFTED[kind]:
        raise InputError(
            f"a sample has the entries {', '.join(sample)}; a model {kind} needs labels"
        )
