"""The source of a user's problem file, with options of its own."""

OWN = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from hessian_spectrum import zoo

def make(loader=True, **more):
    data = zoo.load_dataset("digits", limit=30)
    model = zoo.model_for(data, "mlp-64-4-10", "tanh", 0)
    own = {"weight_decay": 0.5, "dtype": torch.float64, "parameters": ["1.*"]}
    own |= {"data": DataLoader(data, 7, shuffle=True)} if loader else {"data": data}
    own |= {} if loader else {"batch_size": 11}
    return {"model": model, "loss_fn": torch.nn.CrossEntropyLoss(), **own, **more}

def batches():
    data = zoo.load_dataset("digits", limit=30)
    loader = DataLoader(data, batch_sampler=[[0, 1], [2, 3]])
    return zoo.model_for(data, "mlp-64-4-10", "tanh", 0), torch.nn.CrossEntropyLoss(), loader
"""
