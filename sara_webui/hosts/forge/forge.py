"""How Forge patches weights: by a function for each kind of patch."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from backend.patcher import lora

from sara_core.delta.entry import SparseEntry

from .backend import BackendPatching
from .calculated import KIND, calculated, patches_of
from .patched import patcher_of


class ForgePatching(BackendPatching):
    """See Patching."""

    name = "Forge"

    def __init__(self):
        lora.extra_weight_calculators[KIND] = calculated

    def patches(self, patcher: Any, wanted: Mapping[str, tuple[SparseEntry, float]]) -> dict[str, tuple]:
        return patches_of(wanted)

    def add(self, part: Any, called: str, patches: Mapping[str, Any]) -> Collection[str]:
        taken = super().add(part, called, patches)
        patcher = patcher_of(part)
        # It asks for a parameter's first name only, which of an embedding is that of what stands around it.
        present = {name for name, _ in patcher.model.named_parameters(remove_duplicate=False)}
        further = (patches.keys() - set(taken)) & present
        patcher.lora_patches[called, 1.0, 1.0, False] |= {
            name: [[1.0, patches[name], 1.0, None, None]] for name in further
        }
        return {*taken, *further}

    def base(self, patcher: Any) -> Mapping[str, torch.Tensor]:
        return patcher.lora_loader.backup

    def restore(self, patcher: Any) -> None:
        patcher.lora_loader.refresh({}, patcher.offload_device)
