"""Several folders of images as one set to train on: how often each counts, mirrored or not, and its pixels."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..errors import TrainingError
from ..wording import counted, listed
from .buckets import cut
from .captioning import Captioning
from .image_folder import CaptionedImage, ImageFolder, read_image_folder, refuse_all, remark_lines
from .pictures import read_picture, scaled

MOST_REPEATS = 1000


class Share(NamedTuple):
    """A folder of images, and how often each of them is shown where those of others are shown once."""

    folder: str | os.PathLike
    repeats: int = 1


def read_folders(
    shares: Iterable[Share], captioning: Captioning = Captioning(), mirrored_too: bool = False
) -> ImageFolder:
    """The images of all these folders, in their order; each image as often as its folder's share says, and once more
    with left and right exchanged where `mirrored_too`.

    Raises TrainingError as read_image_folder does.
    """
    found = [(read_image_folder(share.folder, captioning), share.repeats) for share in shares]
    images = []
    for folder, repeats in found:
        mirrored = [image._replace(is_mirrored=True) for image in folder.images] if mirrored_too else []
        images += [*folder.images, *mirrored] * repeats
    folders = [folder for folder, _ in found]
    rest = ("without_caption", "without_image", "not_opened", "other_captions", "folders")
    return ImageFolder(images, **{name: [entry for one in folders for entry in getattr(one, name)] for name in rest})


class Pictures(NamedTuple):
    """pixels: of each image, fp32 [height, width, 3], 0 … 1; the same tensor for images that are the same picture;
    lines: on what the training sees otherwise than it is stored"""

    pixels: list[torch.Tensor]
    lines: list[str]


def read_pictures(
    images: Sequence[CaptionedImage], resolution: int, buckets: bool,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pictures:  # fmt: skip
    """Every image as it is trained: cut and scaled as buckets.cut says.

    on_progress: called with the pictures read and to be read. Raises TrainingError that names all images that cannot be
    read.
    """
    paths, broken, by_remark, tiny = list(dict.fromkeys(image.path for image in images)), [], {}, []
    upright = {}
    for number, path in enumerate(paths, start=1):
        try:
            picture = read_picture(path)
        except TrainingError as error:
            broken.append(str(error))
        else:
            taken = cut(picture.image.size, resolution, buckets)
            upright[path] = _tensor(scaled(picture.image, taken.size, taken.box))
            tiny += [path.name] if taken.is_blurred else []
            for remark in picture.remarks:
                by_remark.setdefault(remark, []).append(path.name)
        on_progress(number, len(paths))
    refuse_all(broken, "images cannot be trained on")
    mirrored = {image.path: upright[image.path].flip(1) for image in images if image.is_mirrored}
    pixels = [(mirrored if image.is_mirrored else upright)[image.path] for image in images]
    return Pictures(pixels, [*_size_lines(upright), *_tiny_lines(tiny), *remark_lines(by_remark)])


def _tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)


def _size_lines(pixels: dict[Path, torch.Tensor]) -> list[str]:
    sizes: dict[str, int] = {}
    for picture in pixels.values():
        height, width, _ = picture.shape
        sizes[f"{width} × {height}"] = sizes.get(f"{width} × {height}", 0) + 1
    return [", ".join(f"{count} of {size}" for size, count in sorted(sizes.items(), key=lambda item: -item[1]))]


def _tiny_lines(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [
        f"{counted(len(names), 'image')} smaller than trained on by far, and blurred so: {listed(names)}. Give larger "
        "ones, or choose a lower resolution"
    ]
