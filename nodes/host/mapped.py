"""Weights that may lie in the model's file, mapped read-only: writing one would end the whole process."""

import comfy.memory_management
import torch


def may_be_mapped(weight: torch.Tensor) -> bool:
    """Whether a weight is, or may be, mapped from its file by the host's dynamic VRAM."""
    is_on_cpu_of_dynamic = weight.device.type == "cpu" and getattr(comfy.memory_management, "aimdo_enabled", False)
    return is_on_cpu_of_dynamic or hasattr(weight.untyped_storage(), "_comfy_tensor_file_slice")
