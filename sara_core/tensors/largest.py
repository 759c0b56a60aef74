"""The n largest magnitudes of a stream of numbers, exactly, in memory that does not grow with the stream.

The bits of a non-negative float32, read as an integer, are ordered as its value is. Counting the numbers by the upper
part of these bits, and those in the one decisive class by the lower part, finds the n-th largest in two passes (a
radix selection). The counts of the first pass are a histogram of 256 classes for each power of two.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .elements import where_float64_is

_LOWER_BITS = 15
_LOWER = 1 << _LOWER_BITS
_CLASSES = 1 << (31 - _LOWER_BITS)


class MagnitudeHistogram:
    """How many numbers there are of each magnitude, and the sum of their squares.

    counts: int64 [65536]; squares: float64 [65536]; class c holds magnitudes from edges[c] up to below edges[c + 1]
    """

    def __init__(self):
        self.counts = torch.zeros(_CLASSES, dtype=torch.int64)
        self.squares = torch.zeros(_CLASSES, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Count `values`: float32 of any shape, on any device, none of them NaN."""
        values = where_float64_is(values.detach().reshape(-1))
        classes = _magnitude_bits(values) >> _LOWER_BITS
        self.counts += torch.bincount(classes, minlength=_CLASSES).cpu()
        self.squares += torch.bincount(classes, weights=values.double().square(), minlength=_CLASSES).cpu()

    @property
    def edges(self) -> torch.Tensor:
        """Lower edge of every class, float32 [65536], rising; the last ones are infinite or no numbers."""
        return (torch.arange(_CLASSES, dtype=torch.int32) << _LOWER_BITS).view(torch.float32)

    @property
    def total(self) -> int:
        """How many numbers were counted."""
        return int(self.counts.sum())


@dataclass
class LargestCut:
    """Tells, for the numbers of a stream in its order, which are among its n largest magnitudes.

    bound: bits of the n-th largest magnitude; room: how many of those that equal it are still to be taken, first ones
    first, so that n is met exactly
    """

    bound: int
    room: int

    def mask(self, values: torch.Tensor) -> torch.Tensor:
        """bool [n]: which of the stream's next `values`, float32 [n], are chosen."""
        bits = _magnitude_bits(values)
        chosen, equal = bits > self.bound, bits == self.bound
        if self.room:
            chosen |= equal & (equal.cumsum(0) <= self.room)
            self.room -= min(self.room, int(equal.sum()))
        return chosen


def largest_cut(histogram: MagnitudeHistogram, stream: Iterable[torch.Tensor], n: int) -> LargestCut:
    """Where to cut a stream so that its n ≥ 1 largest magnitudes stay; everything stays if it has fewer.

    histogram: of the whole stream; stream: the same numbers again, in tensors of float32, read at most once
    """
    if n >= histogram.total:
        return LargestCut(bound=-1, room=0)
    decisive, needed = _descend(histogram.counts, n)
    lower = torch.zeros(_LOWER, dtype=torch.int64)
    for values in stream:
        bits = _magnitude_bits(values)
        lower += torch.bincount(bits[bits >> _LOWER_BITS == decisive] & (_LOWER - 1), minlength=_LOWER).cpu()
    low, room = _descend(lower, needed)
    return LargestCut(bound=(decisive << _LOWER_BITS) | low, room=room)


def _descend(counts: torch.Tensor, n: int) -> tuple[int, int]:
    """The class that holds the n-th number from the top, and which of that class it is, counted from 1."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, n))
    return len(counts) - 1 - place, n - int(from_top[place] - counts.flip(0)[place])


def _magnitude_bits(values: torch.Tensor) -> torch.Tensor:
    return values.abs().view(torch.int32)
