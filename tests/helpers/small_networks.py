"""Small float64 classifiers, data that leave a ragged minibatch, and the relative error."""

import torch
from torch import nn
from torch.utils.data import Dataset

N, INPUTS, CLASSES = 10, 6, 3  # batches of 8 leave 8 + 2


def data(n=N):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, INPUTS, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (n,), generator=generator)


def mlp(*extra):
    layers = [nn.Linear(INPUTS, 5), nn.Tanh(), *extra, nn.Linear(5, CLASSES)]
    return nn.Sequential(*layers).double()


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 2)
        self.body = mlp()

    def forward(self, x):
        return self.body(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(INPUTS, INPUTS)
        self.decode = nn.Linear(INPUTS, INPUTS)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(INPUTS, CLASSES)

    def forward(self, x):
        return self.head(self.decode(torch.tanh(self.encode(x))))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)),
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(24, CLASSES),
        )
        norm = self.body[2]
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.body(x)


NETWORKS = {
    "mlp": mlp,
    "layer norm": lambda: mlp(nn.LayerNorm(5)),
    "unused": lambda: WithUnused().double(),
    "tied": lambda: Tied().double(),
    "batch norm, dropout": lambda: Convolutional().double(),
}


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y, self.reads = x, y, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.reads += 1
        return self.x[i], self.y[i]


def spoiled(index, value):
    x, y = data()
    (x if index == 0 else y)[3] = value
    return x, y
