"""How Forge patches weights: by a function for each kind of patch, which is given a copy of a weight in fp32."""

from collections.abc import Mapping
from typing import Any

import torch
from backend.patcher import lora

from sara_core.delta.entry import SparseEntry
from sara_core.tensors.elements import add_sparse_

_KIND = "sara"


def _calculated(weight: torch.Tensor, strength: float, change: tuple[SparseEntry, float]) -> torch.Tensor:
    """strength: always 1, since what is added up has strengths of its own"""
    entry, own = change
    return add_sparse_(weight, entry.indices.to(weight.device), entry.values.to(weight.device), own)


class ForgePatching:
    """See Patching."""

    name = "Forge"

    def __init__(self):
        lora.extra_weight_calculators[_KIND] = _calculated

    def patches(self, patcher: Any, wanted: Mapping[str, tuple[SparseEntry, float]]) -> dict[str, tuple]:
        return {name: (_KIND, change) for name, change in wanted.items()}

    def base(self, patcher: Any) -> Mapping[str, torch.Tensor]:
        return patcher.lora_loader.backup

    def restore(self, patcher: Any) -> None:
        patcher.lora_loader.refresh({}, patcher.offload_device)
