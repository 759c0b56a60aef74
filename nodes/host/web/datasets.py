"""What the gallery of SaRA Dataset asks: GET /sara/dataset/folders, /sara/dataset and /sara/dataset/thumbnail, POST
/sara/dataset/caption and /sara/dataset/folder. All of it inside ComfyUI's input folder."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import aiohttp.web

from ....sara_core.data.captions import read_caption
from ....sara_core.data.listing import stem, unreadable
from ....sara_core.data.pictures import readable_endings, thumbnail
from ....sara_core.data.survey import Seen, survey
from ....sara_core.errors import TrainingError
from ....sara_core.files.atomic import replacing
from ....sara_core.wording import MB, Sentence
from .. import datasets
from .routes import on_get, on_post
from .run_state import sentence

SIDE = 256  # of a thumbnail, in pixels
KEPT = 64 * MB  # bytes of thumbnails
LONGEST_CAPTION = 20_000  # letters; the page shows all captions at once
MOST_PICTURES = 5000


def register_datasets() -> None:
    """Give the page its addresses."""
    on_get("dataset/folders", lambda asked: {"folders": datasets.folder_names()})
    on_get("dataset", _folder)
    on_get("dataset/thumbnail", _thumbnail)
    on_post("dataset/caption", _save_caption)
    on_post("dataset/folder", lambda asked: {"folder": datasets.new_folder(asked.get("name", ""))})


def _folder(asked: Mapping) -> dict:
    folder = datasets.open_folder(asked.get("folder", ""))
    seen = survey(folder, _resolution(asked), asked.get("buckets") != "false", datasets.input_folder())
    return {
        "pictures": [_as_json(picture, folder) for picture in seen.pictures[:MOST_PICTURES]],
        "lines": [sentence(line) for line in seen.lines],
        "more": max(0, len(seen.pictures) - MOST_PICTURES),
        "endings": sorted(readable_endings()),
    }


def _resolution(asked: Mapping) -> int:
    text = str(asked.get("resolution", ""))
    if not text.isdecimal() or len(text) > 5:
        raise TrainingError("The resolution is no number.")
    return int(text)


def _as_json(picture: Seen, folder: Path) -> dict:
    """What the page shows of it; `box` as shares of the picture's width and height."""
    caption, caption_problem, box = picture.caption, picture.caption_problem, None
    if caption is not None and len(caption) > LONGEST_CAPTION:
        caption, caption_problem = None, Sentence(
            "The caption is longer than {most} letters: edit it in its file.", most=f"{LONGEST_CAPTION:,}"
        )  # fmt: skip
    if picture.cut is not None:
        (width, height), (left, top, right, bottom) = picture.size, picture.cut.box
        box = [left / width, top / height, right / width, bottom / height]
    return {
        "name": picture.name, "caption": caption, "size": picture.size, "box": box,
        "bucket": picture.cut and picture.cut.size, "blurred": picture.cut is not None and picture.cut.is_blurred,
        "same_as": picture.same_as, "problem": picture.problem and sentence(picture.problem),
        "caption_problem": caption_problem and sentence(caption_problem),
        "version": _version(folder / picture.name),
    }  # fmt: skip


def _version(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # it has just gone; its thumbnail says so
        return ""
    return f"{status.st_mtime_ns}-{status.st_size}"


def _thumbnail(asked: Mapping) -> aiohttp.web.Response:
    path, _ = datasets.open_picture(datasets.open_folder(asked.get("folder", "")), asked.get("name", ""))
    content = _thumbnails.of(path)
    # The address has the file's version in it.
    return aiohttp.web.Response(
        body=content, content_type="image/jpeg",
        headers={"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"},
    )  # fmt: skip


class _Thumbnails:
    """Those that were asked for last, up to KEPT bytes."""

    def __init__(self):
        self._kept: OrderedDict[tuple, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0

    def of(self, path: Path) -> bytes:
        key = path, _version(path)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        content = thumbnail(path, SIDE)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = content
                self._bytes += len(content)
            while self._bytes > KEPT:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return content


_thumbnails = _Thumbnails()
_writing = threading.Lock()


def _save_caption(asked: Mapping) -> dict:
    text, before = asked.get("caption"), asked.get("before")
    if not isinstance(text, str) or not (before is None or isinstance(before, str)):
        raise TrainingError("A caption is text.")
    text = text.replace("\r\n", "\n").strip()
    if len(text) > LONGEST_CAPTION:
        raise TrainingError(Sentence("A caption has at most {most} letters.", most=f"{LONGEST_CAPTION:,}"))
    with _writing:
        path, now = _caption_file(asked)
        if text != (now or ""):
            if now != before:
                raise TrainingError(Sentence(
                    "'{name}' has changed since it was shown: press Refresh, then write it anew.", name=path.name
                ))  # fmt: skip
            _write(path, text)
    return {"caption": text}


def _caption_file(asked: Mapping) -> tuple[Path, str | None]:
    """The caption file of a picture, which may not be there yet, and its text."""
    picture, listing = datasets.open_picture(datasets.open_folder(asked.get("folder", "")), asked.get("name", ""))
    others = [other.name for other, _ in listing.images if other != picture and stem(other) == stem(picture)]
    if others:
        raise TrainingError(Sentence(
            "'{name}' and '{other}' would share one caption file: rename one of them in the folder.",
            name=picture.name, other=others[0],
        ))  # fmt: skip
    path = dict(listing.images)[picture]
    if path is None:
        return picture.with_suffix(".txt"), None
    datasets.check_inside(path)
    try:
        return path, read_caption(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _write(path: Path, text: str) -> None:
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise TrainingError(
            Sentence("The caption holds half a letter, where text was cut: write it anew.")
        ) from error
    with replacing(path) as file:
        file.write(content)
