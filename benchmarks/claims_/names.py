"""Which pictures count, by name, what their captions are, and which names nobody trains on: fixed before anything is
measured.

Flags, and the same person in five skin tones, would swamp everything else, so they are left out. A name's part is
decided by its digest alone, so it is the same in every set.
"""

import hashlib
import re
from collections.abc import Iterable

_LEFT_OUT = re.compile(r"(^|-)flag(s)?(-|$)|-tone[0-9]?(-|$)|-skin-tone|^regional-indicator|^keycap|^[0-9]$|^digit-")
HELD_OUT_SHARE = 0.2


def usable(names: Iterable[str]) -> list[str]:
    """The names that count, in order."""
    return sorted(name for name in names if not _LEFT_OUT.search(name))


def caption(name: str, prefix: str = "") -> str:
    """ "dog-face" → "dog face", with `prefix` ("noto style") before it."""
    words = name.replace("-", " ")
    return f"{prefix}, {words}" if prefix else words


def is_held_out(name: str) -> bool:
    """Whether a name is kept for judging: no style is trained on it."""
    digest = hashlib.sha256(f"held out: {name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32
