"""Every network of the zoo, slim, trained in minutes: accuracy, density, a resumed training.

Each is trained by the command train on pictures, digits or words, and evaluated on the data that it
was trained with and on test data, with dropout off and, of BatchNorm, running statistics. Accuracy
is compared with a guess among ten classes, perplexity with that of the words' frequencies, an
autoencoder's loss with the closed form of Baldi & Hornik (1989): half of what the leading principal
components leave. The density of a few samples is finite and adds up to 1. A training of one epoch
that is resumed to two equals one of two epochs bit for bit. Counts of parameters at full width, as
published, are unit tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import hessian_spectrum as hs
from benchmarks.suite import Context, Finding, Outcome, Study
from benchmarks.suite.context import DataMissing, digest
from hessian_spectrum.zoo import problem_loader
from hessian_spectrum.zoo.checkpoints import read_state
from hessian_spectrum.zoo.objectives import objective_for

OURS = "the package's own claims"
CHANCE = 0.1
CHUNK = 200  # samples that are evaluated together
FEW = 20  # samples of densities


@dataclass(frozen=True)
class Network:
    """
    Args:
        fields: of the model, as a configuration has them.
        data: "digits", "mnist", "cifar10" or "ptb".
        least: accuracy on the data of the training that it reaches; of perplexity and losses, how
            far they are above what they are compared with.
    """

    name: str
    fields: tuple[tuple[str, Any], ...]
    data: str
    samples: int
    epochs: int
    optimizer: str
    lr: float
    least: float

    def problem(self, context: Context) -> dict[str, Any]:
        """The model and its data, as fields of a configuration."""
        found = dict(self.fields)
        if self.data == "cifar10":
            found |= {"dataset": "arrays", "data_root": context.data("cifar10")}
        elif self.data == "digits":
            found |= {"dataset": "digits"}
        else:
            found |= {"dataset": self.data, "data_root": context.data(self.data)}  # type: ignore[arg-type]
        return found


def net(name: str, data: str, samples: int, epochs: int, *rule: Any, **fields: Any) -> Network:
    optimizer, lr, least = rule
    return Network(name, tuple(fields.items()), data, samples, epochs, optimizer, lr, least)


def both(name: str, *sizes: Any, plain_epochs: int, **fields: Any) -> tuple[Network, Network]:
    """With BatchNorm, and without, which takes longer."""
    data, samples, _, *rule = sizes
    return (
        net(name, *sizes, **fields),
        net(
            f"{name}, without BatchNorm",
            *(data, samples, plain_epochs, *rule),
            **fields,
            batchnorm=False,
        ),
    )


ADAM = ("adam", 0.002, 0.5)
DENSE = ("mnist", 2000, 15, "momentum", 0.05, 0.9)
NETWORKS = (
    net("FC2, tanh", *DENSE, model="mlp-784-20-10", activation="tanh"),
    net("FC, ReLU", *DENSE, model="mlp-784-100-100-10", activation="relu", dropout_rate=0.2),
    net(
        "FC, sigmoid",
        *("mnist", 2000, 20, "momentum", 0.2, 0.9),
        model="mlp-784-100-100-10",
        activation="sigmoid",
    ),
    net(
        "FC, maxout",
        *("mnist", 2000, 15, "momentum", 0.02, 0.9),
        model="mlp-784-60-60-10",
        activation="maxout",
        dropout_rate=0.2,
    ),
    net(
        "adversarial maxout",
        *("mnist", 2000, 15, "momentum", 0.02, 0.9),
        model="mlp-784-60-60-10",
        activation="maxout",
        loss="fast-gradient-sign",
    ),
    net(
        "deep linear",
        *("mnist", 2000, 15, "momentum", 0.01, 0.9),
        model="dlinear-784-50-50-50-10",
    ),
    net(
        "linear autoencoder",
        *("mnist", 1000, 60, "adam", 0.002, 0.1),
        model="autoencoder-784-10-784",
        loss="mse",
    ),
    net(
        "MP-DBM",
        *("mnist", 500, 60, "adam", 0.01, 0.7),
        model="mpdbm-784-50-50-10",
        loss="multi-prediction",
    ),
    net(
        "convolutional maxout, MNIST",
        *("mnist", 500, 12, "momentum", 0.02, 0.9),
        model="convmaxout-mnist",
        width=0.125,
        dropout_rate=0.0,
    ),
    net(
        "convolutional maxout, CIFAR",
        *("cifar10", 300, 40, "adam", 0.002, 0.5),
        model="convmaxout-cifar10",
        width=1 / 16,
        dropout_rate=0.0,
    ),
    net(
        "LSTM",
        *("ptb", 100, 80, "adam", 0.02, 1.0),
        model="lstm",
        width=0.1,
    ),
    *both("CNN", "mnist", 1000, 30, "adam", 0.01, 0.9, model="cnn", plain_epochs=30),
    *both(
        "NIN",
        "cifar10",
        500,
        20,
        *ADAM,
        model="nin",
        width=0.125,
        dropout_rate=0.0,
        plain_epochs=50,
    ),
    *both("VGG-11", "cifar10", 500, 15, *ADAM, model="vgg11", width=0.125, plain_epochs=40),
    *both("VGG-16", "cifar10", 500, 15, *ADAM, model="vgg16", width=0.125, plain_epochs=60),
    *both("ResNet-20", "cifar10", 400, 15, *ADAM, model="resnet20", width=0.5, plain_epochs=40),
    net(
        "ResNet-20, without shortcuts",
        *("cifar10", 400, 20, *ADAM),
        model="resnet20",
        width=0.5,
        shortcut=False,
    ),
    *both("wide ResNet", "cifar10", 300, 12, *ADAM, model="wrn-10-2", width=0.25, plain_epochs=40),
    *both("DenseNet", "cifar10", 300, 25, *ADAM, model="densenet-13-6", width=1.0, plain_epochs=40),
)
TEST = (
    net("FC2, tanh", "digits", 300, 3, "momentum", 0.05, 0.5, model="mlp-64-20-10"),
    net("CNN", "digits", 100, 2, "momentum", 0.05, 0.0, model="cnn"),
)
WHY_NOT = "slim, and trained for a minute"


@dataclass(frozen=True)
class Options:
    networks: tuple[Network, ...] = NETWORKS


def words(fields: dict[str, Any]) -> list[str]:
    """Fields of a configuration as options of a command."""
    found: list[str] = []
    for name, value in fields.items():
        flag = name.replace("_", "-")
        found += [f"--no-{flag}"] if value is False else [f"--{flag}", str(value)]
    return found


@dataclass(frozen=True)
class Scores:
    """Of one split: the loss, and the share of hits where there are such."""

    loss: float
    accuracy: float | None


@torch.no_grad()
def scores(network: Network, fields: dict[str, Any], checkpoint: Path, split: str) -> Scores:
    """As train evaluates a network: in eval mode."""
    limit = network.samples if split == "train" else None
    config = hs.InterpolateConfig(**fields, split=split, limit=limit, checkpoint=checkpoint)  # type: ignore[arg-type]
    problem = problem_loader.load(config)
    objective = objective_for(fields["model"], fields.get("loss", "cross-entropy"))
    data = problem.data if isinstance(problem.data, tuple) else problem.data.tensors
    model, total, right, seen = problem.model.eval(), 0.0, [], 0
    for batch in zip(*(t.split(CHUNK) for t in data)):
        with torch.enable_grad():  # adversarial examples are made by a gradient
            outputs = objective.outputs(model, batch)
            total += float(
                objective.loss(outputs, batch[1]).sum()
                if objective.loss.reduction == "none"
                else objective.loss(outputs, batch[1]) * len(batch[0])
            )
        seen += len(batch[0])
        if objective.hits is not None:
            right.append(objective.hits(outputs, batch[1]).float().reshape(-1))
    accuracy = float(torch.cat(right).mean()) if right else None
    return Scores(total / seen, accuracy)


def frequencies_perplexity(data: Tensor) -> float:
    """Of words that are guessed by their frequencies in these targets."""
    shares = data.reshape(-1).bincount().double() / data.numel()
    return math.exp(-float((shares[shares > 0] * shares[shares > 0].log()).sum()))


def principal_loss(inputs: Tensor, components: int) -> float:
    """Half of the mean squared distance of samples from their span of so many components."""
    squares = torch.linalg.svdvals(inputs.double()).square()
    return float(squares[components:].sum() / len(inputs) / 2)


def of_network(context: Context, network: Network) -> tuple[list[Finding], dict[str, float]]:
    fields = network.problem(context)
    rule = ("--optimizer", network.optimizer, "--lr", network.lr, "--batch-size", 25)
    trained = context.network(
        *words(fields),
        *("--limit", network.samples, *rule, "--epochs", network.epochs),
        *("--every", network.epochs),
    )
    checkpoint = trained / f"epoch-{network.epochs:04d}.pt"
    found = scores(network, fields, checkpoint, "train")
    test = scores(network, fields, checkpoint, "test")
    values = {"loss": found.loss, "test_loss": test.loss}
    name, findings = network.name, []
    if network.data == "ptb":
        targets = problem_loader.load(hs.InterpolateConfig(**fields, limit=network.samples)).data[1]
        guess = frequencies_perplexity(targets)
        findings.append(
            context.check(
                f"{name}: perplexity of the words of the training over that of their frequencies "
                f"({guess:.0f})",
                *(math.exp(found.loss) / guess, 0.0, network.least),
                source=OURS,
                why_not=WHY_NOT,
            )
        )
        values |= {"perplexity": math.exp(found.loss), "test_perplexity": math.exp(test.loss)}
    elif found.accuracy is None:
        inputs = problem_loader.load(hs.InterpolateConfig(**fields, limit=network.samples)).data[0]
        components = int(fields["model"].split("-")[2])
        best = principal_loss(inputs.reshape(len(inputs), -1), components)
        findings.append(
            context.check(
                f"{name}: loss over that of {components} principal components, less 1",
                *(found.loss / best - 1, -1e-6, network.least),
                source="Baldi & Hornik 1989: none is less",
                judged_from="test",
            )
        )
    else:
        assert test.accuracy is not None
        values |= {"accuracy": found.accuracy, "test_accuracy": test.accuracy}
        findings += [
            context.check(
                f"{name}: accuracy on the {network.samples} samples of the training",
                *(found.accuracy, network.least, 1.0),
                source=OURS,
                why_not=WHY_NOT,
            ),
            context.check(
                f"{name}: accuracy on test data (a guess: {CHANCE:g})",
                *(test.accuracy, 1.5 * CHANCE, 1.0),
                source=OURS,
                why_not=WHY_NOT,
            ),
        ]
    findings.append(of_density(context, network, fields, checkpoint))
    findings.append(of_resumption(context, network, fields, rule))
    return findings, values


def of_density(
    context: Context, network: Network, fields: dict[str, Any], checkpoint: Path
) -> Finding:
    label = network.name.replace(" ", "-").replace(",", "")
    sizes = ("--limit", FEW, "--num-probes", 2, "--num-steps", 4, "--checkpoint", checkpoint)
    with context.computed(
        context.folder / f"{label}.h5", "density", *words(fields), *sizes, "--keep-state", "never"
    ) as run:
        measure = run["density"]
    mass = float(measure.weights.sum(axis=-1).mean())
    finite = bool(np.isfinite(measure.nodes).all())
    return context.check(
        f"{network.name}: mass of the density (finite nodes)",
        *(mass if finite else math.nan, 1 - 1e-9, 1 + 1e-9),
        source="a density",
        judged_from="test",
    )


def of_resumption(
    context: Context, network: Network, fields: dict[str, Any], rule: tuple[Any, ...]
) -> Finding:
    small = (*words(fields), "--limit", 50, *rule)
    straight = context.network(*small, "--epochs", 2, "--every", 1)
    key = digest({"options": [str(word) for word in small]})[:12]
    parts = context.folder / f"resumed-{key}"
    if not (parts / "epoch-0002.pt").exists():
        for epochs in (1, 2):
            context.command(
                *("train", *small, "--epochs", epochs, "--every", 1, "--out", parts, "--resume")
            )
    states = [state(folder / "epoch-0002.pt") for folder in (straight, parts)]
    apart = max(
        float((a.double() - states[1][name].double()).abs().max()) if a.numel() else 0.0
        for name, a in states[0].items()
    )
    return context.check(
        f"{network.name}: largest difference of a resumed training from a straight one",
        *(apart, 0.0, 0.0),
        source=OURS,
        judged_from="test",
    )


def state(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a checkpoint."""
    return read_state(path)["model"]


def figure(found: dict[str, dict[str, float]]) -> Figure:
    """Accuracies of all networks that have one."""
    rows = {name: values for name, values in found.items() if "accuracy" in values}
    picture = Figure(figsize=(7, 0.6 + 0.28 * len(rows)), layout="constrained")
    axes = picture.subplots()
    at = np.arange(len(rows))
    axes.barh(at - 0.2, [v["accuracy"] for v in rows.values()], 0.4, label="training data")
    axes.barh(at + 0.2, [v["test_accuracy"] for v in rows.values()], 0.4, label="test data")
    axes.axvline(CHANCE, color="C7", linewidth=0.8)
    axes.set_yticks(at, list(rows), fontsize=7)
    axes.set(xlabel="accuracy (line: a guess)", xlim=(0, 1))
    axes.invert_yaxis()
    axes.legend(fontsize=7)
    return picture


def run(context: Context, options: Options) -> Outcome:
    findings: list[Finding] = []
    found: dict[str, dict[str, float]] = {}
    for network in options.networks:
        try:
            more, found[network.name] = of_network(context, network)
        except DataMissing as missing:
            print(f"{network.name}: left out: {missing}")
            continue
        findings += more
    values = {f"{name}/{k}": v for name, row in found.items() for k, v in row.items()}
    return Outcome(findings, values, figure(found))


STUDY = Study(
    title="How far are the zoo's networks trained on two cores?",
    source="the networks of Im et al. 2017, Goodfellow et al. 2015, Li et al. 2018",
    run=run,
    scales={"test": Options(TEST), "cpu": Options()},
    data=("mnist", "cifar10", "ptb"),
    group="accuracy",
)
