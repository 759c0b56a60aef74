"""How reForge patches weights: as ComfyUI does, by an adapter that is given a copy of a weight in fp32."""

from collections.abc import Mapping
from typing import Any

import torch
from ldm_patched.modules import weight_adapter

from sara_core.delta.entry import SparseEntry

from .adapter import SaRAAdapter
from .older import OlderPatching


class ReForgeAdapter(SaRAAdapter, weight_adapter.WeightAdapterBase):
    """See SaRAAdapter."""


class ReForgePatching(OlderPatching):
    """See Patching."""

    name = "reForge"

    def patches(self, patcher: Any, wanted: Mapping[str, tuple[SparseEntry, float]]) -> dict[str, ReForgeAdapter]:
        return {name: ReForgeAdapter(*change) for name, change in wanted.items()}

    def base(self, patcher: Any) -> Mapping[str, torch.Tensor]:
        return {name: kept.weight for name, kept in patcher.backup.items()}
