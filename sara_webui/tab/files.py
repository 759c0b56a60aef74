"""What people choose from, by name, and what there is to say of each delta."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sara_core.delta import metadata as keys
from sara_core.delta.head import read_head
from sara_core.errors import DeltaError
from sara_core.foreign_text import MESSAGE, NAME, plain
from sara_core.wording import listed


def chosen(name: str, known: Mapping[str, Path], kind: str) -> Path:
    """The file of a name. Raises DeltaError if there is none, among those that there are. kind: what it is one of"""
    if name not in known:
        there = f"There are {listed(known)}." if known else "There is none yet."
        asked = f"There is no {kind} '{plain(name, NAME)}'." if name else f"Choose a {kind}."
        raise DeltaError(f"{asked} {there}")
    return known[name]


def rows(deltas: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Of each delta its name, its size in bytes, how many elements it changes, the family of models that it is for,
    None where it does not say; and what is wrong with it, None for nothing."""
    return [{"name": name, **_row(path)} for name, path in sorted(deltas.items())]


def _row(path: Path) -> dict[str, Any]:
    try:
        head = read_head(path)
    except DeltaError as error:
        return {"bytes": None, "elements": None, "family": None, "error": plain(error, MESSAGE)}
    family = plain(head.metadata.get(keys.FAMILY, ""), NAME) or None
    return {"bytes": head.size, "elements": head.elements, "family": family, "error": None}
