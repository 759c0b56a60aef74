"""Which deltas a picture was drawn with: a line among its parameters, and what is made of it when they are pasted."""

import re
from collections.abc import Mapping

from .shelf import Shelf

HASHES = "SaRA hashes"

_TAG = re.compile(r"<(?P<kind>sara|lora|lyco):(?P<name>[^:>]+)")
# They divide such a line.
_DIVIDERS = str.maketrans("", "", ":,")


def hashes_line(hashes: Mapping[str, str]) -> str:
    """{"style": "0123456789ab"} → "style: 0123456789ab", several with commas between."""
    return ", ".join(f"{name.translate(_DIVIDERS)}: {digits}" for name, digits in hashes.items())


def restored(prompt: str, line: str, shelf: Shelf) -> str:
    """The prompt with the names that its deltas' files have here now; what has no such file stays as it is.

    line: as hashes_line makes them, or empty
    """
    hashes = dict(_pair(pair) for pair in line.split(",") if ":" in pair)
    files: dict[str, str] = {}

    def own(tag: re.Match) -> str:
        name, digits = tag["name"], hashes.get(tag["name"].translate(_DIVIDERS).strip())
        path = digits and shelf.find(name)
        if not digits or (path and shelf.short_hash(path) == digits):
            return tag[0]
        if not files:
            files.update((shelf.short_hash(path), name) for name, path in shelf.deltas().items())
        return f"<{tag['kind']}:{files.get(digits, name)}"

    return _TAG.sub(own, prompt)


def _pair(text: str) -> tuple[str, str]:
    name, _, digits = text.partition(":")
    return name.strip(), digits.strip()
