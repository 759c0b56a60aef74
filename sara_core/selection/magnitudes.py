"""The elements of a model with the smallest or the largest magnitudes, exactly, without a copy of its weights."""

import math
from collections.abc import Iterator, Mapping

import torch

from ..delta.entry import all_finite
from ..errors import SelectionError
from ..tensors.elements import gather
from ..wording import Sentence
from .one_at_a_time import Outline, one_at_a_time, outlines

# Elements examined at a time: bounds the temporaries of a selection to tens of MB whatever the model's size.
CHUNK = 1 << 22
# The n smallest are found exactly among elements below a bound guessed from a sample; a generous guess avoids retries.
SAMPLE = 1 << 20
MARGIN = 1.15

# Groups of weights, by name, with the number of elements that each group gives.
Shares = list[tuple[list[str], int]]


def smallest(weights: Mapping[str, torch.Tensor], shares: Shares) -> dict[str, torch.Tensor]:
    """Of each group the elements with the smallest |w|: positions, int32 [n] and increasing, by name; among equals the
    first in the order of names. Raises SelectionError where fewer are numbers."""
    return _lowest(_Magnitudes(weights), weights, shares)


def largest(weights: Mapping[str, torch.Tensor], shares: Shares) -> dict[str, torch.Tensor]:
    """As `smallest`, of those with the largest |w|."""
    return _lowest(_Magnitudes(weights, mirrored=True), weights, shares)


def below(weights: Mapping[str, torch.Tensor], threshold: float) -> dict[str, torch.Tensor]:
    """All elements with |w| < threshold: positions, int32 [n] and increasing, by name.

    Raises SelectionError where that is none of them, or all.
    """
    weights = one_at_a_time(weights)
    magnitudes = _Magnitudes(weights)
    indices = {name: magnitudes.positions(weight, lambda a: a < threshold) for name, weight in weights.items()}
    chosen = sum(index.numel() for index in indices.values())
    total = sum(outline.numel() for outline in outlines(weights).values())
    _refuse_all_or_none(magnitudes, weights, threshold, chosen > 0, chosen < total)
    return indices


def check_threshold(weights: Mapping[str, torch.Tensor], threshold: float) -> None:
    """Raise SelectionError where `below` would; no further than needed is looked for that."""
    magnitudes, some, others = _Magnitudes(weights), False, False
    for weight in weights.values():
        for _, chunk in magnitudes.chunks(weight):
            is_below = chunk < threshold
            some, others = some or bool(is_below.any()), others or not bool(is_below.all())
            if some and others:
                return
    _refuse_all_or_none(magnitudes, weights, threshold, some, others)


def _refuse_all_or_none(magnitudes: "_Magnitudes", weights, threshold: float, some: bool, others: bool) -> None:
    if not some:
        least = min(magnitudes.least(weight) for weight in weights.values())
        raise SelectionError(Sentence(
            "No weight is smaller than the threshold {threshold}: the smallest is {least}. Raise the threshold, or "
            "choose by density.", threshold=threshold, least=f"{least:.3g}",
        ))  # fmt: skip
    if not others:
        raise SelectionError(Sentence(
            "Every weight is smaller than the threshold {threshold}: that is full fine-tuning. Lower the "
            "threshold, or choose by density.", threshold=threshold,
        ))  # fmt: skip


def not_finite(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many elements are NaN or infinite, by name, of the weights that have some."""
    counts = {name: sum(map(_not_finite, _parts(weight))) for name, weight in weights.items()}
    return {name: count for name, count in counts.items() if count}


def _not_finite(part: torch.Tensor) -> int:
    return 0 if all_finite(part) else part.numel() - int(part.isfinite().sum())


def finite_positions(weight: torch.Tensor) -> torch.Tensor:
    """Flat positions, int32 and increasing, of the elements that are neither NaN nor infinite, on the CPU."""
    return _Magnitudes({"": weight}).positions(weight, torch.isfinite).cpu()


def largest_chosen(weights: Mapping[str, torch.Tensor], indices: Mapping[str, torch.Tensor]) -> float:
    """The largest |w| in fp32 at the positions `indices`, name → int32 [n], n > 0."""
    return max(float(gather(weights[name], index).abs().float().max()) for name, index in indices.items())


def cut(
    found: Mapping[str, torch.Tensor], keys: Mapping[str, torch.Tensor], n: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Of the elements at positions `found`, name → int32 [m], those with the n lowest `keys`, name → fp32 [m], and
    the last key taken; among equals the first in the order of `found`. There must be n that are no NaN."""
    last = float(torch.cat([key.cpu() for key in keys.values()]).kthvalue(n).values)
    room_for_equals = n - sum(int((key < last).sum()) for key in keys.values())
    indices = {}
    for name, key in keys.items():
        equal = key == last
        keep = (key < last) | (equal & (equal.cumsum(0) <= room_for_equals))
        room_for_equals -= min(room_for_equals, int(equal.sum()))
        indices[name] = found[name][keep]
    return indices, last


def _lowest(magnitudes: "_Magnitudes", weights, shares: Shares) -> dict[str, torch.Tensor]:
    indices: dict[str, torch.Tensor] = {}
    for names, n in shares:
        indices |= _n_lowest(magnitudes, one_at_a_time(weights).only(names), n)
    return indices


class _Magnitudes:
    """|w| of the weights in fp32, or mirrored -|w|, a chunk of whole rows in logical order at a time.

    All chunks share one buffer per device: fresh ones of several MB, freed between small results that are kept, leave
    the process holes that it cannot give back.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], mirrored: bool = False):
        needed: dict[torch.device, int] = {}
        for outline in outlines(weights).values():
            columns, step = _chunk_of(outline)
            needed[outline.device] = max(needed.get(outline.device, 0), columns * step)
        self.buffers = {device: torch.empty(size, device=device) for device, size in needed.items()}
        self.mirrored = mirrored

    def chunks(self, weight: torch.Tensor):
        """Yields (first flat position, 1-D fp32 tensor); a chunk is valid until the next is asked for."""
        columns, step = _chunk_of(weight)
        for number, part in enumerate(_parts(weight)):
            chunk = self.buffers[weight.device][:part.numel()]
            chunk.view(part.shape).copy_(part)
            yield number * step * columns, self._of_(chunk)

    def every(self, stride: int, weight: torch.Tensor) -> list[torch.Tensor]:
        """Those of every `stride`-th element of each chunk, as new fp32 tensors. Of a weight that lies in memory in
        its logical order nothing else is read."""
        if weight.is_contiguous():
            return [self._of_(part.reshape(-1)[::stride].to(torch.float32, copy=True)) for part in _parts(weight)]
        return [chunk[::stride].clone() for _, chunk in self.chunks(weight)]

    def _of_(self, values: torch.Tensor) -> torch.Tensor:
        """The magnitudes of fp32 values, which are overwritten."""
        values.abs_()
        # The smallest leave infinite ones for last; the largest would take them first.
        return values.neg_().masked_fill_(values.isinf(), math.nan) if self.mirrored else values

    def positions(self, weight: torch.Tensor, keep) -> torch.Tensor:
        """Flat positions, int32, of the elements for whose magnitude `keep` is true."""
        return self.found(weight, keep)[0]

    def found(self, weight: torch.Tensor, keep) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat positions, int32, of the elements for whose magnitude `keep` is true, and these magnitudes, fp32."""
        positions, kept = [], []
        for start, chunk in self.chunks(weight):
            place = keep(chunk).nonzero().view(-1).to(torch.int32)
            kept.append(chunk.index_select(0, place))
            positions.append(place.add_(start))
        if not positions:
            return torch.empty(0, dtype=torch.int32, device=weight.device), torch.empty(0, device=weight.device)
        return _joined(positions), _joined(kept)

    def least(self, weight: torch.Tensor) -> float:
        """The smallest that is a number; infinite if there is none."""
        chunks = (chunk.nan_to_num_(nan=math.inf, posinf=math.inf) for _, chunk in self.chunks(weight) if chunk.numel())
        return min((float(chunk.min()) for chunk in chunks), default=math.inf)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """One after the other; a single one itself, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The weight in chunks of whole rows."""
    matrix = (weight.unsqueeze(0) if weight.dim() <= 1 else weight).detach()
    _, step = _chunk_of(weight)
    return (matrix[row:row + step] for row in range(0, len(matrix), step))


def _chunk_of(weight: torch.Tensor | Outline) -> tuple[int, int]:
    """(elements of a row, rows of a chunk)"""
    rows = weight.shape[0] if weight.dim() > 1 else 1
    columns = max(1, weight.numel() // max(1, rows))
    return columns, max(1, min(CHUNK // columns, rows))


def _sampled_bound(magnitudes: _Magnitudes, weights, n: int, total: int) -> float:
    """A guess at a magnitude with somewhat more than n elements at or below it, from an even sample."""
    stride = max(1, total // SAMPLE)
    sample = torch.cat([part.cpu() for weight in weights.values() for part in magnitudes.every(stride, weight)])
    rank = min(sample.numel(), int(MARGIN * n / total * sample.numel()) + 16)
    # A weight that is not a number sorts last, as infinity does, and like it must not become the bound's end.
    return float(sample.nan_to_num_(nan=math.inf, posinf=math.inf).kthvalue(rank).values)


def _up_to(
    magnitudes: _Magnitudes, weights, bound: float, n: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(positions, magnitudes) of all elements below `bound`, by name, and of those at it, of which quantised weights
    may have a hundred times n: none more once there are n, for among equals the first are chosen."""
    found, keys, count = {}, {}, 0
    for name, weight in weights.items():
        compared = torch.lt if count >= n else torch.le
        found[name], keys[name] = magnitudes.found(weight, lambda a: compared(a, bound))
        count += found[name].numel()
    return found, keys


def _n_lowest(magnitudes: _Magnitudes, weights, n: int) -> dict[str, torch.Tensor]:
    """Exactly the n elements of lowest magnitude, without a copy of the weights: guess a bound, collect what lies
    at or below it, and cut there."""
    total = sum(outline.numel() for outline in outlines(weights).values())
    bound = _sampled_bound(magnitudes, weights, n, total)
    while True:
        found, keys = _up_to(magnitudes, weights, bound, n)
        if sum(index.numel() for index in found.values()) >= n:
            break
        if bound == math.inf:
            raise SelectionError(
                f"Fewer than {n:,} of the weights are numbers; the others are NaN. The model's file is damaged, or was "
                "merged wrongly: load another one."
            )
        bound = math.inf if bound == 0 else bound * 2 if bound > 0 else bound / 2
    return cut(found, keys, n)[0]
