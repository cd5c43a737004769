"""An LSTM language model on a text file."""

from pathlib import Path

import torch
from torch import nn


class Words(nn.Module):
    def __init__(self, vocabulary, width=16):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, words):
        return self.head(self.lstm(self.embedding(words))[0]).transpose(1, 2)  # (N, classes, T)


def make(path, samples=64, length=20):
    """The first words of a text file; pairs (inputs, targets) need no ``forward``."""
    words = Path(path).read_text().replace("\n", " <eos> ").split()[: samples * length + 1]
    number = {word: i for i, word in enumerate(dict.fromkeys(words))}
    stream = torch.tensor([number[word] for word in words])
    inputs, targets = stream[:-1].view(samples, length), stream[1:].view(samples, length)
    return Words(len(number)), nn.CrossEntropyLoss(), (inputs, targets)
