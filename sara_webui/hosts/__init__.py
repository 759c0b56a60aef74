"""Which WebUI this runs in, told by what it has, never by its version."""

import importlib.util

from ..console import log
from .host import Host

__all__ = ["Host", "current"]

_UNKNOWN = (
    "SaRA: this WebUI is not known, and nothing of it was changed. Known are AUTOMATIC1111 1.10, Forge, Forge Neo, "
    "reForge, Forge classic and SD.Next."
)
_COMMON = ("modules.sd_models", "modules.extra_networks", "modules.script_callbacks")
_A1111 = (*_COMMON, "modules.sd_hijack")
_FORGES = ("modules_forge", "backend", "ldm_patched")
_SDNEXT = ("modules.sd_checkpoint", "modules.modeldata", "modules.prompt_parser_diffusers")

_found: Host | None = None
_looked = False


def current() -> Host | None:
    """The host that runs, always the same object; None, with one line in the log, for one that is not known."""
    global _found, _looked
    if not _looked:
        _found, _looked = _detected(), True
    return _found


def _detected() -> Host | None:
    is_forge = any(map(_is_there, _FORGES))
    if any(map(_is_there, _SDNEXT)):
        if all(map(_is_there, (*_COMMON, *_SDNEXT))) and not is_forge:
            from .sdnext.host import SDNext

            return SDNext()
    elif all(map(_is_there, _A1111)) and not is_forge:
        from .a1111.host import A1111

        return A1111()
    elif all(map(_is_there, _COMMON)) and is_forge:
        from .forge.patching import patching

        if (own := patching()) is not None:
            from .forge.host import Forge

            return Forge(own)
    log.warning(_UNKNOWN)
    return None


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
