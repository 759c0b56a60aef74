"""Which of these patches weights here, told by what it has for patches of extensions."""

import importlib

from .patched import Patching


def patching() -> Patching | None:
    """None where it is nobody's way."""
    lora = _module("backend.patcher.lora")
    if hasattr(lora, "weight_adapter"):
        from .neo import NeoPatching

        return NeoPatching()
    if hasattr(lora, "extra_weight_calculators"):
        from .forge import ForgePatching

        return ForgePatching()
    if lora is None and _module("ldm_patched.modules.weight_adapter") is not None:
        from .reforge import ReForgePatching

        return ReForgePatching()
    if lora is None and hasattr(_module("ldm_patched.modules.model_patcher"), "extra_weight_calculators"):
        from .classic import ClassicPatching

        return ClassicPatching()
    return None


def _module(name: str):
    """None where the host has none of this name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None
