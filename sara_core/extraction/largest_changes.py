"""Making a sparse delta of dense changes: the largest ones stay, and what is lost with the others is said.

Changes come in pieces that are read several times and never held: they are counted by magnitude, cut where enough are
left, and kept.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from ..delta import SparseEntry
from ..delta.entry import all_finite, check_shape
from ..errors import DeltaError
from ..numbers import checked
from ..tensors.elements import sum_of_squares
from ..tensors.largest import LargestCut, MagnitudeHistogram, largest_cut

# A delta of more than half of all elements is larger than the dense file it came from.
_DENSE = 0.5

Changes = Callable[[], Iterable[tuple[str, torch.Tensor]]]


class Piece(Protocol):
    """Consecutive elements of one weight's change.

    name: the weight's; shape: of the whole weight; start: flat row-major position of the first element
    change: float32 [n], finite
    """

    name: str
    shape: tuple[int, ...]
    start: int
    change: torch.Tensor


class Kept(NamedTuple):
    """What was kept of dense changes.

    entries: weight name → its kept changes, on the CPU
    squared_share: Σ Δ² over them, as a share of Σ Δ² over all
    """

    entries: dict[str, SparseEntry]
    squared_share: float

    @property
    def lost(self) -> float:
        """Share of the squared changes that was cut off, 0 … 1: ‖Δ − kept‖² / ‖Δ‖²."""
        return max(0.0, 1 - self.squared_share)


def together(parts: Iterable[Kept]) -> Kept:
    """What was kept of several files' changes, or of several parts of one."""
    entries, kept, of = {}, 0.0, 0.0
    for part in parts:
        squares = sum(sum_of_squares(entry.values) for entry in part.entries.values())
        entries |= part.entries
        kept += squares
        of += squares / part.squared_share if part.squared_share else 0.0
    return Kept(entries, kept / of if of else 1.0)


class LargestChanges:
    """The largest of a stream of changes, which is read once when this is made, and once or twice to keep some.

    pieces: begins the stream anew, the same one every time, the pieces of each weight in their order
    elements: in the stream; changed: how many of them are not 0; largest: |Δ|; squares: Σ Δ²
    """

    def __init__(self, pieces: Callable[[], Iterable[Piece]]):
        self._pieces = pieces
        self._histogram = MagnitudeHistogram()
        self.elements, self.changed, self.largest = 0, 0, 0.0
        for piece in pieces():
            self._histogram.add(piece.change)
            self.elements += piece.change.numel()
            self.changed += int(torch.count_nonzero(piece.change))
            self.largest = max(self.largest, float(piece.change.abs().max()))
        self.squares = float(self._histogram.squares.sum())

    def keep(self, count: int, watch: Callable[[Piece, torch.Tensor], None] = lambda piece, mask: None) -> Kept:
        """The `count` largest changes, at least one of them, or all that are not 0 if there are fewer.

        watch: called for every piece with a mask of what is kept, bool [n]
        """
        cut = LargestCut(bound=0, room=0)  # every change
        if count < self.changed:
            cut = largest_cut(self._histogram, (piece.change for piece in self._pieces()), max(1, count))
        found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        shapes, squares = {}, 0.0
        for piece in self._pieces():
            mask = cut.mask(piece.change)
            watch(piece, mask)
            (places,) = torch.where(mask)
            if len(places):
                change = piece.change[places]
                squares += sum_of_squares(change)
                shapes[piece.name] = piece.shape
                found.setdefault(piece.name, []).append(((places + piece.start).to("cpu", torch.int32), change.cpu()))
        entries = {
            name: SparseEntry(*(torch.cat(vectors) for vectors in zip(*parts)), shapes[name])
            for name, parts in found.items()
        }
        return Kept(entries, squares / self.squares if self.squares else 1.0)


@dataclass
class _WholeChange:
    """The change of a whole weight as one piece."""

    name: str
    shape: tuple[int, ...]
    change: torch.Tensor
    start: int = 0


def keep_largest(changes: Changes, density: float | None, elements: int) -> Kept:
    """The largest changes by magnitude: `density` · `elements` of them, or without a density all that are not 0.

    changes: gives (name, dense change) of each weight, one at a time and the same every time; it is asked up to three
        times
    elements: of the whole model
    Raises DeltaError for a density outside 0 … 1, without one for changes that are not sparse, and for a change that
    is not finite.
    """
    if density is not None:
        density = checked(density, "The density", above=0, most=1)

    def pieces() -> Iterable[Piece]:
        for name, change in changes():
            check_shape(name, tuple(change.shape))
            piece = _WholeChange(name, tuple(change.shape), change.float().reshape(-1))
            if not all_finite(piece.change):
                raise DeltaError(f"The change of '{name}' has values that are NaN or infinite. Get the file again.")
            yield piece

    largest = LargestChanges(pieces)
    if density is None and largest.changed > _DENSE * largest.elements:
        raise DeltaError(
            f"The file changes {largest.changed / largest.elements:.0%} of all elements of its weights, which is no "
            "sparse delta. Choose a density, such as 0.05 to keep the largest changes in 5 % of the model; what is "
            "lost is reported."
        )
    return largest.keep(largest.elements if density is None else round(density * elements))
