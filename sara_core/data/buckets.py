"""Which size a picture is trained in, and which part of it: as much of it as possible, in about as many pixels as the
square of the resolution has (the "buckets" of Novel AI, 2022)."""

import functools
from typing import NamedTuple

from ..errors import TrainingError

STEP = 64  # pixels; every known model works with sides that are multiples of it
BLURRED = 1.5  # how many times as wide a part may become and still be sharp enough to learn from
LONGEST = 4  # how many times as long as wide a size may be


class Cut(NamedTuple):
    """size: width and height, in pixels, that the part is scaled to; box: the part, as left, top, right and bottom in
    pixels of the upright picture, in its middle"""

    size: tuple[int, int]
    box: tuple[float, float, float, float]

    @property
    def is_blurred(self) -> bool:
        """Whether there is so little in the picture that it has to be enlarged by far."""
        return self.size[0] > BLURRED * (self.box[2] - self.box[0])


def cut(picture: tuple[int, int], resolution: int, buckets: bool, step: int = STEP) -> Cut:
    """How a picture of this width and height is trained: in the bucket that loses least of it, or as a square.

    resolution: side of the square, in pixels, a multiple of `step`, as the sides of all buckets are; TrainingError for
    another one
    """
    check_resolution(resolution, step)
    sizes = bucket_sizes(resolution, step) if buckets else ((resolution, resolution),)
    width, height = max(sizes, key=lambda size: (_kept(picture, size), size[0] * size[1]))
    wide = min(picture[0], picture[1] * width / height)
    high = wide * height / width
    left, top = (picture[0] - wide) / 2, max(0.0, (picture[1] - high) / 2)
    return Cut((width, height), (left, top, left + wide, min(picture[1], top + high)))


def check_resolution(resolution: int, step: int = STEP) -> None:
    """Raise TrainingError unless it is a multiple of `step`."""
    if resolution < step or resolution % step:
        raise TrainingError(f"The resolution must be a multiple of {step}, not {resolution}.")


@functools.lru_cache(64)
def bucket_sizes(resolution: int, step: int = STEP) -> tuple[tuple[int, int], ...]:
    """Width and height of all buckets: multiples of `step`, of at most resolution² pixels, neither side of which could
    be longer beside the other."""

    def longest_beside(side: int) -> int:
        return resolution**2 // side // step * step

    pairs = ((side, longest_beside(side)) for side in range(step, LONGEST * resolution + 1, step))
    return tuple(
        (width, height) for width, height in pairs
        if height and longest_beside(height) == width and max(width, height) <= LONGEST * min(width, height)
    )


def _kept(picture: tuple[int, int], size: tuple[int, int]) -> float:
    """The share of a picture that is left when it is cut to the shape of this size."""
    ratio = picture[0] * size[1] / (picture[1] * size[0])
    return min(ratio, 1 / ratio)
