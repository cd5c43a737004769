"""What each parameter is: filters along an axis, a bias, or part of a normalization layer.

Told by the types and shapes of modules. A parameter's name decides only where these leave it open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Their biases are named by torch; their other parameters are weights.
_TORCH_LAYERS = (
    *(nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention),
    *(nn.RNNBase, nn.RNNCellBase),
)
_NORM_CLASS = re.compile(r"norm(\d*d)?$", re.IGNORECASE)  # LlamaRMSNorm, FrozenBatchNorm2d


@dataclass(frozen=True)
class Kind:
    """What a parameter is: a weight with filters, a bias, or part of a normalization layer."""

    name: str = "weight"  # "weight", "bias" or "norm"
    groups: int | None = (
        None  # filters lie along axis 1, in that many groups of axis 0; None: axis 0
    )

    def filters(self, rows: Tensor) -> Tensor:
        """(k, *shape) -> (k, filters, entries of one); what is no matrix of weights is one filter.

        ``back`` is its inverse.
        """
        if self.name != "weight" or rows.ndim < 3:
            return rows.reshape(len(rows), 1, -1)
        if self.groups is None:
            return rows.flatten(2)
        apart = rows.unflatten(1, (self.groups, -1))  # (k, groups, inputs, outputs, ...)
        return apart.transpose(2, 3).flatten(1, 2).flatten(2)

    def back(self, filters: Tensor, shape: Sequence[int]) -> Tensor:
        """(k, filters, entries of one) -> (k, *shape)."""
        if self.groups is None or self.name != "weight":
            return filters.reshape(len(filters), *shape)
        inputs, outputs, *others = shape
        apart = filters.reshape(len(filters), self.groups, outputs, inputs // self.groups, *others)
        return apart.transpose(2, 3).reshape(len(filters), *shape)


def kinds(model: nn.Module) -> dict[str, Kind]:
    """The kind of each parameter, by name.

    - "norm": parameters of BatchNorm, InstanceNorm, LayerNorm, GroupNorm and RMSNorm layers, and
      vectors of other modules whose class is called a norm.
    - "bias": in torch's own layers, what torch adds to a result (also ``in_proj_bias``, ``bias_k``
      and ``bias_v`` of attention). In other modules, a vector beside a weight of the same module
      that has as many outputs, or a vector that is named a bias.
    - "weight": all others. Filters, the weights of one output, lie along axis 0; along axis 1 in
      transposed convolutions, within each group; along the last axis in Hugging Face's Conv1D,
      whose weights are (inputs, outputs). Scalars and other vectors are one filter each.
    """
    found: dict[str, Kind] = {}
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(module, ParametrizationList):  # weight_norm, spectral_norm and their kin
                owner, _, name = prefix.rpartition(".")
                owner = owner.removesuffix("parametrizations").rstrip(".")
                found[path] = _kind(model.get_submodule(owner), name, p)
            else:
                found[path] = _kind(module, name, p)
    return found


# -- inside ------------------------------------------------------------------------------------


def _kind(module: nn.Module, name: str, p: Tensor) -> Kind:
    if isinstance(module, _NORMS) or (p.ndim == 1 and _NORM_CLASS.search(type(module).__name__)):
        return Kind("norm")
    if isinstance(module, _TORCH_LAYERS):
        if "bias" in name and (p.ndim < 2 or isinstance(module, nn.MultiheadAttention)):
            return Kind("bias")
        if isinstance(module, nn.modules.conv._ConvTransposeNd) and p.ndim > 2:
            return Kind(groups=module.groups)
        return Kind()
    if p.ndim == 1 and ("bias" in name or _has_outputs(module, len(p))):
        return Kind("bias")
    if _is_conv1d_of_hugging_face(module) and p.ndim == 2:
        return Kind(groups=1)
    return Kind()


def _has_outputs(module: nn.Module, number: int) -> bool:
    """Does a weight of the module itself have that many outputs?

    They lie along its first axis, as in torch, or along its last one, as in ``x @ weight``.
    """
    return any(
        number in (p.shape[0], p.shape[-1]) for p in module.parameters(recurse=False) if p.ndim > 1
    )


def _is_conv1d_of_hugging_face(module: nn.Module) -> bool:
    """A dense layer of ``transformers``, such as GPT-2's, which need not be installed here."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Conv1D"
        and isinstance(weight, Tensor)
        and weight.ndim == 2
        and weight.shape[1] == getattr(module, "nf", None)
    )
