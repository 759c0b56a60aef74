"""The files of a folder of images: which caption belongs to which image, and what is neither."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import TrainingError
from ..wording import Sentence
from .captions import OTHER_CAPTIONS
from .pictures import OTHER_ENDINGS, readable_endings


class Listing(NamedTuple):
    """images: each with its caption file, or None, by name; clashes: sentences on captions that belong to two images,
    or two to one; the others as in ImageFolder"""

    images: list[tuple[Path, Path | None]]
    clashes: list[str]
    without_image: list[str]
    not_opened: list[str]
    other_captions: list[str]
    folders: list[str]


def list_folder(path: str | os.PathLike) -> Listing:
    """What is in a folder, by the names of its files; nothing is opened. Hidden files, what is no file, and what cannot
    be looked at are left out. Raises TrainingError if there is no such folder or it cannot be read."""
    folder = Path(path)
    if not folder.is_dir():
        raise TrainingError(Sentence(
            "There is no folder '{name}': give the folder that the training images are in.", name=str(path)
        ))  # fmt: skip
    try:
        entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    except OSError as error:
        raise unreadable(folder, error) from error
    files, endings = [entry for entry in entries if os.path.isfile(entry)], readable_endings()
    images = [file for file in files if file.suffix.lower() in endings]
    captions, clashes = _by_stem(file for file in files if file.suffix.lower() == ".txt")
    return Listing(
        [(image, captions.get(stem(image))) for image in images],
        clashes + _shared(images, captions),
        [captions[name].name for name in captions.keys() - set(map(stem, images))],
        [file.name for file in files if file.suffix.lower() in OTHER_ENDINGS - endings],
        [file.name for file in files if file.suffix.lower() in OTHER_CAPTIONS],
        [entry.name for entry in entries if os.path.isdir(entry) and _has_pictures(entry, endings)],
    )


def stem(file: Path) -> str:
    """A name without its ending; letters with marks, which systems store in two ways, in one of them."""
    return unicodedata.normalize("NFC", file.stem)


def unreadable(path: Path, error: OSError) -> TrainingError:
    """The error of a file or folder that the system does not let read."""
    return TrainingError(Sentence(
        "'{name}' cannot be read ({why}). Check its permissions.", name=path.name, why=error.strerror or str(error)
    ))  # fmt: skip


def _by_stem(files: Iterable[Path]) -> tuple[dict[str, Path], list[str]]:
    captions: dict[str, Path] = {}
    clashes = [
        Sentence(
            "'{name}' and '{other}' are captions of one name: remove one of the two files.",
            name=other.name, other=file.name,
        )
        for file in files if (other := captions.setdefault(stem(file), file)) is not file
    ]
    return captions, clashes


def _shared(images: Iterable[Path], captions: dict[str, Path]) -> list[str]:
    seen: dict[str, Path] = {}
    return [
        Sentence(
            "'{caption}' could belong to '{name}' or to '{other}': rename one of the images and give it a caption of "
            "its own.", caption=captions[stem(image)].name, name=other.name, other=image.name,
        )
        for image in images if (other := seen.setdefault(stem(image), image)) is not image and stem(image) in captions
    ]


def _has_pictures(folder: Path, endings: frozenset[str]) -> bool:
    try:
        return any(Path(name).suffix.lower() in endings for name in os.listdir(folder))
    except OSError:
        return False
