"""Which family a UNet belongs to: by the width of its text embeddings and, for SDXL's, the depth of its blocks."""

import re
from collections.abc import Iterable, Mapping

from .unet import context_width

_BY_CONTEXT_WIDTH = {768: "SD1.5", 1024: "SD2.1", 1280: "SDXL Refiner", 2048: "SDXL"}
# Transformer blocks in each attention of the way down. SDXL itself has 2, 2, 10 and 10.
_DISTILLED_FROM_SDXL = {
    (2, 2, 4, 4): "SSD-1B",
    (1, 1, 2, 2): "Segmind Vega",
    (2, 5): "KOALA 700M",
    (2, 6): "KOALA 1B",
}
_ON_THE_WAY_DOWN = re.compile(
    r"(?:input_blocks\.(\d+)\.1|down_blocks\.(\d+)\.attentions\.(\d+))\.transformer_blocks\.(?P<number>\d+)\."
)


def unet_family(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The family in the words its users know, None if the width of the text embeddings is of none.

    shapes: name → shape of a UNet's parameters, in diffusers' or ComfyUI's naming
    """
    family = _BY_CONTEXT_WIDTH.get(context_width(shapes))
    return _DISTILLED_FROM_SDXL.get(_depths(shapes), family) if family == "SDXL" else family


def _depths(names: Iterable[str]) -> tuple[int, ...]:
    depths: dict[tuple[int, ...], int] = {}
    for match in filter(None, map(_ON_THE_WAY_DOWN.match, names)):
        block = tuple(int(number) for number in match.groups()[:3] if number is not None)
        depths[block] = max(depths.get(block, 0), int(match["number"]) + 1)
    return tuple(depths[block] for block in sorted(depths))
