"""Weights that a format fills up to whole blocks of rows and columns: the file has no word of where they end."""

import torch

from ...delta import SparseEntry
from .formats import Format, Shape


def is_padded(format: Format, shape: Shape, stored: Shape) -> bool:
    """Whether a weight of this shape has the other one in a file, with what it is filled up with."""
    size = format.padded_to
    return stored != shape and stored == tuple(-(-length // size) * size for length in shape)


def placed(entry: SparseEntry, stored: Shape) -> SparseEntry:
    """The changes of a matrix at their places in the filled-up one of the shape `stored`."""
    columns = entry.shape[1]
    places = entry.indices.long()
    places = places // columns * stored[1] + places % columns
    return SparseEntry(places.to(torch.int32), entry.values, stored)
