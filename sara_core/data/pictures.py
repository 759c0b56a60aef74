"""A picture file as a person sees it: upright, in sRGB, on one plain ground, with 8 bits a channel.

Pillow, which reads it, is imported only where a picture or a folder of them is opened.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import TrainingError
from ..wording import Sentence, shown
from . import colours

if TYPE_CHECKING:
    from PIL import Image

INSTALL = "pip install diffusers transformers accelerate sentencepiece pillow"
# What a picture's file may hold that the training does not see, or not so: in words, of one or several pictures.
FRAMES = "more than one frame or page, of which the first is taken"
TRANSPARENT = "transparent places, which become white"
PROFILE = "a colour profile that cannot be used; the colours are taken for sRGB"
EXIF = "damaged EXIF data; they are taken as they are stored, not turned"
# TIFF's tags, which EXIF data have too; those values of the first that exchange width and height
_ORIENTATION, _WIDTH, _HEIGHT = 274, 256, 257
_ON_ITS_SIDE = (5, 6, 7, 8)
# Where Pillow keeps a file's EXIF data. Turning the picture it would write them anew, and one odd value fails that.
_EXIF_DATA = ("exif", "Raw profile type exif")
# Formats that Pillow knows by name and that are no pictures to it, or none without another program.
_NO_PICTURES = {"EPS", "IPTC", "MPEG"}
# Of pictures, too, but read by other programs: what to name instead of passing over it in silence.
OTHER_ENDINGS = frozenset(
    ".heic .heif .hif .jxl .jxr .wdp .hdp .avif .avifs .webp .jp2 .j2k .jpx .svg .svgz .eps .ai .exr .hdr .xcf .kra "
    ".ora .clip .afphoto .emf .wmf .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .raf .orf .rw2 .pef .srw .x3f .3fr "
    ".iiq .erf .mrw .raw .jif .jfi .webm .mp4 .mov .mkv .avi .m4v .mpg .mpeg".split()
)


class Picture(NamedTuple):
    """image: a PIL image of mode RGB; remarks: those of FRAMES, TRANSPARENT, PROFILE and EXIF that hold for its file"""

    image: Image.Image
    remarks: tuple[str, ...]


@functools.cache
def _formats() -> dict[str, frozenset[str]]:
    """Pillow's name of each format that can be decoded here → the endings of its files, in small letters."""
    Image = _pillow()
    from PIL import ImageFile, features

    Image.init()
    lacking = {
        name for name, codec in (("AVIF", "avif"), ("WEBP", "webp"), ("JPEG2000", "jpg_2000"), ("JPEG", "jpg"))
        if not features.check(codec)
    }  # fmt: skip
    endings = Image.registered_extensions().items()
    return {
        name: frozenset(ending for ending, its_format in endings if its_format == name)
        for name, (opener, _) in Image.OPEN.items()
        if name not in _NO_PICTURES | lacking
        and not (isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile))
    }


def readable_endings() -> frozenset[str]:
    """The endings, like ".jpg", of the picture files that can be read here. Raises TrainingError without Pillow."""
    # A second picture in a JPEG, as cameras make them, is a format of its own that has no opener.
    return frozenset().union({".mpo"}, *_formats().values())


def read_picture(path: Path) -> Picture:
    """The picture in a file: turned as its EXIF data say, its colour profile converted to sRGB, what is transparent on
    white, 16-bit and float values scaled to 8 bits; of several frames or pages the first.

    Raises TrainingError, with the file's name, if it is damaged, no picture, too large to open safely, or has values
    whose white is not known; and without Pillow.
    """
    with _opened(path) as file:
        remarks = [FRAMES] if file.format != "PSD" and getattr(file, "n_frames", 1) > 1 else []
        stored = colours.stored_as(file)
        file.load()
        image, its_exif_is_sound = _upright(file)
        if not its_exif_is_sound:
            remarks.append(EXIF)
        plain = colours.plain(image, stored)
    if plain.is_transparent:
        remarks.append(TRANSPARENT)
    if not plain.profile_is_sound:
        remarks.append(PROFILE)
    return Picture(plain.image, tuple(remarks))


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of the picture as `read_picture` turns it, in pixels, from the beginning of its file alone.

    Raises TrainingError as that does, but for damage further on in the file.
    """
    with _opened(path) as file:
        try:
            # What a PNG has of this behind its pixels would have all of them decoded; few have.
            is_here = file.format != "PNG" or "exif" in file.info
            orientation = file.getexif().get(_ORIENTATION) if is_here else None
        except Exception:  # as in _upright
            orientation = None
        tags = getattr(file, "tag_v2", {})  # newer versions of Pillow turn the size of a TIFF already
        stored = (tags[_WIDTH], tags[_HEIGHT]) if _WIDTH in tags and _HEIGHT in tags else file.size
        return stored[::-1] if orientation in _ON_ITS_SIDE else stored


def scaled(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """The part of an RGB image in `box` (left, top, right, bottom), scaled to this width and height."""
    from PIL import Image

    return image.resize(size, Image.Resampling.LANCZOS, box=box)


def thumbnail(path: Path, side: int) -> bytes:
    """The picture in a file as a person sees it, at most `side` pixels wide and high, as a JPEG file.

    Raises TrainingError as `read_picture`.
    """
    image, content = read_picture(path).image, io.BytesIO()
    image.thumbnail((side, side))
    image.save(content, "JPEG", quality=85)
    return content.getvalue()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture in a file, not decoded yet; what goes wrong inside is a TrainingError with the file's name."""
    Image = _pillow()
    try:
        with _without_warnings(), Image.open(path, formats=list(_formats())) as file:
            yield file
    except Image.DecompressionBombError as error:
        raise TrainingError(Sentence(
            "The image '{name}' has more than {most} million pixels, which is too many to open safely: make it "
            "smaller.", name=path.name, most=f"{2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f}",
        )) from error  # fmt: skip
    except TrainingError as error:
        raise TrainingError(f"The image '{path.name}' {error}") from error
    except Exception as error:  # Pillow's readers raise what they run into: struct.error, IndexError, SyntaxError …
        raise TrainingError(Sentence(
            "The image '{name}' is damaged or no image: {why}", name=path.name,
            why=shown(error) or type(error).__name__,
        )) from error  # fmt: skip


def _pillow():
    try:
        from PIL import Image
    except ImportError as error:
        raise TrainingError(f"This needs diffusers and its company ({error}): {INSTALL}.") from error
    return Image


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Of large pictures, odd EXIF data and the like, which either are errors in the end or do not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image) -> tuple[object, bool]:
    """The image turned as its EXIF data say; and whether they could be read."""
    from PIL import ImageOps

    try:
        image.getexif()  # from now on the image keeps what they say
    except Exception:  # what damaged data lead to is not foreseen there
        return image.copy(), False
    for name in _EXIF_DATA:
        image.info.pop(name, None)
    return ImageOps.exif_transpose(image), True
