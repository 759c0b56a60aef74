"""The chosen elements as segments of one vector.

A segment is one weight's share of the trained vector. Its positions are kept once, as compressed rows (row pointers
and columns, int32) of the weight seen as a matrix (shape[0] × rest) in logical order: the form the sampled product
reads directly, from which flat positions are made when they are needed. A tied weight is one segment.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch


@dataclass
class Segment:
    """One weight's trained elements: `vector[offset : offset + len(segment)]`.

    crow: int32 [rows + 1], where each row's columns begin
    col: int32 [n], sorted within each row
    shape: shape of the weight
    """

    name: str
    shape: tuple[int, ...]
    crow: torch.Tensor
    col: torch.Tensor
    offset: int
    _known_first: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return self.col.numel()

    @property
    def rows(self) -> int:
        """Rows of the matrix as which the weight is seen: shape[0], or 1 for a vector."""
        return self.crow.numel() - 1

    @property
    def columns(self) -> int:
        """Columns of that matrix."""
        numel = 1
        for size in self.shape:
            numel *= size
        return numel // self.rows

    @property
    def span(self) -> slice:
        """The segment's place in the vector."""
        return slice(self.offset, self.offset + len(self))

    def flat(self, first_row: int = 0, last_row: int | None = None) -> torch.Tensor:
        """Flat positions of rows [first_row, last_row) relative to the first of them: int64 [n of those rows]."""
        last_row = self.rows if last_row is None else last_row
        crow = self.crow[first_row:last_row + 1].long()
        elements = self.elements(first_row, last_row)
        row_starts = torch.arange(0, (last_row - first_row) * self.columns, self.columns, device=crow.device)
        starts = torch.repeat_interleave(row_starts, crow.diff(), output_size=len(elements))
        return starts.add_(self.col[elements.start:elements.stop])

    def elements(self, first_row: int, last_row: int) -> range:
        """Which elements of the segment are in rows [first_row, last_row)."""
        return range(self._first_element(first_row), self._first_element(last_row))

    def _first_element(self, row: int) -> int:
        if row in (0, self.rows):
            return len(self) if row else 0
        # The device has to finish everything before it can answer, so it is asked once.
        if row not in self._known_first:
            self._known_first[row] = int(self.crow[row])
        return self._known_first[row]

    def part(self, mask: torch.Tensor) -> "Segment":
        """The elements for which `mask`, bool [n], is true, as a segment at offset 0."""
        before = torch.zeros(len(self) + 1, dtype=torch.int32, device=mask.device)
        torch.cumsum(mask, 0, dtype=torch.int32, out=before[1:])
        return Segment(self.name, self.shape, before[self.crow.long()], self.col[mask], 0)

    def to(self, device: torch.device | str) -> "Segment":
        """The segment with its positions on `device`; itself stays as it is."""
        return Segment(self.name, self.shape, self.crow.to(device), self.col.to(device), self.offset)


class Support:
    """All segments, in the order of the vector."""

    def __init__(self, segments: Iterable[Segment]):
        self.segments = list(segments)

    @classmethod
    def from_indices(cls, indices: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> "Support":
        """A segment for each weight in `indices`, in that order.

        indices: name → sorted unique flat positions, int32 [n]; shapes: name → shape of that weight
        """
        segments = []
        for name, index in indices.items():
            shape = tuple(shapes[name])
            rows = shape[0] if len(shape) > 1 else 1
            columns = torch.Size(shape).numel() // rows
            row_of = torch.div(index, columns, rounding_mode="floor")
            crow = torch.searchsorted(row_of, torch.arange(rows + 1, dtype=row_of.dtype, device=index.device))
            column = (index - row_of * columns).to(torch.int32)
            segments.append(Segment(name, shape, crow.to(torch.int32), column, 0))
        support = cls(segments)
        support.set_offsets()
        return support

    def set_offsets(self) -> None:
        """Let every segment begin in the vector where the one before it ends."""
        offset = 0
        for segment in self.segments:
            segment.offset = offset
            offset += len(segment)

    @property
    def nnz(self) -> int:
        """Number of elements of all segments: the length of the vector."""
        return sum(len(segment) for segment in self.segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __len__(self) -> int:
        return len(self.segments)
