"""Small pictures of deltas for the page: beside the file, as other programs keep them, or in its metadata."""

import base64
import binascii
import io
import os
from collections.abc import Callable, Collection
from pathlib import Path

from PIL import Image, ImageOps

from ....sara_core.delta import modelspec
from ....sara_core.errors import DeltaError
from ....sara_core.files import header
from ..folders import is_inside

SIDE = 256  # pixels
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_MOST_BYTES, _MOST_PIXELS = 32 << 20, 100_000_000


def beside(path: Path, siblings: Callable[[Path], Collection[str]]) -> Path | None:
    """The picture file beside a delta, if there is one. siblings: folder → the names of all that is in it"""
    names = siblings(path.parent)
    found = (path.with_name(path.stem + ending) for ending in _ENDINGS)
    return next((picture for picture in found if picture.name in names), None)


def names_in(folder: Path) -> Collection[str]:
    """The names of all that is in a folder; nothing if it cannot be read."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return ()


def small(path: Path) -> bytes:
    """A delta's picture as a JPEG of at most SIDE × SIDE pixels, made anew: nothing else of its file is passed on.

    Raises DeltaError if there is none that can be shown.
    """
    picture = beside(path, names_in)
    content = (
        _of_file(picture) if picture is not None else _of_text(header.read(path).metadata.get(modelspec.THUMBNAIL, ""))
    )
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError("too large")
            opened.draft("RGB", (SIDE, SIDE))
            image = ImageOps.exif_transpose(opened)
            image.thumbnail((SIDE, SIDE))
            # The page lays it on its own ground; transparency is seldom meant in a preview.
            plain = Image.new("RGB", image.size, "white")
            rgba = image.convert("RGBA")
            plain.paste(rgba, mask=rgba)
    except Exception as error:  # Pillow's readers raise what they run into
        raise DeltaError(f"The preview of '{path.name}' cannot be shown: it is no sound picture.") from error
    file = io.BytesIO()
    plain.save(file, "JPEG", quality=85)
    return file.getvalue()


def _of_file(picture: Path) -> bytes:
    if not is_inside(picture) or not picture.is_file() or picture.stat().st_size > _MOST_BYTES:
        raise DeltaError(f"The preview '{picture.name}' is too large, or lies outside of ComfyUI's folders.")
    return picture.read_bytes()


def _of_text(url: str) -> bytes:
    try:
        return base64.b64decode(url.partition("base64,")[2], validate=True)
    except binascii.Error as error:
        raise DeltaError("The picture in the delta's metadata is damaged.") from error
