"""Weights that are turned by a Hadamard matrix in groups along their rows before they are rounded ("convrot")."""

import torch

from ...errors import UnsupportedModelError
from .formats import Layer, unsupported

OPTIONS = frozenset({"convrot", "convrot_groupsize", "params"})
_USUAL_GROUP = 256
_REGULAR = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32) / 2


def is_turned(layer: Layer) -> bool:
    """Whether the description of a weight says so."""
    return bool(_option(layer, "convrot", False))


def turned(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """The weight [rows, columns], float32, turned back in the groups that its description names; the matrix is its own
    inverse."""
    size = group_size(layer, weight.shape[1])
    matrix = _REGULAR
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, _REGULAR)
    return (weight.view(-1, size) @ matrix).view(weight.shape)


def group_size(layer: Layer, columns: int) -> int:
    """How many elements of a row are turned together. Raises DeltaError for a number that cannot be right."""
    size = _option(layer, "convrot_groupsize", _USUAL_GROUP)
    if not isinstance(size, int) or size not in (4, 16, 64, 256, 1024, 4096) or columns % size:
        raise layer.damaged("comfy_quant", "names a group size that cannot be")
    return size


def refusal(layer: Layer, format: str) -> UnsupportedModelError:
    """The error for a change in the weight's own format: a sparse one is dense once it is turned, each element spread
    over its group, where it is smaller than a step of rounding."""
    return unsupported(
        layer.name,
        layer.checkpoint,
        f"{format} turned in groups (convrot)",
        "Rounding would take it back. Choose bf16 or fp16 as the precision of the result.",
    )


def _option(layer: Layer, name: str, otherwise):
    return layer.options.get(name, layer.options.get("params", {}).get(name, otherwise))
