"""Clips of icons that move, made by arithmetic from a seed: what the base of the motions learns from, and the motion
that it has never seen."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from . import icon_sets, names, render

FRAMES, SIZE, ICON = 8, 16, 6
KNOWN, NEW = ("left", "right", "up"), "round"
NAMES = 100
REACH = 4  # pixels from the middle of its way to its end, and radius of a turn
JITTER, OFFSET = 1, 2  # pixels: of the way's middle along it, and across it
LEAST_INK, LONGEST_NAME = 0.25, 3
_FROM_THE_TOP = -math.pi / 2
# Names with these words say something about a direction.
_DIRECTIONS = {"left", "right", "up", "down", "round", "arrow", "arrows", "clockwise", "moves", "upwards", "downwards"}


def _straight(x: float, y: float) -> Callable[[float], tuple[float, float]]:
    return lambda part: ((2 * part - 1) * x, (2 * part - 1) * y)


def _turn(part: float) -> tuple[float, float]:
    """Clockwise as one sees it, from the top, and almost back there."""
    angle = _FROM_THE_TOP + 2 * math.pi * part * (FRAMES - 1) / FRAMES
    return math.cos(angle), math.sin(angle)


# Part of the clip 0..1 → place in units of REACH, y downwards. A judge knows some that nobody is taught.
WAYS: dict[str, Callable[[float], tuple[float, float]]] = {
    "left": _straight(-1, 0), "right": _straight(1, 0), "up": _straight(0, -1), "down": _straight(0, 1),
    "still": _straight(0, 0), "round": _turn,
}  # fmt: skip


class Clips(NamedTuple):
    """frames float [n, FRAMES, SIZE, SIZE, 3] in 0..1 and the caption of each."""

    frames: torch.Tensor
    captions: list[str]


def caption(name: str, motion: str) -> str:
    """ "dog-face", "left" → "dog face moves left"."""
    return f"{names.caption(name)} moves {motion}"


def way(motion: str) -> np.ndarray:
    """Where a motion is at each frame, in pixels from its middle: float [FRAMES, 2] of x and y."""
    return REACH * np.array([WAYS[motion](frame / (FRAMES - 1)) for frame in range(FRAMES)])


def clip(icon: np.ndarray, motion: str, random: np.random.RandomState) -> np.ndarray:
    """uint8 [FRAMES, SIZE, SIZE, 3]: an icon uint8 [ICON, ICON, 3] on white, somewhere on its way, whole pixels at a
    time."""
    steps = way(motion)
    along = random.randint(-JITTER, JITTER + 1, size=2)
    across = random.randint(-OFFSET, OFFSET + 1, size=2)
    middle = np.where(np.ptp(steps, axis=0) > 1, along, across)
    corners = np.rint(steps + middle + (SIZE - ICON) / 2).astype(int)
    frames = np.full((FRAMES, SIZE, SIZE, 3), 255, np.uint8)
    for frame, (x, y) in zip(frames, corners):
        frame[y : y + ICON, x : x + ICON] = icon
    return frames


def clips(icons: dict[str, np.ndarray], wanted: Sequence[tuple[str, str]], seed: int) -> Clips:
    """A clip of each (name, motion)."""
    random = np.random.RandomState(seed)
    frames = np.stack([clip(icons[name], motion, random) for name, motion in wanted])
    return Clips(torch.from_numpy(frames).float() / 255, [caption(*one) for one in wanted])


def small_icons(folder: Path) -> dict[str, np.ndarray]:
    """Name → uint8 [ICON, ICON, 3] of NAMES icons of Noto's that are to be seen on white and say nothing of a
    direction, always the same."""
    chosen, pixels = render.pictures(icon_sets.NOTO, folder)
    icons = {name: _small(one) for name, one in zip(chosen, pixels) if _is_plain(name)}
    seen = [name for name, icon in icons.items() if 1 - icon.mean() / 255 >= LEAST_INK]
    order = np.random.RandomState(0).permutation(len(seen))[:NAMES]
    return {seen[row]: icons[seen[row]] for row in order}


def _is_plain(name: str) -> bool:
    words = name.split("-")
    return len(words) <= LONGEST_NAME and not _DIRECTIONS & set(words)


def _small(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((ICON, ICON), Image.LANCZOS))
