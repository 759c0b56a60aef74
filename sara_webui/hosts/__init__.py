"""Which WebUI this runs in, told by what it has, never by its version."""

import importlib.util
import logging

from .host import Host

__all__ = ["Host", "current"]

_UNKNOWN = (
    "SaRA: this WebUI is not known, and nothing of it was changed. Known are AUTOMATIC1111 1.10, Forge and Forge Neo."
)
_A1111 = ("modules.sd_models", "modules.sd_hijack", "modules.extra_networks", "modules.script_callbacks")
_FORGE = ("modules.sd_models", "modules.extra_networks", "modules.script_callbacks", "modules_forge", "backend",
          "backend.memory_management", "backend.patcher.lora")  # fmt: skip
# What others have that came of these and keep weights another way: reForge and Forge classic, SD.Next.
_OTHERS = ("ldm_patched", "modules.sd_checkpoint")

_found: Host | None = None
_looked = False


def current() -> Host | None:
    """The host that runs, always the same object; None, with one line in the log, for one that is not known."""
    global _found, _looked
    if not _looked:
        _found, _looked = _detected(), True
    return _found


def _detected() -> Host | None:
    is_forge = any(map(_is_there, _FORGE[-4:]))
    if any(map(_is_there, _OTHERS)):
        pass
    elif all(map(_is_there, _A1111)) and not is_forge:
        from .a1111.host import A1111

        return A1111()
    elif all(map(_is_there, _FORGE)):
        from .forge.host import Forge
        from .forge.patching import patching

        if (own := patching()) is not None:
            return Forge(own)
    logging.warning(_UNKNOWN)
    return None


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
