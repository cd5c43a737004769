"""A transformer that tags words, on batches that are dicts; padding is ignored by the loss."""

import torch
from torch import nn
from torch.nn import functional as F


class Tagger(nn.Module):
    def __init__(self, vocabulary=50, width=16, tags=5):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, tags)

    def forward(self, words, padding):
        return self.head(self.encoder(self.embedding(words), src_key_padding_mask=padding))


def make(sentences=64, length=12):
    """Random sentences of 4 to length - 1 words; ``count`` says how many targets a batch has."""
    words = torch.randint(50, (sentences, length))
    lengths = torch.randint(4, length, (sentences, 1))
    padding = torch.arange(length) >= lengths
    tags = (words % 5).masked_fill(padding, -100)
    return {
        "model": Tagger(),
        "data": [{"words": w, "padding": p, "tags": t} for w, p, t in zip(words, padding, tags)],
        "forward": lambda model, batch: model(batch["words"], batch["padding"]),
        "loss_fn": lambda out, batch: F.cross_entropy(out.transpose(1, 2), batch["tags"]),
        "count": lambda batch: (batch["tags"] != -100).sum().item(),
    }
