"""What scales the product of an adapter's factors, and bounds their rank."""

import math
from typing import NamedTuple

MAX_RANK = 4096


class Alpha(NamedTuple):
    """The α of one module of an adapter.

    value: None where nothing says it: the factors then count as they are
    rank: r of a module whose tensors do not show it, where the adapter's settings do
    by_root: whether α counts by √r instead of r (rsLoRA, arXiv 2312.03732)
    """

    value: float | None = None
    rank: int | None = None
    by_root: bool = False

    def scale(self, rank: int | None) -> float:
        """α / r, or α / √r. rank: as the tensors show it, None if they do not."""
        rank = rank or self.rank
        if self.value is None or rank is None:
            return 1.0
        return self.value / (math.sqrt(rank) if self.by_root else rank)


def bounded(rank: int) -> int:
    """The rank, if the product of factors of it may be made: a small file can claim a large one.

    Raises IndexError.
    """
    if not 0 < rank <= MAX_RANK:
        raise IndexError(rank)
    return rank
