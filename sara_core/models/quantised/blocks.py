"""A delta added to a weight whose elements share scales in blocks, along its rows."""

from typing import NamedTuple, Protocol

import torch

from . import elements
from .loss import Loss


class Blocks(NamedTuple):
    """A weight as codes and scales: each element is its code's number times its block's scale.

    codes: integers, [number of blocks, elements of a block]; scales: float32, [number of blocks]
    """

    codes: torch.Tensor
    scales: torch.Tensor


class Codec(Protocol):
    """How numbers are written within a block.

    limit: the largest number that the largest code is the nearest one to
    """

    limit: float

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes → float32, in the same shape."""

    def encode(self, numbers: torch.Tensor) -> torch.Tensor:
        """float32 → the nearest codes, of two equally near ones the even one; beyond `limit` the largest."""

    def scale_for(self, largest: torch.Tensor) -> torch.Tensor:
        """The scale, as the format can write it, of blocks whose largest magnitudes are these; above 0. float32 [n]"""


def values(blocks: Blocks, codec: Codec) -> torch.Tensor:
    """The weight's elements, float32, in the shape of the codes."""
    return codec.decode(blocks.codes) * blocks.scales[:, None]


def add_(blocks: Blocks, codec: Codec, indices: torch.Tensor, change: torch.Tensor, loss: Loss) -> None:
    """Add `change` (float32 [n]) at the flat places `indices` (int, [n], increasing), in place.

    A block keeps its scale, and its other elements their codes, as long as that can hold the changed ones. Otherwise it
    gets the scale that its largest element asks for, and all of it is rounded anew.
    """
    size = blocks.codes.shape[1]
    touched, rows = torch.unique_consecutive(indices.long() // size, return_inverse=True)
    many = max(1, elements.CHUNK // size)
    for first in range(0, len(touched), many):
        begin, end = torch.searchsorted(rows, torch.tensor([first, first + many])).tolist()
        places = rows[begin:end] - first, indices[begin:end].long() % size
        _add_to_some_(blocks, codec, touched[first : first + many], places, change[begin:end], loss)


def _add_to_some_(blocks: Blocks, codec: Codec, numbers: torch.Tensor, places: tuple, change, loss: Loss) -> None:
    codes, scales = blocks.codes[numbers], blocks.scales[numbers]
    before = codec.decode(codes) * scales[:, None]
    wanted = before.clone()
    wanted[places] += change
    too_large = wanted[places].abs() > codec.limit * scales[places[0]]
    grown = torch.zeros(len(numbers), dtype=torch.bool)
    grown[places[0][too_large]] = True
    new_scales = torch.where(grown, codec.scale_for(wanted.abs().amax(1)), scales)
    divisors = torch.where(new_scales == 0, 1.0, new_scales)[:, None]
    written = torch.zeros_like(wanted, dtype=torch.bool)
    written[places] = True
    written |= grown[:, None]
    codes = torch.where(written, codec.encode(wanted / divisors), codes)
    blocks.codes[numbers], blocks.scales[numbers] = codes, new_scales
    after = codec.decode(codes) * new_scales[:, None]
    loss.rescaled += int((new_scales != scales).sum())
    loss.count(before[places], after[places], change)


def unswizzled(tiled: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Scales of blocks from the order in which NVIDIA's matrix units read them: [rows, columns], contiguous.

    tiled: as many elements as the numbers of rows and columns, rounded up to multiples of 128 and 4, give
    https://docs.nvidia.com/cuda/cublas/#d-block-scaling-factors-layout
    """
    tiles = tiled.reshape(-(-rows // 128), -(-columns // 4), 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(tiles.shape[0] * 128, -1)[:rows, :columns].contiguous()


def swizzle_(tiled: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Write scales [rows, columns] into `tiled`, of the same dtype, in that order; the padding keeps its bytes."""
    rows, columns = scales.shape
    tiles = tiled.view(-(-rows // 128), -(-columns // 4), 32, 4, 4).permute(0, 3, 2, 1, 4)
    whole = tiles.reshape(tiles.shape[0] * 128, -1)
    whole[:rows, :columns] = scales
    # `reshape` copies what is permuted: written back through the view.
    tiles.copy_(whole.view(tiles.shape))
    return tiled


def swizzled_size(rows: int, columns: int) -> int:
    """How many scales a tensor in that order has."""
    return -(-rows // 128) * 128 * -(-columns // 4) * 4
