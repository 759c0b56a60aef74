"""A change as those hosts take it that have a function for each kind of patch, which is given a copy of a weight in
fp32."""

from collections.abc import Mapping

import torch

from sara_core.delta.entry import SparseEntry
from sara_core.tensors.elements import add_sparse_

KIND = "sara"


def calculated(weight: torch.Tensor, strength: float, change: tuple[SparseEntry, float]) -> torch.Tensor:
    """strength: always 1, since what is added up has strengths of its own"""
    entry, own = change
    return add_sparse_(weight, entry.indices.to(weight.device), entry.values.to(weight.device), own)


def patches_of(wanted: Mapping[str, tuple[SparseEntry, float]]) -> dict[str, tuple[str, tuple[SparseEntry, float]]]:
    """By the names that `wanted` has: a patch of our kind, told by the name of the function."""
    return {name: (KIND, change) for name, change in wanted.items()}
