"""The files that people choose from, by name: deltas among the WebUI's networks, and its checkpoints."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sara_core.delta import metadata as keys
from sara_core.delta.file_v1 import SUFFIX
from sara_core.delta.head import DeltaHead, read_head
from sara_core.errors import DeltaError
from sara_core.foreign_text import NAME, plain
from sara_core.wording import listed


def delta_files(folders: Iterable[Path]) -> dict[str, Path]:
    """Name → file of every delta in these folders and those in them; of two of one name, the one that comes first. A
    name in a folder begins with the folder's: "cats/whiskers"."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob(f"*{SUFFIX}")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name not in found and head_of(path) is not None:
                found[name] = path
    return found


def head_of(path: Path) -> DeltaHead | None:
    """What a file says of itself without being read whole; None for one that is no delta."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return _head(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(4096)
def _head(path: Path, modified: int, size: int) -> DeltaHead | None:
    try:
        return read_head(path)
    except DeltaError:
        return None


def chosen(name: str, known: Mapping[str, Path], kind: str) -> Path:
    """The file of a name. Raises DeltaError if there is none, among those that there are; kind: what it is one of"""
    if name not in known:
        there = f"There are {listed(known)}." if known else "There is none yet."
        asked = f"There is no {kind} '{plain(name, NAME)}'." if name else f"Choose a {kind}."
        raise DeltaError(f"{asked} {there}")
    return known[name]


def rows(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """What there is to say of every delta: its name, size in bytes, elements, and family."""
    found = ((name, head_of(path)) for name, path in delta_files(folders).items())
    return [
        {
            "name": name, "bytes": head.size, "elements": head.elements,
            "family": plain(head.metadata.get(keys.FAMILY, ""), NAME) or None,
        }
        for name, head in found if head is not None
    ]  # fmt: skip
