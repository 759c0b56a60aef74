"""Weights that are turned by a Hadamard matrix in groups along their rows before they are rounded ("convrot")."""

from collections.abc import Iterator

import torch

from ...delta import SparseEntry
from ...errors import UnsupportedModelError
from . import elements
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
    return (weight.view(-1, size) @ _matrix(size)).view(weight.shape)


def spread(entry: SparseEntry, strength: float, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """strength · Δ as it is once it is turned, some groups at a time: the groups' numbers, increasing, int64 [m]; for
    each change in them which of these it is in, int64 [n]; and what is added to their elements, float32 [m, size].

    size: of a group
    """
    indices, values = entry.indices.cpu().long(), entry.values.cpu().float() * strength
    touched, owners = torch.unique_consecutive(indices // size, return_inverse=True)
    many = max(1, elements.CHUNK // size)
    for first in range(0, len(touched), many):
        begin, end = torch.searchsorted(owners, torch.tensor([first, first + many])).tolist()
        groups, own = touched[first : first + many], owners[begin:end] - first
        changes = torch.zeros(len(groups), size)
        changes[own, indices[begin:end] % size] = values[begin:end]
        yield groups, own, changes @ _matrix(size)


def _matrix(size: int) -> torch.Tensor:
    matrix = _REGULAR
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, _REGULAR)
    return matrix


def group_size(layer: Layer, columns: int) -> int:
    """How many elements of a row are turned together. Raises DeltaError for a number that cannot be right."""
    size = _option(layer, "convrot_groupsize", _USUAL_GROUP)
    if not isinstance(size, int) or size not in (4, 16, 64, 256, 1024, 4096) or columns % size:
        raise layer.damaged("comfy_quant", "names a group size that cannot be")
    return size


def refusal(layer: Layer, format: str) -> UnsupportedModelError:
    """The error for a change in a format too coarse for it: it is spread over its group, where it is smaller than a
    step of rounding. In 4 bits no more than 8 % of a change of 0.2 % of the elements arrive."""
    return unsupported(
        layer.name,
        layer.checkpoint,
        f"{format} turned in groups (convrot)",
        "Rounding would take it back. Choose bf16 or fp16 as the precision of the result.",
    )


def _option(layer: Layer, name: str, otherwise):
    return layer.options.get(name, layer.options.get("params", {}).get(name, otherwise))
