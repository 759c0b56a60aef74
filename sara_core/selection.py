"""Which elements are trained: the smallest weights of a model.

Equations 1-3 of the SaRA paper (arXiv 2409.06633): the support is M = {|p| < θ} with one threshold θ for the whole
model. For models whose θ nobody has published, the same smallest elements can be asked for by count or by density.
"""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from .entry import MAX_ELEMENTS
from .errors import SelectionError

# Elements examined at a time: bounds the temporaries of a selection to tens of MB whatever the model's size.
CHUNK = 1 << 22
# The n smallest are found exactly among elements below a bound guessed from a sample; a generous guess avoids retries.
SAMPLE = 1 << 20
MARGIN = 1.15


@dataclass(frozen=True)
class Selection:
    """The chosen elements of each weight.

    indices: name → int32 [n], sorted flat positions in logical (row-major) order; weights without any are absent
    count: number of chosen elements
    theta: θ; for a count or density the largest selected |w|
    candidates: number of elements the choice was made from
    rule: what was asked for, for the file's metadata, e.g. {"rule": "count", "count": 5000000}
    """

    indices: dict[str, torch.Tensor]
    count: int
    theta: float
    candidates: int
    rule: dict

    def without_indices(self) -> "Selection":
        """What to keep for a report while a run goes on: the support holds the positions in its own form."""
        return replace(self, indices={})

    @property
    def density(self) -> float:
        return self.count / self.candidates


def name_is_included(name: str, include: Iterable[str], exclude: Iterable[str]) -> bool:
    """Whether a weight's name passes: a plain word matches anywhere, a pattern with * or ? is a whole-name glob."""

    def matches(pattern: str) -> bool:
        return fnmatch.fnmatchcase(name, pattern) if any(c in pattern for c in "*?[") else pattern in name

    include, exclude = list(include), list(exclude)
    return (not include or any(map(matches, include))) and not any(map(matches, exclude))


def select(
    weights: Mapping[str, torch.Tensor],
    *,
    threshold: float | None = None,
    count: int | None = None,
    density: float | None = None,
) -> Selection:
    """Choose the smallest elements of `weights` by exactly one of three rules.

    weights: name → floating-point tensor of any shape and memory format; read, never copied as a whole
    threshold: θ; every element with |w| < θ
    count: the n elements with the smallest |w|; among equals the first in the order of `weights`
    density: as `count`, with n = density × number of elements, 0 < density < 1

    Raises SelectionError when not exactly one rule is given, or when it selects nothing or everything.
    """
    given = {"threshold": threshold, "count": count, "density": density}
    given = {rule: value for rule, value in given.items() if value is not None}
    if len(given) != 1:
        raise SelectionError(f"Give exactly one of threshold, count and density (got {sorted(given) or 'none'}).")
    (rule, value), = given.items()
    total = sum(weight.numel() for weight in weights.values())
    if total == 0:
        raise SelectionError(
            "There is no weight to choose from: the include and exclude patterns leave no Linear or Conv layer."
        )
    for name, weight in weights.items():
        if weight.numel() > MAX_ELEMENTS:
            raise SelectionError(f"'{name}' has more than 2^31 - 1 elements: leave it out with an exclude pattern.")
    if not math.isfinite(value) or value <= 0:
        raise SelectionError(f"{rule} must be a number above 0 (got {value}).")

    magnitudes = _Magnitudes(weights)
    if rule == "threshold":
        indices = {name: magnitudes.positions(weight, lambda a: a < threshold) for name, weight in weights.items()}
        theta = float(threshold)
    else:
        n = int(value) if rule == "count" else round(value * total)
        if n < 1:
            raise SelectionError(f"{rule} {value} selects nothing of {total:,} elements: raise it.")
        if n >= total:
            raise SelectionError(
                f"{rule} {value} selects all of the {total:,} elements: that is full fine-tuning. Lower it."
            )
        indices, theta = _smallest(magnitudes, weights, n)

    indices = {name: index for name, index in indices.items() if index.numel()}
    chosen = sum(index.numel() for index in indices.values())
    selection = Selection(indices, chosen, theta, total, {"rule": rule, rule: value})
    if selection.count == 0:
        smallest = min(magnitudes.smallest(weight) for weight in weights.values())
        raise SelectionError(
            f"No weight is smaller than the threshold {value}: the smallest is {smallest:.3g}. "
            "Raise the threshold, or choose by density."
        )
    if selection.count == total:
        raise SelectionError(
            f"Every weight is smaller than the threshold {value}: that is full fine-tuning. "
            "Lower the threshold, or choose by density."
        )
    return selection


class _Magnitudes:
    """|w| of the weights in fp32, a chunk of whole rows in logical order at a time.

    All chunks share one buffer per device: fresh ones of several MB, freed between small results that are kept, leave
    the process holes that it cannot give back.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]):
        needed: dict[torch.device, int] = {}
        for weight in weights.values():
            columns, step = _chunk_of(weight)
            needed[weight.device] = max(needed.get(weight.device, 0), columns * step)
        self.buffers = {device: torch.empty(size, device=device) for device, size in needed.items()}

    def chunks(self, weight: torch.Tensor):
        """Yields (first flat position, 1-D fp32 tensor); a chunk is valid until the next is asked for."""
        columns, step = _chunk_of(weight)
        matrix = weight.detach().unsqueeze(0) if weight.dim() <= 1 else weight.detach()
        for row in range(0, len(matrix), step):
            part = matrix[row:row + step]
            chunk = self.buffers[weight.device][:part.numel()]
            chunk.view(part.shape).copy_(part)
            yield row * columns, chunk.abs_()

    def positions(self, weight: torch.Tensor, keep) -> torch.Tensor:
        """Flat positions, int32, of the elements for whose magnitude `keep` is true."""
        found = [
            keep(chunk).nonzero().view(-1).add_(start).to(torch.int32) for start, chunk in self.chunks(weight)
        ]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int32, device=weight.device)

    def smallest(self, weight: torch.Tensor) -> float:
        return min((float(chunk.min()) for _, chunk in self.chunks(weight) if chunk.numel()), default=math.inf)


def _chunk_of(weight) -> tuple[int, int]:
    """(elements of a row, rows of a chunk)"""
    rows = weight.shape[0] if weight.dim() > 1 else 1
    columns = max(1, weight.numel() // max(1, rows))
    return columns, min(max(1, CHUNK // columns), rows)


def _sampled_bound(magnitudes: _Magnitudes, weights, n: int, total: int) -> float:
    """A guess at a magnitude with somewhat more than n elements at or below it, from an even sample."""
    stride = max(1, total // SAMPLE)
    sample = torch.cat([
        chunk[::stride].clone().cpu() for w in weights.values() for _, chunk in magnitudes.chunks(w)
    ])
    rank = min(sample.numel(), int(MARGIN * n / total * sample.numel()) + 16)
    # A weight that is not a number sorts last, as infinity does, and like it must not become the bound's end.
    return float(sample.nan_to_num_(nan=math.inf, posinf=math.inf).kthvalue(rank).values)


def _smallest(magnitudes: _Magnitudes, weights, n: int) -> tuple[dict[str, torch.Tensor], float]:
    """Exactly the n elements of smallest magnitude, without a copy of the weights: guess a bound, collect what lies
    at or below it, and cut there."""
    total = sum(weight.numel() for weight in weights.values())
    bound = _sampled_bound(magnitudes, weights, n, total)
    while True:
        found = {name: magnitudes.positions(weight, lambda a: a <= bound) for name, weight in weights.items()}
        if sum(index.numel() for index in found.values()) >= n:
            break
        if bound == math.inf:
            raise SelectionError(
                f"Fewer than {n:,} of the weights are numbers; the others are NaN. The model's file is damaged, or was "
                "merged wrongly: load another one."
            )
        bound = math.inf if bound == 0 else bound * 2
    size = {name: _gather_magnitudes(weight, found[name]) for name, weight in weights.items()}
    theta = float(torch.cat([a.cpu() for a in size.values()]).kthvalue(n).values)
    room_for_equals = n - sum(int((a < theta).sum()) for a in size.values())
    indices = {}
    for name, a in size.items():
        equal = a == theta
        keep = (a < theta) | (equal & (equal.cumsum(0) <= room_for_equals))
        room_for_equals -= min(room_for_equals, int(equal.sum()))
        indices[name] = found[name][keep]
    return indices, theta


def _gather_magnitudes(weight, index):
    from .elements import gather

    return gather(weight, index).abs().float()
