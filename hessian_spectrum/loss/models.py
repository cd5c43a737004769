"""Refusal of models whose parameters are no numbers, or cannot be trained."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from hessian_spectrum._core.errors import InputError


def refuse(model: nn.Module) -> None:
    """InputError if a parameter or buffer has no values yet, or no parameter is trainable."""
    for prefix, module in model.named_modules():
        for name, t in (*module._parameters.items(), *module._buffers.items()):
            if t is None:
                continue
            layer = f"{prefix or 'given as model'} ({type(module).__name__})"
            if is_lazy(t):
                raise InputError(
                    f"the layer {layer} is lazy: it has no {name} until it is called; call the "
                    "model once on a batch of the data before it is passed, as in "
                    "model(inputs[:2])"
                )
            if t.is_meta:
                raise InputError(
                    f"the {name} of the layer {layer} is on the device meta, without values; "
                    "give the model memory and load its values: "
                    "model.to_empty(device='cpu').load_state_dict(state_dict)"
                )
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"the model has no trainable parameter: {_why(model)}")


def _why(model: nn.Module) -> str:
    quantized = [
        f"{name or 'given as model'} ({type(module).__module__}.{type(module).__name__})"
        for name, module in model.named_modules()
        if "quantized" in type(module).__module__.split(".")
    ]
    if quantized:
        return (
            f"the layer {quantized[0]} is quantized, and its weights are whole numbers; pass the "
            "model as it was before quantization"
        )
    if any(True for _ in model.parameters()):
        return (
            "requires_grad is False for all; set model.requires_grad_(True), or that of the "
            "layers that are meant"
        )
    return "it has none at all; the layers must be attributes, nn.ModuleList or nn.ModuleDict of it"


def exported(model: nn.Module) -> str | None:
    """What may limit the sizes of batches: in words, a module made by torch.export."""
    for name, module in model.named_modules():
        if any(cls.__name__ == "_StatefulGraphModule" for cls in type(module).__mro__):
            return (
                f"the module {name or 'given as model'} was made by torch.export, which keeps the "
                "sizes of its example unless dynamic_shapes= says otherwise, as in "
                "dynamic_shapes=({0: torch.export.Dim('batch')},); export it so, or pass the "
                "module that was exported"
            )
    return None
