"""Which WebUI this runs in, told by what it has, never by its version."""

import importlib.util
import logging

from .host import Host

__all__ = ["Host", "current"]

_A1111 = ("modules.sd_models", "modules.sd_hijack", "modules.extra_networks", "modules.script_callbacks")
# What those have that came of it and keep weights another way: Forge and its kin, SD.Next.
_OTHERS = ("modules_forge", "backend", "ldm_patched", "modules.sd_checkpoint")

_found: Host | None = None
_looked = False


def current() -> Host | None:
    """The host that runs, always the same object; None, with one line in the log, for one that is not known."""
    global _found, _looked
    if not _looked:
        _found, _looked = _detected(), True
    return _found


def _detected() -> Host | None:
    if all(map(_is_there, _A1111)) and not any(map(_is_there, _OTHERS)):
        from .a1111.host import A1111

        return A1111()
    logging.warning("SaRA: this WebUI is not known, and nothing of it was changed. Known is AUTOMATIC1111 1.10.")
    return None


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
