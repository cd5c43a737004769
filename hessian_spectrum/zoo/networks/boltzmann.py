"""The multi-prediction deep Boltzmann machine (MP-DBM).

Of Goodfellow, Mirza, Courville and Bengio (2013, "Multi-prediction deep Boltzmann machines").
Visible units v, two hidden layers h1 and h2 and a class y have the energy

    E = -v W1 h1 - h1 W2 h2 - h2 W3 y - a v - b1 h1 - b2 h2 - c y.

It is trained as a recurrent network: from some of the variables (v, y), mean-field inference
predicts the others. Except: 1. masks are drawn once and are part of the data, so that the loss is
one function of the parameters; 2. the units of a layer are not centered.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.zoo.networks.options import Options
from hessian_spectrum.zoo.networks.perceptron import require_fitting, sizes_in

STEPS = 10  # of mean-field inference
SHOWN = 0.5  # probability with which a variable is observed


class BoltzmannMachine(nn.Module):
    """Observed variables -> logits of all of them, (N, 2, D + K) -> (N, D + K).

    The input holds the values of the D visible units and of the K classes (one-hot), 0 where they
    are not observed, and the mask, 1 where they are. From the uninformed state, units of
    probability 1/2 and classes of 1/K, each of ``STEPS`` updates h1 and y, and then v and h2, given
    the other two, to where the mean-field free energy is least. Observed variables keep their
    values.
    """

    def __init__(self, visible: int, first: int, second: int, classes: int):
        super().__init__()
        self.first = nn.Linear(visible, first)  # W1 and b1
        self.second = nn.Linear(first, second)  # W2 and b2
        self.classes = nn.Linear(second, classes)  # W3 and c
        self.visible_bias = nn.Parameter(torch.zeros(visible))  # a

    def forward(self, observed: Tensor) -> Tensor:
        values, mask = observed.unbind(1)
        sizes = [self.first.in_features, self.classes.out_features]
        (v_seen, y_seen), (v_mask, y_mask) = values.split(sizes, 1), mask.split(sizes, 1)
        v = v_seen + (1 - v_mask) / 2
        h2 = torch.full_like(v[:, :1], 0.5).expand(-1, self.second.out_features)
        for _ in range(STEPS):
            h1 = torch.sigmoid(self.first(v) + F.linear(h2, self.second.weight.T))
            y_logits = self.classes(h2)
            y = y_seen + (1 - y_mask) * y_logits.softmax(1)
            v_logits = F.linear(h1, self.first.weight.T, self.visible_bias)
            v = v_seen + (1 - v_mask) * torch.sigmoid(v_logits)
            h2 = torch.sigmoid(self.second(h1) + F.linear(y, self.classes.weight.T))
        return torch.cat([v_logits, y_logits], 1)


class MultiPrediction(nn.Module):
    """-log of the mean-field probabilities of the variables that were not observed.

    Their multi-prediction objective for one fixed mask a sample: the sum over the sample's hidden
    visible units of the binary cross entropy, and, where the class was hidden, its cross entropy.
    In nats.

    ``forward(outputs, targets)`` takes the logits (N, D + K) and targets (N, 2, D + K): the true
    values and the mask of what was observed.

    Args:
        classes: K.
        reduction: "mean" over the samples, or "none", shape (N,).
    """

    def __init__(self, classes: int, reduction: str = "mean"):
        super().__init__()
        self.num_classes, self.reduction = classes, reduction

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values, mask = targets.unbind(1)
        visible = outputs.shape[1] - self.num_classes
        errors = F.binary_cross_entropy_with_logits(
            outputs[:, :visible], values[:, :visible], reduction="none"
        )
        of_class = -(values[:, visible:] * outputs[:, visible:].log_softmax(1)).sum(1)
        hidden = 1 - mask
        losses = (hidden[:, :visible] * errors).sum(1) + hidden[:, -1] * of_class
        return losses.mean() if self.reduction == "mean" else losses


def boltzmann_machine(name: str, options: Options) -> BoltzmannMachine:
    """mpdbm-D-A-B-K: D visible units, two hidden layers, K classes.

    ``mpdbm-784-500-1000-10`` has 904,294 parameters: the sizes of Salakhutdinov and Hinton (2009)
    for MNIST. ``width`` multiplies the hidden layers.

    Raises:
        InputError: the name's sizes do not fit the data.
    """
    sizes = sizes_in(name)
    require_fitting(name, sizes, options)
    visible, first, second, classes = sizes
    return BoltzmannMachine(visible, options.scaled(first), options.scaled(second), classes)


def masked(name: str, data: TensorDataset, seed: int = 0) -> TensorDataset:
    """Inputs and targets of the machine ``name``: each variable is observed with ``SHOWN``.

    The class is one variable. Sample i has the same mask in all data sets of one size of sample.

    Args:
        data: inputs (N, ...) in [0, 1] and labels (N,).

    Returns:
        inputs (N, 2, D + K) as ``BoltzmannMachine`` takes them, and targets as ``MultiPrediction``.

    Raises:
        InputError: inputs are no probabilities.
    """
    inputs, labels = data.tensors
    classes = sizes_in(name)[-1]
    if inputs.min() < 0 or inputs.max() > 1:
        raise InputError(
            f"the visible units of {name} are probabilities, but inputs reach from "
            f"{inputs.min():.3g} to {inputs.max():.3g}; scale them to 0..1"
        )
    values = torch.cat([inputs.flatten(1), F.one_hot(labels, classes).to(inputs.dtype)], 1)
    visible = values.shape[1] - classes
    draws = np.random.default_rng(seed).random((len(values), visible + 1)) < SHOWN
    mask = torch.from_numpy(draws).to(values.dtype)
    mask = torch.cat([mask[:, :visible], mask[:, visible:].expand(-1, classes)], 1)
    return TensorDataset(torch.stack([values * mask, mask], 1), torch.stack([values, mask], 1))
