"""A folder of images, each with its caption in a .txt file of the same name."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import TrainingError
from ..wording import counted, listed

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class CaptionedImage(NamedTuple):
    """An image file, and the text of the caption file beside it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class ImageFolder:
    """images: those with a caption, by name; without_caption, without_image: names of the files left over"""

    images: list[CaptionedImage]
    without_caption: list[str]
    without_image: list[str]

    def text(self) -> str:
        """What matches and what is missing, a line each."""
        lines = [f"{counted(len(self.images), 'image')} with a caption"]
        if self.without_caption:
            lines.append(
                f"{counted(len(self.without_caption), 'image')} left out, for want of a .txt file of the same name: "
                f"{listed(self.without_caption)}"
            )
        if self.without_image:
            number = counted(len(self.without_image), "caption")
            lines.append(f"{number} without an image: {listed(self.without_image)}")
        return "\n".join(lines)

    def digest(self) -> str:
        """Identity of the images and captions, in their order: hex digest of their bytes.

        Raises TrainingError for an image that cannot be read.
        """
        result = hashlib.blake2b(digest_size=16)
        for path, caption in self.images:
            try:
                image = path.read_bytes()
            except OSError as error:
                raise _unreadable(path, error) from error
            for content in (image, caption.encode()):
                result.update(hashlib.blake2b(content).digest())
        return result.hexdigest()


def read_image_folder(path: str | os.PathLike) -> ImageFolder:
    """The images of a folder with their captions, as UTF-8, without white space around them.

    What is no file, or cannot be looked at, is left out. Raises TrainingError if there is no such folder or it cannot
    be read, no image with a caption, a caption that is no text, or one caption for two images.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise TrainingError(f"There is no folder '{path}': give the folder that the training images are in.")
    try:
        files = [file for file in sorted(folder.iterdir()) if os.path.isfile(file) and not file.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from error
    images = [file for file in files if file.suffix.lower() in IMAGE_ENDINGS]
    captions = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
    _refuse_shared_captions(images, captions)
    found = ImageFolder(
        [CaptionedImage(image, _text(captions[image.stem])) for image in images if image.stem in captions],
        [image.name for image in images if image.stem not in captions],
        [captions[stem].name for stem in captions.keys() - {image.stem for image in images}],
    )
    if not found.images:
        raise TrainingError(
            f"No image in '{path}' has a caption ({counted(len(images), 'image')}, "
            f"{counted(len(captions), 'caption')}): put a .txt file with the caption beside each image, under the "
            "same name."
        )
    return found


def _refuse_shared_captions(images: Iterable[Path], captions: dict[str, Path]) -> None:
    seen: dict[str, Path] = {}
    for image in images:
        other = seen.setdefault(image.stem, image)
        if other is not image and image.stem in captions:
            raise TrainingError(
                f"'{captions[image.stem].name}' could belong to '{other.name}' or to '{image.name}': rename one of "
                "the images and give it a caption of its own."
            )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise TrainingError(f"'{path.name}' is not UTF-8 text: save it as UTF-8.") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> TrainingError:
    return TrainingError(f"'{path.name}' cannot be read ({error.strerror or error}): check its permissions.")
