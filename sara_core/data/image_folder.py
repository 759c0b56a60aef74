"""A folder of images, each with its caption in a .txt file of the same name."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import TrainingError
from ..wording import counted, listed
from .captions import OTHER_CAPTIONS, read_caption
from .pictures import OTHER_ENDINGS, read_picture, readable_endings


class CaptionedImage(NamedTuple):
    """An image file, and the text of the caption file beside it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class ImageFolder:
    """images: those with a caption, by name; the others are names of what is left over:

    without_caption, without_image: images and captions
    not_opened: pictures and films of kinds that cannot be read here
    other_captions: files in which other programs keep captions
    folders: those with pictures in them
    """

    images: list[CaptionedImage]
    without_caption: Sequence[str] = ()
    without_image: Sequence[str] = ()
    not_opened: Sequence[str] = ()
    other_captions: Sequence[str] = ()
    folders: Sequence[str] = ()

    def text(self) -> str:
        """What matches and what is missing, a line each."""
        lines = [f"{counted(len(self.images), 'image')} with a caption"]
        if empty := [image.path.name for image in self.images if not image.caption]:
            lines.append(f"{counted(len(empty), 'caption')} without text: {listed(empty)}")
        return "\n".join([*lines, *self.left_over()])

    def left_over(self) -> list[str]:
        """What is not trained on and why, a line for each reason."""
        said = []
        if self.without_caption:
            said.append(
                f"{counted(len(self.without_caption), 'image')} left out, for want of a .txt file of the same name: "
                f"{listed(self.without_caption)}"
            )
        if self.not_opened:
            said.append(
                f"{counted(len(self.not_opened), 'file')} left out, of a kind that cannot be read here (save pictures "
                f"as PNG or JPEG): {listed(self.not_opened)}"
            )
        if self.without_image:
            number = counted(len(self.without_image), "caption")
            said.append(f"{number} without an image: {listed(self.without_image)}")
        if self.other_captions:
            said.append(
                f"{counted(len(self.other_captions), 'file')} not read, because captions are taken from .txt files "
                f"only: {listed(self.other_captions)}"
            )
        if self.folders:
            said.append(
                f"{counted(len(self.folders), 'folder')} with pictures not looked into (pictures are taken from the "
                f"folder itself, each as often as the others): {listed(self.folders)}"
            )
        return said

    def checked(self) -> str:
        """Read every image once, so that what is wrong with one is known before hours of work. Returns lines on what
        the training sees otherwise than it is stored, empty if there is nothing.

        Raises TrainingError that names all images that cannot be read.
        """
        broken, by_remark = [], {}
        for image in self.images:
            try:
                for remark in read_picture(image.path).remarks:
                    by_remark.setdefault(remark, []).append(image.path.name)
            except TrainingError as error:
                broken.append(str(error))
        if len(broken) > 1:
            raise TrainingError(f"{len(broken)} images cannot be trained on. {' '.join(broken)}")
        if broken:
            raise TrainingError(broken[0])
        return "\n".join(
            f"{counted(len(names), 'image')} with {remark}: {listed(names)}" for remark, names in by_remark.items()
        )

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

    Images are all files that end as a picture does that can be read here; what is in them is not looked at
    (ImageFolder.checked does). What is no file, or cannot be looked at, is left out. Raises TrainingError if there is
    no such folder or it cannot be read, no image with a caption, captions that are no text, one caption for two images
    or two for one.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise TrainingError(f"There is no folder '{path}': give the folder that the training images are in.")
    try:
        entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from error
    files, endings = [entry for entry in entries if os.path.isfile(entry)], readable_endings()
    images = [file for file in files if file.suffix.lower() in endings]
    captions = _captions(file for file in files if file.suffix.lower() == ".txt")
    _refuse_shared_captions(images, captions)
    with_caption = [image for image in images if _stem(image) in captions]
    texts = _texts([captions[_stem(image)] for image in with_caption])
    found = ImageFolder(
        list(map(CaptionedImage, with_caption, texts)),
        [image.name for image in images if _stem(image) not in captions],
        [captions[stem].name for stem in captions.keys() - set(map(_stem, images))],
        [file.name for file in files if file.suffix.lower() in OTHER_ENDINGS - endings],
        [file.name for file in files if file.suffix.lower() in OTHER_CAPTIONS],
        [entry.name for entry in entries if os.path.isdir(entry) and _has_pictures(entry, endings)],
    )
    if not found.images:
        raise TrainingError(
            f"No image in '{path}' has a caption ({counted(len(images), 'image')}, "
            f"{counted(len(captions), 'caption')}): put a .txt file with the caption beside each image, under the "
            f"same name. {'. '.join(found.left_over())}".rstrip()
        )
    return found


def _stem(file: Path) -> str:
    """A name without its ending; letters with marks, which systems store in two ways, in one of them."""
    return unicodedata.normalize("NFC", file.stem)


def _captions(files: Iterable[Path]) -> dict[str, Path]:
    """By the stem of their names."""
    captions: dict[str, Path] = {}
    for file in files:
        if (other := captions.setdefault(_stem(file), file)) is not file:
            raise TrainingError(
                f"'{other.name}' and '{file.name}' are captions of one name: remove one of the two files."
            )
    return captions


def _texts(files: Iterable[Path]) -> list[str]:
    texts, broken = [], []
    for file in files:
        try:
            texts.append(read_caption(file))
        except TrainingError as error:
            broken.append(str(error))
        except OSError as error:
            broken.append(str(_unreadable(file, error)))
    if len(broken) > 1:
        raise TrainingError(f"{len(broken)} captions cannot be read. {' '.join(broken)}")
    if broken:
        raise TrainingError(broken[0])
    return texts


def _has_pictures(folder: Path, endings: frozenset[str]) -> bool:
    try:
        return any(Path(name).suffix.lower() in endings for name in os.listdir(folder))
    except OSError:
        return False


def _refuse_shared_captions(images: Iterable[Path], captions: dict[str, Path]) -> None:
    seen: dict[str, Path] = {}
    for image in images:
        other = seen.setdefault(_stem(image), image)
        if other is not image and _stem(image) in captions:
            raise TrainingError(
                f"'{captions[_stem(image)].name}' could belong to '{other.name}' or to '{image.name}': rename one of "
                "the images and give it a caption of its own."
            )


def _unreadable(path: Path, error: OSError) -> TrainingError:
    return TrainingError(f"'{path.name}' cannot be read ({error.strerror or error}): check its permissions.")
