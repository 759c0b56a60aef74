"""How Forge patches weights: by a function for each kind of patch."""

from collections.abc import Mapping
from typing import Any

import torch
from backend.patcher import lora

from sara_core.delta.entry import SparseEntry

from .backend import BackendPatching
from .calculated import KIND, calculated, patches_of


class ForgePatching(BackendPatching):
    """See Patching."""

    name = "Forge"

    def __init__(self):
        lora.extra_weight_calculators[KIND] = calculated

    def patches(self, patcher: Any, wanted: Mapping[str, tuple[SparseEntry, float]]) -> dict[str, tuple]:
        return patches_of(wanted)

    def base(self, patcher: Any) -> Mapping[str, torch.Tensor]:
        return patcher.lora_loader.backup

    def restore(self, patcher: Any) -> None:
        patcher.lora_loader.refresh({}, patcher.offload_device)
