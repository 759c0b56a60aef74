"""How Forge Neo patches weights: as ComfyUI does, by an adapter that is given a copy of a weight and gives it back."""

from collections.abc import Mapping
from typing import Any

import torch
from backend.patcher.lora import weight_adapter

from sara_core.delta.entry import SparseEntry

from .adapter import SaRAAdapter
from .backend import BackendPatching


class NeoAdapter(SaRAAdapter, weight_adapter.WeightAdapterBase):
    """See SaRAAdapter."""


class NeoPatching(BackendPatching):
    """See Patching."""

    name = "Forge Neo"

    def patches(self, patcher: Any, wanted: Mapping[str, tuple[SparseEntry, float]]) -> dict[str, NeoAdapter]:
        return {
            name: NeoAdapter(entry, strength, None if patcher.patches.get(name) else patcher.backup)
            for name, (entry, strength) in wanted.items()
        }

    def base(self, patcher: Any) -> Mapping[str, torch.Tensor]:
        return {name: kept.weight for name, kept in patcher.backup.items()}

    def restore(self, patcher: Any) -> None:
        patcher.unpatch_model(patcher.offload_device)
