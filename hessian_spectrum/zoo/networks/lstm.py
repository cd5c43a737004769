"""The LSTM language model of Zaremba, Sutskever and Vinyals (2014)."""

from __future__ import annotations

from torch import Tensor, nn

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.networks.options import Options

UNITS, LAYERS = 200, 2
INITIAL = 0.1  # parameters start uniformly in [-INITIAL, INITIAL]


def lstm(name: str, options: Options) -> LanguageModel:
    """Their small network, of 200 units in two layers: windows of words -> scores of the next word.

    With a vocabulary of 10,000 words it has 4,653,200 parameters: theirs, 4,651,600, and the second
    bias that torch's LSTM has for each gate. ``width`` multiplies the units. Dropout, of rate 0
    unless given as in their small network, is on the connections that are not recurrent.

    Raises:
        InputError: samples are no windows of words.
    """
    if len(options.input_shape) != 1:
        raise InputError(
            f"{name} takes windows of words, but one sample has shape {options.input_shape}; use "
            "--dataset ptb"
        )
    model = LanguageModel(
        options.num_classes, options.scaled(UNITS), LAYERS, options.dropout_rate or 0.0
    )
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -INITIAL, INITIAL)
    return model


class LanguageModel(nn.Module):
    """Words (N, T), int64 -> logits (N, vocabulary, T) of the word behind each.

    Classes are in the second dimension, as ``nn.CrossEntropyLoss`` takes them, whose mean is over
    the N T words. Each window starts from the state 0, so that samples are independent and the
    loss is a mean over them; Zaremba et al. carry the state from window to window.
    """

    def __init__(self, vocabulary: int, units: int, layers: int, dropout_rate: float):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, units)
        # A layer each: the dropout inside a torch LSTM of several could not be frozen.
        self.lstms = nn.ModuleList(nn.LSTM(units, units, batch_first=True) for _ in range(layers))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout_rate) for _ in range(layers + 1))
        self.scores = nn.Linear(units, vocabulary)

    def forward(self, words: Tensor) -> Tensor:
        x = self.dropouts[0](self.embedding(words))
        for layer, dropout in zip(self.lstms, self.dropouts[1:]):
            x = dropout(layer(x)[0])
        return self.scores(x).transpose(1, 2)
