"""What is stored in a picture's file → the colours that a person sees, 8 bits a channel, in sRGB and on white."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import TrainingError

if TYPE_CHECKING:
    from PIL import Image

GROUND = (255, 255, 255)
_WHITE_IS_ZERO, _SIGNED = 0, (2,)
# TIFF's tags
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
# Modes of a colour with its transparency, some of them multiplied by it → the ones to work with
_WITH_ALPHA = {"RGBA": "RGBA", "RGBa": "RGBA", "LA": "LA", "La": "LA", "PA": "RGBA"}
_COLOUR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
# A file's gamma is of use where it is not about that of sRGB, 1 / 2.2.
_SRGB_GAMMA, _GAMMA_TOLERANCE = 1 / 2.2, 0.05


class Stored(NamedTuple):
    """What the pixels do not say themselves once they are decoded.

    most: the largest value of a sample in a mode of 16 or 32 bits
    is_inverted: whether that one, or 1 as a float, is black
    transparent: the colour or palette entries that are transparent, in the decoded samples; None without any
    profile: an ICC profile, or None; gamma: of the file, or None if its colours are sRGB's
    """

    most: int
    is_inverted: bool
    transparent: object
    profile: bytes | None
    gamma: float | None


class Plain(NamedTuple):
    """image: a PIL image of mode RGB; is_transparent: whether some of it was; profile_is_sound: whether the file's
    colour profile, if it has any, was applied"""

    image: Image.Image
    is_transparent: bool
    profile_is_sound: bool


def stored_as(file: Image.Image) -> Stored:
    """Of an opened PIL image, before it is decoded."""
    tags = getattr(file, "tag_v2", {})
    bits = max(tags.get(_BITS, ()), default=16) - (tags.get(_SAMPLE_FORMAT) == _SIGNED)
    raw = _raw_mode(file)
    profile = file.info.get("icc_profile") or None
    gamma = file.info.get("gamma") if profile is None and "srgb" not in file.info else None
    return Stored(
        most=(1 << bits) - 1,
        is_inverted=file.mode.startswith(("I", "F")) and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
        transparent=_in_decoded_samples(file.info.get("transparency"), file.mode, raw),
        profile=profile,
        gamma=float(gamma) if gamma else None,
    )


def _raw_mode(file) -> str:
    """How the samples lie in the file: "RGB;16B"; empty where that is not said."""
    parameters = file.tile[0][3] if file.tile else ""
    raw = parameters[0] if isinstance(parameters, tuple) and parameters else parameters
    return raw if isinstance(raw, str) else ""


def _in_decoded_samples(transparent, mode: str, raw: str):
    """A transparent colour as the file has it, of 2, 4 or 16 bits, in the 8 bits that these are decoded to."""
    if mode == "L" and raw in ("L;2", "L;4") and isinstance(transparent, int):
        return transparent * 255 // ((1 << int(raw[-1])) - 1)
    if mode == "RGB" and raw.startswith("RGB;16") and isinstance(transparent, tuple):
        return tuple(sample >> 8 for sample in transparent)
    return transparent


def plain(image: Image.Image, stored: Stored) -> Plain:
    """The picture as it is seen. image: decoded and upright

    Raises TrainingError, a clause without its subject, for float values outside 0 … 1: nobody knows which is white.
    """
    from PIL import Image

    colour, alpha = _colour_and_alpha(image, stored)
    colour, profile_is_sound = _in_srgb(colour, stored)
    if alpha is None or alpha.getextrema()[0] == 255:
        return Plain(colour, False, profile_is_sound)
    ground = Image.new("RGB", colour.size, GROUND)
    return Plain(Image.composite(colour, ground, alpha), True, profile_is_sound)


def _colour_and_alpha(image, stored: Stored) -> tuple:
    """The colour in one of the modes of _COLOUR_SPACES, and a mask of what is opaque, or None."""
    mode, transparent = image.mode, stored.transparent
    if mode.startswith("I"):
        samples = np.asarray(image)
        return _grey(_of_one(samples, stored)), None if transparent is None else _mask(samples != transparent)
    if mode == "F":
        return _grey(_as_white_is(_within_one(np.asarray(image)), stored)), None
    if mode == "1":
        image = image.convert("L")
    elif mode == "P" and (transparent is not None or image.palette.mode == "RGBA"):
        image = image.convert("RGBA")
    elif mode == "P" or mode not in (*_COLOUR_SPACES, *_WITH_ALPHA):  # YCbCr, HSV, RGBX …
        image = image.convert("RGB")
    if image.mode in _WITH_ALPHA:
        image = image.convert(_WITH_ALPHA[image.mode])
        return image.convert(image.mode.removesuffix("A")), image.getchannel("A")
    if transparent is None or mode == "P":
        return image, None
    samples = np.asarray(image)
    differs = samples != np.asarray(transparent)
    return image, _mask(differs.any(-1) if differs.ndim == 3 else differs)


def _of_one(samples: np.ndarray, stored: Stored) -> np.ndarray:
    """Whole numbers → 0 … 1."""
    if stored.most == 2**32 - 1:  # without a sign in the file, and read as if they had one
        samples = samples.view(np.uint32)
    return _as_white_is(samples.clip(0, None) / stored.most, stored)


def _as_white_is(shares: np.ndarray, stored: Stored) -> np.ndarray:
    return 1 - shares if stored.is_inverted else shares


def _within_one(samples: np.ndarray) -> np.ndarray:
    if not np.isfinite(samples).all() or samples.min() < 0 or samples.max() > 1:
        raise TrainingError(
            f"has float values from {samples.min():.3g} to {samples.max():.3g}, where 0 to 1 is black to white: save "
            "it as PNG or JPEG."
        )
    return samples


def _grey(shares: np.ndarray):
    """0 … 1 → a PIL image of mode L."""
    from PIL import Image

    return Image.fromarray((shares.clip(0, 1) * 255).round().astype(np.uint8))


def _mask(is_opaque: np.ndarray):
    from PIL import Image

    return Image.fromarray(is_opaque.astype(np.uint8) * 255)


def _in_srgb(image, stored: Stored) -> tuple:
    """The image in mode RGB; and whether its profile, if it has any, was applied."""
    if stored.profile is not None:
        converted = _by_profile(image, stored.profile)
        return converted or _without_profile(image), converted is not None
    image = _without_profile(image)
    if stored.gamma is None or abs(stored.gamma / _SRGB_GAMMA - 1) < _GAMMA_TOLERANCE:
        return image, True
    power = _SRGB_GAMMA / stored.gamma
    return image.point([round(255 * (level / 255) ** power) for level in range(256)] * 3), True


def _without_profile(image):
    from PIL import ImageCms

    if image.mode != "LAB":
        return image.convert("RGB")
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")


def _by_profile(image, content: bytes):
    """The image in sRGB; None if the profile is damaged or is of other colours than these."""
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        space = profile.profile.xcolor_space.strip()
        if image.mode == "L" and space == "RGB":  # a grey picture out of a program that works in colour
            image = image.convert("RGB")
        if _COLOUR_SPACES[image.mode] != space:
            return None
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None
