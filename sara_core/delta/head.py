"""What a delta's file says of itself while its changes are left unread: its size, its metadata, its blocks."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import DeltaError
from ..files import header
from ..names.blocks import block_of, natural_order
from ..wording import Sentence
from . import file_v1
from .describe import BlockDensity


class DeltaHead(NamedTuple):
    """elements: how many are changed, as the file says; weights: in how many
    value_dtype: "F32" or "BF16", or both with a comma between; metadata: text → text; size: of the file, in bytes"""

    elements: int
    weights: int
    value_dtype: str
    metadata: Mapping[str, str]
    size: int


def read_head(path: str | os.PathLike) -> DeltaHead:
    """What there is to say about a delta without reading more than its header.

    Nothing says yet that it can be loaded; that its tensors are there and complete is all that has been looked at.
    Raises DeltaError if it is missing, unreadable, damaged or no delta.
    """
    found = header.read(path)
    stems = file_v1.stems(found.tensors, lambda names: Sentence("Choose a file that was saved as a delta."))
    values = [found.tensors[file_v1.part_name(stem, "values")] for stem in stems]
    if any(len(tensor["shape"]) != 1 for tensor in values):
        raise DeltaError(Sentence(
            "It is damaged: its values are no lists. Get the file again from where it came from."
        ))  # fmt: skip
    dtypes = ", ".join(sorted({tensor["dtype"] for tensor in values}))
    elements = sum(tensor["shape"][0] for tensor in values)
    return DeltaHead(elements, len(stems), dtypes, found.metadata, found.size)


def density_of_file(path: str | os.PathLike) -> dict[str, BlockDensity]:
    """Block → how many of its elements a delta's file changes, blocks in natural order; how strongly is not read.

    Raises DeltaError as `SparseDelta.load`, but for what only reading every change can tell.
    """
    blocks: dict[str, BlockDensity] = {}
    for name, (count, numel) in file_v1.read_sizes(path).items():
        block = blocks.setdefault(block_of(name), BlockDensity())
        block.count += count
        block.of += numel
    return {name: blocks[name] for name in sorted(blocks, key=natural_order)}
