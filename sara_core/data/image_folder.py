"""A folder of images, each with its caption in a .txt file of the same name."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..errors import TrainingError
from ..wording import Sentence, amount, counted, listed
from .captioning import Captioning
from .captions import read_caption
from .listing import list_folder, unreadable
from .pictures import read_picture


class CaptionedImage(NamedTuple):
    """An image file, what it is trained under, and whether left and right change places."""

    path: Path
    caption: str
    is_mirrored: bool = False


@dataclass(frozen=True)
class ImageFolder:
    """images: those with a caption, by name, of one folder or, as read_folders has them, of several; the others are
    names of what is left over:

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

    def under(self, caption: str) -> "ImageFolder":
        """The same images, all with this caption."""
        return replace(self, images=[image._replace(caption=caption) for image in self.images])

    def text(self) -> str:
        """What matches and what is missing, a line each."""
        captions = {image.path: image.caption for image in self.images}
        lines = [f"{counted(len(captions), 'image')} with a caption"]
        if empty := [path.name for path, caption in captions.items() if not caption]:
            lines.append(f"{counted(len(empty), 'caption')} without text: {listed(empty)}")
        return "\n".join([*lines, *self.left_over()])

    def left_over(self) -> list[Sentence]:
        """What is not trained on and why, a line for each reason."""
        said = []
        if self.without_caption:
            said.append(Sentence(
                "{images} left out, for want of a .txt file of the same name: {names}",
                images=amount(len(self.without_caption), "1 image", "{count} images"),
                names=listed(self.without_caption),
            ))  # fmt: skip
        if self.not_opened:
            said.append(Sentence(
                "{files} left out, of a kind that cannot be read here (save pictures as PNG or JPEG): {names}",
                files=amount(len(self.not_opened), "1 file", "{count} files"), names=listed(self.not_opened),
            ))  # fmt: skip
        if self.without_image:
            captions = amount(len(self.without_image), "1 caption", "{count} captions")
            said.append(Sentence(
                "{captions} without an image: {names}", captions=captions, names=listed(self.without_image)
            ))  # fmt: skip
        if self.other_captions:
            said.append(Sentence(
                "{files} not read, because captions are taken from .txt files only: {names}",
                files=amount(len(self.other_captions), "1 file", "{count} files"), names=listed(self.other_captions),
            ))  # fmt: skip
        if self.folders:
            said.append(Sentence(
                "{folders} with pictures not looked into (pictures are taken from the folder itself, each as often "
                "as the others): {names}", folders=amount(len(self.folders), "1 folder", "{count} folders"),
                names=listed(self.folders),
            ))  # fmt: skip
        return said

    def checked(self) -> str:
        """Read every image once, so that what is wrong with one is known before hours of work. Returns lines on what
        the training sees otherwise than it is stored, empty if there is nothing.

        Raises TrainingError that names all images that cannot be read.
        """
        broken, by_remark = [], {}
        for path in dict.fromkeys(image.path for image in self.images):
            try:
                for remark in read_picture(path).remarks:
                    by_remark.setdefault(remark, []).append(path.name)
            except TrainingError as error:
                broken.append(str(error))
        refuse_all(broken, "images cannot be trained on")
        return "\n".join(remark_lines(by_remark))

    def digest(self) -> str:
        """Identity of the images and captions, in their order: hex digest of their bytes.

        Raises TrainingError for an image that cannot be read.
        """
        result = hashlib.blake2b(digest_size=16)
        for path, caption, is_mirrored in self.images:
            try:
                image = path.read_bytes()
            except OSError as error:
                raise unreadable(path, error) from error
            for content in (image, caption.encode()):
                result.update(hashlib.blake2b(content).digest())
            if is_mirrored:  # said only where it is so: the digest of others is that of versions without
                result.update(b"mirrored")
        return result.hexdigest()


def digest_of_both(images: ImageFolder, class_images: ImageFolder | None) -> str:
    """Identity of the images of a training and of its class images, if it has any. Raises what `digest` raises."""
    if class_images is None:
        return images.digest()
    both = f"{images.digest()} {class_images.digest()}"
    return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()


def read_image_folder(path: str | os.PathLike, captioning: Captioning = Captioning()) -> ImageFolder:
    """The images of a folder with their captions, as UTF-8, without white space around them.

    Images are all files that end as a picture does that can be read here; what is in them is not looked at
    (ImageFolder.checked does). What is no file, or cannot be looked at, is left out, and so is an image that
    `captioning` gives no caption. Raises TrainingError if there is no such folder or it cannot be read, no image in it
    that is trained on, captions that are no text, one caption for two images or two for one.
    """
    listing = list_folder(path)
    if listing.clashes:
        raise TrainingError(listing.clashes[0])
    texts = _texts([caption for _, caption in listing.images])
    captions = {image: captioning.caption(text) for (image, _), text in zip(listing.images, texts)}
    found = ImageFolder(
        [CaptionedImage(image, caption) for image, caption in captions.items() if caption is not None],
        [image.name for image, caption in captions.items() if caption is None],
        listing.without_image,
        listing.not_opened,
        listing.other_captions,
        listing.folders,
    )
    if not found.images:
        raise TrainingError(_no_images(path, found))
    return found


def _no_images(path: str | os.PathLike, found: ImageFolder) -> str:
    rest = ". ".join(found.left_over())
    if not found.without_caption:
        return f"No image in '{path}' can be read here: put the training images there. {rest}".rstrip()
    return (
        f"No image in '{path}' has a caption ({counted(len(found.without_caption), 'image')}, "
        f"{counted(len(found.without_image), 'caption')}): put a .txt file with the caption beside each image, under "
        f"the same name. {rest}".rstrip()
    )


def _texts(files: Iterable[Path | None]) -> list[str | None]:
    texts, broken = [], []
    for file in files:
        try:
            texts.append(None if file is None else read_caption(file))
        except TrainingError as error:
            broken.append(str(error))
        except OSError as error:
            broken.append(str(unreadable(file, error)))
    refuse_all(broken, "captions cannot be read")
    return texts


def remark_lines(by_remark: Mapping[str, Sequence[str]]) -> list[str]:
    """Remark (pictures.py) → names of the images it holds for, as lines."""
    return [f"{counted(len(names), 'image')} with {remark}: {listed(names)}" for remark, names in by_remark.items()]


def refuse_all(broken: Sequence[str], what: str) -> None:
    """Raise TrainingError, if there is anything, with all of these sentences; where there are several, after how many
    it is of `what`."""
    if broken:
        raise TrainingError(broken[0] if len(broken) == 1 else f"{len(broken)} {what}. {' '.join(broken)}")
