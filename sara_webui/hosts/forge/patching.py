"""Which of both patches weights here, told by what it has for patches of extensions."""

from backend.patcher import lora

from .patched import Patching


def patching() -> Patching | None:
    """None where it is neither's way."""
    if hasattr(lora, "weight_adapter"):
        from .neo import NeoPatching

        return NeoPatching()
    if hasattr(lora, "extra_weight_calculators"):
        from .forge import ForgePatching

        return ForgePatching()
    return None
