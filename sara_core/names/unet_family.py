"""Which family a UNet belongs to: by the width of its text embeddings and, for SDXL's, the depth of its blocks."""

import re
from collections.abc import Callable, Iterable, Mapping

from .unet import context_width, has_known_blocks

_ON_THE_WAY_DOWN = re.compile(
    r"(?:input_blocks\.(\d+)\.1|down_blocks\.(\d+)\.attentions\.(\d+))\.transformer_blocks\.(?P<number>\d+)\."
)


def of_unet(text_width: int, depths: tuple[int, ...] | None = None) -> Callable[[Mapping[str, tuple[int, ...]]], bool]:
    """Whether parameters (name → shape), in either naming, are those of a UNet that takes text embeddings of this
    width; and with `depths` also of so many transformer blocks in each attention of the way down."""

    def is_of(shapes: Mapping[str, tuple[int, ...]]) -> bool:
        told = context_width(shapes) == text_width and depths in (None, _depths(shapes))
        return told and has_known_blocks(shapes)

    return is_of


def _depths(names: Iterable[str]) -> tuple[int, ...]:
    depths: dict[tuple[int, ...], int] = {}
    for match in filter(None, map(_ON_THE_WAY_DOWN.match, names)):
        block = tuple(int(number) for number in match.groups()[:3] if number is not None)
        depths[block] = max(depths.get(block, 0), int(match["number"]) + 1)
    return tuple(depths[block] for block in sorted(depths))
