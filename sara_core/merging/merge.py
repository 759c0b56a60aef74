"""One delta out of several, each with a weight of its own, below 0 and above 1 as well.

With wᵢ the weight of delta i times its factor at the element's block, and xᵢ = wᵢ · Δᵢ (0 where delta i has no such
element), an element of the result is, over N deltas:

    sum     Σ xᵢ
    mean    Σ xᵢ / N
    ties    the mean of those xᵢ ≠ 0, among the largest of each delta, that have the elected sign (TIES, arXiv
            2306.01708)
    dare    Σ xᵢ bᵢ / keep, where bᵢ is 1 with probability `keep` and else 0 (DARE, arXiv 2311.03099)

All in float32, each operation rounded, in the order of the deltas. Sum and mean keep every position that a delta with
wᵢ ≠ 0 has, even where the changes cancel; ties and dare, which are there to thin out, keep only what is not 0.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..delta import SparseDelta, SparseEntry
from ..delta import metadata as keys
from ..delta.delta import in_float32_range
from ..errors import DeltaError
from ..names.family_names import layout_name
from ..names.resolve import common_name, exchanged, prefix_of
from ..numbers import checked
from ..tensors.largest import MagnitudeHistogram, largest_cut
from .block_factors import BlockFactor, check_blocks, factors_of
from .report import MergeReport

# What the names of blocks begin with, of the families in which the two have different ones.
_BLOCKS = {
    "diffusers": (
        "down_blocks.", "up_blocks.", "mid_block.", "single_transformer_blocks."
    ),
    "ComfyUI": (
        "input_blocks.", "output_blocks.", "middle_block.", "joint_blocks.", "double_blocks.", "single_blocks."
    ),
}  # fmt: skip

METHODS = ("sum", "mean", "ties", "dare")
SIGNS = ("total", "count")

# True of one training only.
_OF_ONE_DELTA = (keys.SELECTION, keys.TRAINING, "modelspec.date", "modelspec.title", "modelspec.thumbnail", keys.MERGE)


@dataclass(frozen=True)
class MergeSettings:
    """How deltas are merged; raises DeltaError on construction for what makes no sense.

    method: one of METHODS
    keep: share of each delta's elements that ties (the largest) and dare (random ones) take, 0 < keep ≤ 1; sum and mean
        ignore it
    sign: what ties elects the sign by: "total" of the changes, or "count" of deltas (equal counts: by the total); the
        others ignore it
    seed: of dare's random choice, any whole number; the others ignore it
    blocks: factors of parts of the model, see block_factors.parse_blocks; none: the weights hold everywhere
    """

    method: str = "sum"
    keep: float = 0.5
    sign: str = "total"
    seed: int = 0
    blocks: tuple[BlockFactor, ...] = ()

    def __post_init__(self):
        if self.method not in METHODS:
            raise DeltaError(f"There is no merge method '{self.method}'. Choose one of {', '.join(METHODS)}.")
        if self.sign not in SIGNS:
            raise DeltaError(f"The sign cannot be elected by '{self.sign}'. Choose one of {', '.join(SIGNS)}.")
        object.__setattr__(self, "keep", checked(self.keep, "The share to keep", above=0, most=1))
        object.__setattr__(self, "seed", checked(self.seed, "The seed", whole=True))

    @property
    def title(self) -> str:
        """The method with what else decides it, for a report."""
        detail = {"ties": f"sign by {self.sign}", "dare": f"seed {self.seed}"}.get(self.method)
        return self.method if detail is None else f"{self.method} ({self.keep:.3g} kept, {detail})"


def merge(
    deltas: Sequence[SparseDelta],
    weights: Sequence[float] | float = 1.0,
    method: str = "sum",
    *,
    names: Sequence[str] | None = None,
    **settings: Any,
) -> SparseDelta:
    """One delta out of several; the module's equations. On the CPU, with float32 values.

    weights: one for each delta, or one for all; names: what to call the deltas in errors and metadata
    settings: further fields of MergeSettings

    Raises DeltaError, naming both, for deltas of different families or weights of different shapes; for settings and
    weights that make no sense; for sums too large for float32; and if nothing is left.

    >>> import torch
    >>> from sara_core import SparseDelta, SparseEntry, merge
    >>> def delta(positions, changes):
    ...     entry = SparseEntry(torch.tensor(positions, dtype=torch.int32), torch.tensor(changes), shape=(2, 3))
    ...     return SparseDelta({"layer.weight": entry})
    >>> ink, paper = delta([0, 2], [1.0, 0.5]), delta([2, 4], [-0.25, 2.0])
    >>> merge([ink, paper], weights=[1.0, 0.5]).entries["layer.weight"]
    SparseEntry(indices=tensor([0, 2, 4], dtype=torch.int32), values=tensor([1.0000, 0.3750, 1.0000]), shape=(2, 3))

    Where they pull in opposite directions, at position 2, TIES takes the larger one's side:

    >>> merge([ink, paper], method="ties", keep=1.0).entries["layer.weight"].values
    tensor([1.0000, 0.5000, 2.0000])
    """
    return merge_with_report(deltas, weights, MergeSettings(method, **settings), names)[0]


def merge_with_report(
    deltas: Sequence[SparseDelta],
    weights: Sequence[float] | float,
    settings: MergeSettings,
    names: Sequence[str] | None = None,
) -> tuple[SparseDelta, MergeReport]:
    """As `merge`, with a report on how the deltas lie to each other, and raising the same."""
    names = list(names or (f"delta {number}" for number in range(1, len(deltas) + 1)))
    weights = list(weights) if isinstance(weights, Iterable) else [weights] * len(deltas)
    weights = [float(checked(weight, "A weight of the merge")) for weight in weights]
    deltas = _checked(deltas, weights, names)
    every_weight = sorted({name for delta in deltas for name in delta.entries})
    check_blocks(settings.blocks, every_weight, len(deltas))

    report = MergeReport(names, weights, settings.title, [str(block) for block in settings.blocks])
    weighted = _Weighted(deltas, weights, settings.blocks)
    take = _reducer(weighted, every_weight, settings)
    entries = {}
    for name in every_weight:
        rows = weighted.rows(name)
        if not rows:
            continue
        indices, values, present = _aligned(rows, len(deltas))
        taken = values if take is None else _aligned([take(name, row) for row in rows], len(deltas), indices)[1]
        merged, shares = _combined(taken, settings)
        in_float32_range(name, merged)
        report.add(name, values, present, shares)
        if take is not None:
            stays = merged != 0
            indices, merged = indices[stays], merged[stays]
        if len(indices):
            shape = next(delta.entries[name].shape for delta in deltas if name in delta.entries)
            entries[name] = SparseEntry(indices, merged, shape)
    if not entries:
        raise DeltaError(
            "The merge leaves nothing: every weight or block factor is 0, or all changes cancel. Change the weights."
        )
    merged = SparseDelta(entries, _metadata(deltas, weights, names, settings))
    report.result(merged)
    return merged, report


def _checked(deltas: Sequence[SparseDelta], weights: Sequence[float], names: Sequence[str]) -> list[SparseDelta]:
    """The deltas under the names of weights that the first one uses; raises DeltaError if they do not go together."""
    if not deltas:
        raise DeltaError("There is nothing to merge: connect or name at least one delta.")
    if len(weights) != len(deltas):
        raise DeltaError(f"There are {len(deltas)} deltas but {len(weights)} weights. Give one weight for each.")
    families = [delta.metadata.get(keys.FAMILY) for delta in deltas]
    known = [place for place, family in enumerate(families) if family is not None]
    for place in known:
        if layout_name(families[place]) != layout_name(families[known[0]]):
            raise DeltaError(
                f"'{names[known[0]]}' is for {families[known[0]]}, but '{names[place]}' is for {families[place]}. "
                "Merge deltas of one family."
            )
    _check_naming(deltas, names)
    deltas = _with_common_names(deltas)
    _check_shapes(deltas, names)
    return deltas


def _check_naming(deltas: Sequence[SparseDelta], names: Sequence[str]) -> None:
    """Raise DeltaError if one delta has diffusers' names and another ComfyUI's: the same weight would count twice."""
    found = {}
    for delta, called in zip(deltas, names):
        prefix = prefix_of(delta.entries)
        for weight in delta.entries:
            for naming, blocks in _BLOCKS.items():
                if weight.removeprefix(prefix).startswith(blocks):
                    found.setdefault(naming, called)
    if len(found) > 1:
        diffusers, comfyui = (found[naming] for naming in _BLOCKS)
        raise DeltaError(
            f"'{diffusers}' calls its weights as diffusers does, and '{comfyui}' as ComfyUI does. Give the first one "
            "by ComfyUI's names too: diffusers_bridge.comfyui_delta has them."
        )


def _with_common_names(deltas: Sequence[SparseDelta]) -> list[SparseDelta]:
    """The deltas with the first one's prefix, and every weight under the name that the first of them has for it."""
    prefix, known, renamed = prefix_of(deltas[0].entries), {}, []
    for delta in deltas:
        own = prefix_of(delta.entries)
        names = {name: exchanged(name, own, prefix) for name in delta.entries}
        names = {name: known.setdefault(common_name(new), new) for name, new in names.items()}
        if all(name == new for name, new in names.items()):
            renamed.append(delta)
        else:
            entries = {names[name]: entry for name, entry in delta.entries.items()}
            renamed.append(SparseDelta(entries, delta.metadata))
    return renamed


def _check_shapes(deltas: Sequence[SparseDelta], names: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for place, delta in enumerate(deltas):
        for name, entry in delta.entries.items():
            other = seen.setdefault(name, place)
            shape = deltas[other].entries[name].shape
            if shape != entry.shape:
                raise DeltaError(
                    f"'{names[other]}' and '{names[place]}' cannot be merged: '{name}' is {list(shape)} in the first "
                    f"and {list(entry.shape)} in the second. Merge deltas of one model."
                )


@dataclass
class _Row:
    """One delta's weighted elements of one weight. number: the delta's place in the list"""

    number: int
    indices: torch.Tensor
    values: torch.Tensor


class _Weighted:
    """The deltas times their weights, one model weight at a time: no copy of a whole delta is made."""

    def __init__(self, deltas: Sequence[SparseDelta], weights: Sequence[float], blocks: Sequence[BlockFactor]):
        self.deltas, self.weights, self.blocks = deltas, weights, blocks

    def rows(self, name: str) -> list[_Row]:
        """A row for each delta that changes the weight, with a factor other than 0 there."""
        rows = (self._row(number, name) for number in range(len(self.deltas)))
        return [row for row in rows if row is not None]

    def values(self, number: int, names: Sequence[str]) -> Iterator[torch.Tensor]:
        """All weighted values of one delta, in the order of `names`."""
        rows = (self._row(number, name) for name in names)
        return (row.values for row in rows if row is not None)

    def _row(self, number: int, name: str) -> _Row | None:
        entry = self.deltas[number].entries.get(name)
        factor = self.weights[number] * factors_of(name, self.blocks, len(self.deltas))[number]
        if entry is None or factor == 0:
            return None
        values = in_float32_range(name, entry.values.cpu().float() * factor)
        return _Row(number, entry.indices.cpu(), values)


def _reducer(weighted: _Weighted, names: Sequence[str], settings: MergeSettings):
    """What thins out a row before the deltas are combined, (name, row) → row; None for methods that take everything.

    Rows are to be passed in the order of `names`."""
    if settings.method == "ties":
        cuts = []
        for number in range(len(weighted.deltas)):
            histogram = MagnitudeHistogram()
            for values in weighted.values(number, names):
                histogram.add(values)
            count = max(1, round(settings.keep * histogram.total))
            cuts.append(largest_cut(histogram, weighted.values(number, names), count))

        def trim(name: str, row: _Row) -> _Row:
            mask = cuts[row.number].mask(row.values)
            return _Row(row.number, row.indices[mask], row.values[mask])

        return trim
    if settings.method == "dare":

        def drop(name: str, row: _Row) -> _Row:
            # A generator for each weight of each delta: what is drawn does not depend on what else there is.
            text = f"{settings.seed} {row.number} {name}".encode()
            seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
            mask = torch.rand(len(row.values), generator=torch.Generator().manual_seed(seed)) < settings.keep
            return _Row(row.number, row.indices[mask], row.values[mask] / settings.keep)

        return drop
    return None


def _aligned(rows: list[_Row], deltas: int, indices: torch.Tensor | None = None):
    """The rows over common positions: indices int32 [n] (those given, or the union), values fp32 [deltas, n] with 0
    where there is none, and where there is one, bool [deltas, n]."""
    if indices is None:
        first = rows[0].indices
        same = all(torch.equal(first, row.indices) for row in rows[1:])
        indices = first if same else torch.unique(torch.cat([row.indices for row in rows]))
    values = torch.zeros(deltas, len(indices))
    present = torch.zeros(deltas, len(indices), dtype=torch.bool)
    for row in rows:
        slots = torch.searchsorted(indices, row.indices)
        values[row.number, slots] = row.values
        present[row.number, slots] = True
    return indices, values, present


def _combined(values: torch.Tensor, settings: MergeSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """The result [n] of values [deltas, n], and what each delta puts into it, [deltas, n]: fp32 both."""
    divisor = len(values) if settings.method == "mean" else 1
    if settings.method == "ties":
        agreeing = values.sign() == _elected_sign(values, settings.sign)
        values, divisor = values * agreeing, agreeing.sum(0).clamp_(min=1)
    total = values[0].clone()
    for row in values[1:]:
        total += row
    return total / divisor, values / divisor


def _elected_sign(values: torch.Tensor, by: str) -> torch.Tensor:
    """The sign that wins at each element, [n]; 0 where neither does."""
    # In float64, in which a few float32 numbers add up without loss: the election must not depend on their order.
    total = values.sum(0, dtype=torch.float64).sign().float()
    if by == "total":
        return total
    count = values.sign().sum(0).sign()
    return torch.where(count == 0, total, count)


def _metadata(deltas, weights, names, settings: MergeSettings) -> dict[str, str]:
    """What all deltas agree on, and what was merged how."""
    shared = set.intersection(*(set(delta.metadata.items()) for delta in deltas))
    record = {"method": settings.method, "blocks": [str(block) for block in settings.blocks]}
    if settings.method in ("ties", "dare"):
        record["keep"] = settings.keep
    if settings.method == "ties":
        record["sign"] = settings.sign
    if settings.method == "dare":
        record["seed"] = settings.seed
    record["deltas"] = [
        {"name": name, "weight": weight, "elements": delta.nnz} for name, weight, delta in zip(names, weights, deltas)
    ]
    kept = {key: text for key, text in shared if key not in _OF_ONE_DELTA}
    said = [delta.metadata[keys.FAMILY] for delta in deltas if keys.FAMILY in delta.metadata]
    if len(said) == len(deltas) and keys.FAMILY not in kept:  # one family, of which they say two names
        kept[keys.FAMILY] = layout_name(said[0])
    return {**kept, keys.MERGE: json.dumps(record, ensure_ascii=False)}
