"""Writing round(base + Δ) into many weights at once, for devices on which each operation costs a launch.

One weight at a time takes torch a dozen launches, each longer in the making than the work it does. Together they
take one Triton kernel, or, where there is none, a dozen launches and one for each weight. The bits are the same.
"""

from collections.abc import Sequence

import torch

from ..tensors.elements import added, memory_of, places_of
from .element_kernels import kernels_for, table_of
from .support import Segment

# Elements that are written together, unless one weight has more: what torch's way takes for itself is about 30 bytes
# for each.
TOGETHER = 1 << 22


class WriteBack:
    """Elements of weights of one dtype and device that lie one after the other in the vector.

    segments, base: of the weights, none of them empty, base [n] each in the weight's dtype. Afterwards both are views
    of what is kept here, so that nothing is there twice.
    """

    def __init__(self, segments: Sequence[Segment], base: Sequence[torch.Tensor]):
        self._segments = list(segments)
        self._span = slice(segments[0].offset, segments[-1].span.stop)
        self._sizes = [len(segment) for segment in segments]
        self._crow = torch.cat([segment.crow for segment in segments])
        self._col = torch.cat([segment.col for segment in segments])
        self._base = torch.cat(list(base))
        pointers = [len(segment.crow) for segment in segments]
        for segment, crow, col in zip(segments, self._crow.split(pointers), self._col.split(self._sizes)):
            segment.crow, segment.col = crow, col
        self.base = self._base.split(self._sizes)
        self._addresses: list[int] | None = None
        self._table = self._row_starts = None

    def write(self, weights: Sequence[torch.Tensor], values: torch.Tensor) -> None:
        """weights: as they are now, in the order of the segments; values: Δ, fp32, the whole vector"""
        change = values[self._span]
        kernels = kernels_for(self._base.device, self._base.dtype)
        if kernels is not None and all(map(self._is_told_by_its_address, weights, self._segments)):
            kernels.write_(self._table_for(weights), self._crow, self._col, self._base, change)
            _tell_autograd(weights)
            return
        positions = self._positions().split(self._sizes)
        changed = added(self._base, change, 1.0).split(self._sizes)
        for weight, position, part in zip(weights, positions, changed):
            with torch.inference_mode(weight.is_inference()):
                memory_of(weight).index_copy_(0, places_of(weight, position), part)

    def _is_told_by_its_address(self, weight, segment) -> bool:
        """The kernel would write beside a weight that was converted or replaced by another; torch refuses to."""
        kept = self._base
        is_alike = (weight.dtype, weight.device, weight.shape) == (kept.dtype, kept.device, segment.shape)
        return is_alike and weight.is_contiguous()

    def _table_for(self, weights):
        addresses = [weight.data_ptr() for weight in weights]
        if addresses != self._addresses:  # moved, or replaced
            self._addresses, self._table = addresses, table_of(weights, self._segments)
        return self._table

    def _positions(self) -> torch.Tensor:
        """Of all elements, flat in their own weight, int64."""
        if self._row_starts is None:
            starts = [torch.arange(s.rows + 1, device=s.crow.device) * s.columns for s in self._segments]
            self._row_starts = torch.cat(starts)[:-1]
        # From the end of one weight's pointers to the beginning of the next's there is no row.
        lengths = self._crow.diff().clamp_(min=0)
        return self._row_starts.repeat_interleave(lengths, output_size=len(self._col)).add_(self._col)


def _tell_autograd(weights) -> None:
    """It counts torch's own changes, so that nobody computes gradients with a changed weight."""
    for weight in weights:
        if not weight.is_inference():
            torch.autograd.graph.increment_version(weight)


def runs(segments: Sequence[Segment], base: Sequence[torch.Tensor | None]) -> list[list[int]]:
    """Numbers of segments that can be written together: with base values, of one dtype and device, neighbours in the
    vector (segments without elements aside), no more than TOGETHER elements."""
    together: list[list[int]] = []
    before, size = None, 0
    for number, (segment, values) in enumerate(zip(segments, base)):
        if not len(segment):
            continue
        kind = None if values is None else (values.dtype, values.device)
        if kind is not None:
            if kind != before or size + len(segment) > TOGETHER:
                together.append([])
                size = 0
            together[-1].append(number)
            size += len(segment)
        before = kind
    return together
