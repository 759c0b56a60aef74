"""What Forge and Forge Neo have in common beside the way in which each patches a weight."""

from abc import ABC
from collections.abc import Collection, Mapping
from typing import Any

import torch
from backend import memory_management
from backend.args import dynamic_args

# Of CLIP's encoders, whose prompts the host encodes so.
_EMBEDDINGS = ("text_model.embeddings.position_embedding", "text_model.embeddings.token_embedding")


class BackendPatching(ABC):
    """The part of a Patching that is alike in both."""

    def add(self, part: Any, called: str, patches: Mapping[str, Any]) -> Collection[str]:
        return part.add_patches(filename=called, patches=patches, strength_patch=1.0, online_mode=False)

    def unload_all(self) -> None:
        memory_management.unload_all_models()

    def problem(self) -> str:
        if getattr(dynamic_args, "nunchaku", False):
            return "Weights of a Nunchaku model cannot be changed: choose the model in fp16, bf16 or fp32."
        return ""

    @torch.inference_mode()
    def prepare(self, encoders: torch.nn.Module) -> None:
        """Have the embeddings in fp32, as the host has them from the first prompt that it encodes: a change that was
        rounded to fp16 before that would be another one than after it."""
        for path, module in encoders.named_modules():
            if path.endswith(_EMBEDDINGS):
                module.to(torch.float32)
