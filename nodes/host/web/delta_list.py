"""What the page is told of each delta in the menu, without its changes being read."""

import functools
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from ....sara_core.delta import modelspec
from ....sara_core.delta.about import about
from ....sara_core.delta.head import DeltaHead, read_head
from ....sara_core.errors import DeltaError
from ....sara_core.foreign_text import NAME, plain, visible
from ....sara_core.names.family_names import layout_name
from ....sara_core.wording import Sentence
from .. import folders
from ..family import delta_family
from . import previews
from .run_state import sentence

_LINKED_OUT = Sentence("It is a link to a place outside of ComfyUI's folders, so nothing of it is shown here.")


class DeltaList:
    """The rows of all deltas. Each file is opened once, and again only when it has changed."""

    def __init__(self):
        self._known: dict[Path, tuple[str, dict]] = {}
        self._reading = threading.Lock()

    def rows(self) -> list[dict]:
        """One for each name in the menu, newest first; see `row`."""
        with self._reading:
            places = folders.delta_places()
            self._known = {path: self._known[path] for path in places.values() if path in self._known}
            names_in = functools.cache(previews.names_in)
            rows = [self._row(name, path, names_in) for name, path in places.items()]
        return sorted(rows, key=lambda row: -row["modified"])

    def row(self, name: str) -> dict:
        """What there is to say of one delta. Raises DeltaError if the menu has no such name.

        name; kind: folders.SAVED, NOT_SAVED or STOPPED; size: in bytes; modified: in seconds since 1970
        version: changes with the file; family and layout: what it is for, in people's words, and what is equal where
        deltas fit each other's models; title, trigger, author, licence: what it says of itself, "" for nothing
        elements: how many it changes; preview: changes with its picture, None without one
        error: a `sentence` instead of all that would have to be read, or None
        """
        with self._reading:
            return self._row(name, folders.delta_path(name), previews.names_in)

    def _row(self, name: str, path: Path, names_in: Callable[[Path], Collection[str]]) -> dict:
        version = folders.fingerprint(path)
        if (known := self._known.get(path)) is None or known[0] != version:
            known = self._known[path] = version, _read(path)
        modified, _, size = version.partition(":")
        row = {**known[1], "name": name, "kind": folders.kind_of(name), "version": version}
        row.update(size=int(size or 0), modified=int(modified) / 1e9 if size else 0.0)
        if (picture := previews.beside(path, names_in)) is not None:
            return {**row, "preview": folders.fingerprint(picture)}
        return {**row, "preview": version if row["preview"] else None}


def _read(path: Path) -> dict:
    """The part of a row that only the file can tell."""
    try:
        if not folders.is_inside(path):
            raise DeltaError(_LINKED_OUT)
        head, error = read_head(path), None
    except DeltaError as refused:
        head, error = DeltaHead(0, 0, "", {}, 0), sentence(refused.said)
    said = about(head.metadata)
    return {
        **families_of(delta_family(head.metadata)),
        "title": plain(said["title"], NAME), "author": plain(said["author"], NAME),
        "licence": plain(said["licence"], NAME), "trigger": visible(" ".join(said["trigger"].split())),
        "elements": head.elements, "preview": bool(head.metadata.get(modelspec.THUMBNAIL)), "error": error,
    }  # fmt: skip


def families_of(family: str | None) -> dict:
    """A family as people call it, and as it is compared; both None where it is not known."""
    return {
        "family": family and plain(family, NAME),
        "layout": family and plain(layout_name(family), NAME),
    }
