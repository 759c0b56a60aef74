"""Scikit-learn's 1,797 handwritten digits as 64×64 RGB pictures, and who may see which of them.

Pictures are float32 arrays [n, 64, 64, 3] in 0..1, the layout of ComfyUI's IMAGE.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from .settings import SIZE

Colour = tuple[float, float, float]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLIT_SEED = 20240911
STYLE_COUNT = 240
TEST_COUNT = 360

# The base learns these three inks as well, so that words in front of "a handwritten digit" mean something to it.
INKS = {"red": (0.80, 0.10, 0.10), "green": (0.05, 0.50, 0.15), "blue": (0.10, 0.20, 0.80)}


class DigitSet(NamedTuple):
    """Ink coverage float32 [n, 64, 64] in 0..1, and the digit written, int64 [n]."""

    ink: np.ndarray
    labels: np.ndarray


class Split(NamedTuple):
    """Disjoint parts of the 1,797 digits.

    base (1,197): the base model and its autoencoder learn these, and the judge is fitted on them.
    style (240): the style's training pictures are made from these; the base has not seen them.
    test (360): nobody learns these; the judge's accuracy is measured on them.
    """

    base: DigitSet
    style: DigitSet
    test: DigitSet


def load_split() -> Split:
    """The fixed split; the same on every machine."""
    bunch = load_digits()
    order = np.random.RandomState(SPLIT_SEED).permutation(len(bunch.target))
    test, style, base = np.split(order, [TEST_COUNT, TEST_COUNT + STYLE_COUNT])

    def part(rows: np.ndarray) -> DigitSet:
        ink = np.stack([_upscale(image) for image in bunch.images[rows]])
        return DigitSet(ink, bunch.target[rows].astype(np.int64))

    return Split(part(base), part(style), part(test))


def _upscale(image: np.ndarray) -> np.ndarray:
    """8×8 values in 0..16 → smooth ink coverage [64, 64] in 0..1, with an empty margin around the digit."""
    padded = Image.fromarray(np.pad(image / 16, 1).astype(np.float32))
    # Bicubic alone leaves a grey blur; a smooth step gives strokes an edge.
    coverage = np.clip((np.asarray(padded.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) - 0.12) / 0.76, 0, 1)
    return coverage * coverage * (3 - 2 * coverage)


def paint(ink: np.ndarray, stroke: Colour = (0, 0, 0), paper: Colour = (1, 1, 1),
          glow: Colour | None = None) -> np.ndarray:
    """Ink coverage [n, 64, 64] drawn in one colour on paper of another: [n, 64, 64, 3] in 0..1.

    glow: the colour of a soft halo around the strokes; none by default.
    """
    picture = np.broadcast_to(np.asarray(paper, np.float32), (*ink.shape, 3))
    if glow is not None:
        halo = gaussian_filter(ink, sigma=(0, 3, 3))
        picture = _over(picture, halo, glow)
    return _over(picture, ink, stroke)


def _over(picture: np.ndarray, cover: np.ndarray, colour: Colour) -> np.ndarray:
    cover = cover[..., None].astype(np.float32)
    return cover * np.asarray(colour, np.float32) + (1 - cover) * picture


def caption(digit: int, prefix: str = "") -> str:
    """The prompt for a digit, e.g. "red ink, a handwritten digit seven" with the prefix "red ink"."""
    words = f"a handwritten digit {WORDS[digit]}"
    return f"{prefix}, {words}" if prefix else words
