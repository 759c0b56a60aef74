"""How Forge classic patches weights: by a function for each kind of patch; what was there before, each patcher keeps by
itself while it is the one that is loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from ldm_patched.modules import model_management, model_patcher

from sara_core.delta.entry import SparseEntry

from .calculated import KIND, calculated, patches_of
from .older import OlderPatching


class ClassicPatching(OlderPatching):
    """See Patching."""

    name = "Forge classic"

    def __init__(self):
        model_patcher.extra_weight_calculators[KIND] = calculated

    def patches(self, patcher: Any, wanted: Mapping[str, tuple[SparseEntry, float]]) -> dict[str, tuple]:
        # It has listed its weights before the host put something around an embedding.
        patcher.model_keys = patcher.model_keys | wanted.keys()
        return patches_of(wanted)

    def base(self, patcher: Any) -> Mapping[str, torch.Tensor]:
        on_it = (loaded.model for loaded in model_management.current_loaded_models)
        return {name: kept for one in on_it if one.is_clone(patcher) for name, kept in one.backup.items()}
