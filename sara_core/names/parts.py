"""Which part of a weight of ComfyUI's a diffusers parameter is."""

import math
from typing import NamedTuple


class Part(NamedTuple):
    """Rows of a weight of ComfyUI's models: of `whole` equal parts the `size` parts from `first` on.

    name: ComfyUI's (and LDM's) name, without the prefix `diffusion_model.`
    swapped: the two halves of the rows stand in the other order in diffusers (scale before shift)
    """

    name: str
    first: int = 0
    size: int = 1
    whole: int = 1
    swapped: bool = False

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of the whole weight, from that of this part; None if the part cannot have it."""
        return self._scaled(shape, self.whole, self.size)

    def part_shape(self, whole_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of this part, from that of the whole weight; None if the weight cannot be divided so."""
        return self._scaled(whole_shape, self.size, self.whole)

    def begin(self, part_shape: tuple[int, ...]) -> int:
        """Flat position in the whole weight at which this part begins."""
        return math.prod(part_shape) // self.size * self.first

    def _scaled(self, shape: tuple[int, ...], times: int, by: int) -> tuple[int, ...] | None:
        if self.whole == 1 and not self.swapped:
            return shape
        if not shape or shape[0] % by or (self.swapped and shape[0] % 2):
            return None
        return (shape[0] // by * times, *shape[1:])
