"""What SaRA Loader's cards ask: which deltas there are, what one of them is, and that something is said of it.

Names are those of the menu, never paths.
"""

from collections.abc import Mapping
from typing import Any

import aiohttp.web

from ....sara_core.delta.about import FIELDS, about, write_about
from ....sara_core.delta.describe import readable_settings
from ....sara_core.delta.head import density_of_file
from ....sara_core.errors import DeltaError, SaRAError
from ....sara_core.files import header
from ....sara_core.foreign_text import MESSAGE, NAME, plain
from ....sara_core.models.family import family_of_file
from ....sara_core.wording import Sentence
from .. import folders
from . import previews
from .delta_list import DeltaList, families_of
from .routes import on_get, on_post

# Of what a file may have any amount of; nobody reads more.
_MOST_SETTINGS, _MOST_BLOCKS = 100, 500
_PREVIEW_IS_KEPT = {"Cache-Control": "private, max-age=86400"}

_deltas = DeltaList()
_families: dict[tuple, str | None] = {}


def register_deltas() -> None:
    """Give the page its addresses: /sara/deltas, /sara/delta/info, /preview and /about, and /sara/family."""
    on_get("deltas", lambda asked: {"deltas": _deltas.rows()})
    on_get("delta/info", lambda asked: _info(asked.get("name")))
    on_get("delta/preview", _preview)
    on_post("delta/about", _write_about)
    on_get("family", _family)


def _info(name: Any) -> dict:
    """A delta's row, its notes, settings as pairs of texts, and of each block the share of its elements that is
    changed, 0 … 1, with how many these are."""
    row = _deltas.row(name)
    if row["error"] is not None:
        return {**row, "notes": "", "settings": [], "blocks": []}
    path = folders.delta_path(name)
    metadata = header.read(path).metadata
    fields = {"title", "author", "description", "trigger", "license"}
    settings = [pair for pair in readable_settings(metadata).items() if pair[0] not in fields]
    blocks = list(density_of_file(path).items())[:_MOST_BLOCKS]
    return {
        **row,
        **about(metadata),
        "settings": [[plain(label, NAME), plain(text, MESSAGE)] for label, text in settings[:_MOST_SETTINGS]],
        "blocks": [{"name": plain(block, NAME), "density": one.density, "count": one.count} for block, one in blocks],
    }


def _preview(asked: Mapping[str, Any]) -> aiohttp.web.Response:
    path = folders.delta_path(asked.get("name"))
    if not folders.is_inside(path):
        raise DeltaError(Sentence("'{name}' is a link to a place outside of ComfyUI's folders.", name=path.name))
    try:
        content = previews.small(path)
    except DeltaError:  # the card has a letter then; anything but success would be an error in the page's console
        return aiohttp.web.Response(status=204)
    # The page asks with the preview's version, so that one may be kept as long as it has no other.
    return aiohttp.web.Response(body=content, content_type="image/jpeg", headers=_PREVIEW_IS_KEPT)


def _write_about(asked: Mapping[str, Any]) -> dict:
    path = folders.delta_path(asked.get("name"))
    if not folders.is_inside(path):
        raise DeltaError(Sentence(
            "'{name}' is a link to a place outside of ComfyUI's folders. Change it there.", name=path.name
        ))  # fmt: skip
    if asked.get("version") != folders.fingerprint(path):
        raise DeltaError(Sentence(
            "'{name}' has been changed since you opened it. Close this and open it again.", name=path.name
        ))  # fmt: skip
    write_about(path, {field: asked[field] for field in FIELDS if field in asked})
    return _info(asked["name"])


def _family(asked: Mapping[str, Any]) -> dict:
    """The family of a model by its name in the menus; None where it cannot be told."""
    try:
        path = folders.model_path(str(asked.get("model", "")))
    except SaRAError:  # a workflow from another machine names models that are not here
        return families_of(None)
    key = path, folders.fingerprint(path)
    if key not in _families:
        _families[key] = family_of_file(path)
    return families_of(_families[key])
