"""What is in a folder of images, file by file, good or bad: for who still works on it. Of most pictures only the
beginning of the file is read, and that once."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import TrainingError
from ..wording import Sentence
from .buckets import Cut, check_resolution, cut
from .captions import read_caption
from .image_folder import ImageFolder
from .listing import Listing, list_folder, unreadable
from .pictures import picture_size

REMEMBERED = 20_000  # pictures


class Seen(NamedTuple):
    """A picture's file, and the text of its caption file, None without one.

    size: width and height as it is seen; cut: how it is trained; same_as: the name of a file before it with the same
    content; problem, caption_problem: sentences on why the picture, or the caption that is there, cannot be read. Each
    None where there is none
    """

    name: str
    caption: str | None
    size: tuple[int, int] | None
    cut: Cut | None
    same_as: str | None
    problem: str | None
    caption_problem: str | None


class Survey(NamedTuple):
    """pictures: by name; lines: on the folder's other files, and on captions that belong to two pictures"""

    pictures: list[Seen]
    lines: list[str]


def survey(folder: Path, resolution: int, buckets: bool, within: Path | None = None) -> Survey:
    """Look at all pictures of a folder. Raises TrainingError if there is no such folder, it cannot be read, or the
    resolution is none (buckets.check_resolution).

    within: a folder, without links in its path, out of which no link is followed; None for any
    """
    check_resolution(resolution)
    listing = list_folder(folder)
    same = _copies([image for image, _ in listing.images if _is_within(image, within)])
    seen = [_seen(*pair, same, functools.partial(cut, resolution=resolution, buckets=buckets), within)
            for pair in listing.images]  # fmt: skip
    return Survey(seen, [*listing.clashes, *_left_over(listing)])


def copies(paths: Iterable[Path]) -> dict[str, str]:
    """Names of files whose content another one before them has → the name of that one."""
    return {path.name: other.name for path, other in _copies(dict.fromkeys(paths)).items()}


def _left_over(listing: Listing) -> list[str]:
    return ImageFolder([], (), listing.without_image, listing.not_opened, listing.other_captions,
                       listing.folders).left_over()  # fmt: skip


def _seen(
    image: Path, caption: Path | None, same: Mapping[Path, Path], cut_of: Callable[[tuple[int, int]], Cut],
    within: Path | None,
) -> Seen:  # fmt: skip
    text = size = problem = caption_problem = None
    try:
        _check_within(image, within)
        size = _size(image, *_version(image))
    except (TrainingError, OSError) as error:
        problem = _sentence(image, error)
    try:
        if caption is not None:
            _check_within(caption, within)
            text = read_caption(caption)
    except (TrainingError, OSError) as error:
        caption_problem = _sentence(caption, error)
    original = same.get(image)
    return Seen(image.name, text, size, size and cut_of(size), original and original.name, problem, caption_problem)


def _check_within(path: Path, within: Path | None) -> None:
    if not _is_within(path, within):
        raise TrainingError(
            Sentence("'{name}' is a link to another place, which is not followed here.", name=path.name)
        )


def _is_within(path: Path, within: Path | None) -> bool:
    try:
        return within is None or path.resolve().is_relative_to(within)
    except (OSError, RuntimeError):  # links that go round in circles
        return False


def _sentence(path: Path, error: Exception) -> str:
    return (error if isinstance(error, TrainingError) else unreadable(path, error)).said


def _copies(paths: Iterable[Path]) -> dict[Path, Path]:
    versions = {}
    for path in paths:
        try:
            versions[path] = _version(path)
        except OSError:  # gone, or not to be looked at: _seen says so
            continue
    # Only files of one length can be the same.
    lengths = Counter(size for _, size in versions.values())
    first: dict[str, Path] = {}
    found = {}
    for path, version in versions.items():
        if lengths[version[1]] > 1 and (digest := _digest(path, *version)) is not None:
            if (other := first.setdefault(digest, path)) is not path:
                found[path] = other
    return found


def _version(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(REMEMBERED)
def _size(path: Path, modified: int, length: int) -> tuple[int, int]:
    return picture_size(path)


@functools.lru_cache(REMEMBERED)
def _digest(path: Path, modified: int, length: int) -> str | None:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None
