"""What reForge and Forge classic have in common: the patchers of the first Forge, whose patches have no names."""

from abc import ABC
from collections.abc import Collection, Mapping
from typing import Any

import torch
from ldm_patched.modules import model_management


class OlderPatching(ABC):
    """The part of a Patching that is alike in both."""

    def add(self, part: Any, called: str, patches: Mapping[str, Any]) -> Collection[str]:
        return part.add_patches(patches)

    def unload_all(self) -> None:
        # Its own way leaves those that are not on the graphics card.
        while model_management.current_loaded_models:
            loaded = model_management.current_loaded_models.pop()
            if loaded.model is not None:
                loaded.model_unload()

    def problem(self) -> str:
        return ""

    def prepare(self, encoders: torch.nn.Module) -> None:
        """They encode with the weights as they are stored."""

    def restore(self, patcher: Any) -> None:
        """Nothing is left to do: what is unloaded is unpatched."""
