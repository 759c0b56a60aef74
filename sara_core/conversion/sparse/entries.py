"""What the sparse formats of PEFT have in common: the names of their tensors, and entries from unsorted positions."""

import math

import torch

from ...delta import SparseEntry
from ...errors import DeltaError
from ..peft import PREFIX


def layer_names(names: list[str], endings: set[str]) -> dict[str, dict[str, str]]:
    """Layer → ending → tensor name. Raises DeltaError if a layer lacks one of the endings or
    has two of it, or something is foreign."""
    layers: dict[str, dict[str, str]] = {}
    for name in names:
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        if ending is None:
            raise DeltaError(f"The file also trains '{name}' as a whole, which is no sparse change.")
        layer = layers.setdefault(name.removesuffix(ending).removeprefix(PREFIX), {})
        if (other := layer.setdefault(ending, name)) != name:
            raise DeltaError(
                f"The file changes one weight under two names, '{other}' and '{name}'. Get it again from where it came "
                "from."
            )
    for layer, tensors in layers.items():
        if missing := endings - tensors.keys():
            raise DeltaError(f"The file's layer '{layer}' lacks its {', '.join(sorted(missing))}. Get the file again.")
    return layers


def sorted_entry(name: str, positions: torch.Tensor, values: torch.Tensor, shape: tuple[int, ...]) -> SparseEntry:
    """An entry of flat positions, int64 [n] in any order, without the changes of 0. Raises DeltaError for positions
    outside the weight (check_entry finds those that occur twice)."""
    if positions.shape != values.shape or positions.dim() != 1:
        raise DeltaError(
            f"The file's layer '{name}' has {positions.numel()} positions for {values.numel()} values, or not in one "
            "row. Get the file again from where it came from."
        )
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < math.prod(shape):
        raise DeltaError(
            f"The file changes '{name}' outside its shape {list(shape)}. Give the base that the file was made for."
        )
    positions, order = positions.sort()
    values = values[order]
    changed = values != 0
    return SparseEntry(positions[changed].to(torch.int32), values[changed], shape)
