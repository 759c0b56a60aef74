"""The sparse delta between two models: their n largest differences, or those on a given support.

A delta is added in float32: round(float32(base) + Δ). With Δ = round(tuned − base) that is the tuned weight wherever
any float32 Δ makes it so: every such Δ lies within half a step of the tuned weight from the true difference, so where
the steps of Δ are finer than that, the nearest Δ does as well, and where they are coarser, Δ is the nearest. The rest,
weights that are now much smaller than they were, are counted in the report.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..delta import SparseDelta, SparseEntry
from ..delta import metadata as keys
from ..delta.delta import check_fits
from ..delta.variants import left_out
from ..errors import DeltaError
from ..foreign_text import NAME, plain
from ..models.comparison import Chunk, Comparison, exact_change, model_weights
from ..names.resolve import resolve
from ..numbers import LARGEST_COUNT, checked
from ..tensors.elements import gather, sum_of_squares
from .largest_changes import LargestChanges

# What the metadata of a support say of the base, which an extract on it shares.
_OF_BASE = (keys.FAMILY, keys.BASE, keys.BASE_IDENTITY, keys.BASE_NAME)

Source = str | os.PathLike | Mapping[str, torch.Tensor]


@dataclass
class ExtractionReport:
    """What a delta keeps of the difference between two models.

    elements: of the diffusion model; changed: of these, that differ; kept: in the delta
    squared_share: Σ Δ² over what is kept, as a share of Σ Δ² over all
    largest, largest_left_out: |Δ|
    inexact: kept elements at which no float32 Δ makes base + Δ exactly the tuned weight
    other_parts: part of the checkpoint outside the diffusion model → (tensors that differ, tensors)
    rounded: elements that differ only because one model is stored with fewer bits, which are no changes
    remarks: sentences on what was not compared, or left out
    """

    elements: int
    changed: int = 0
    kept: int = 0
    squared_share: float = 0.0
    largest: float = 0.0
    largest_left_out: float = 0.0
    inexact: int = 0
    other_parts: Mapping[str, tuple[int, int]] | None = None
    rounded: int = 0
    remarks: Sequence[str] = ()

    @property
    def relative_error(self) -> float:
        """‖tuned − (base + delta)‖ / ‖tuned − base‖ (Frobenius norms), 0 … 1."""
        return math.sqrt(max(0.0, 1.0 - self.squared_share))

    def add_kept(self, chunk: Chunk, mask: torch.Tensor) -> None:
        """Count a chunk of which the elements in `mask`, bool [n], are kept."""
        left_out = chunk.change.masked_fill(mask, 0)
        self.largest_left_out = max(self.largest_left_out, float(left_out.abs().max()))
        _, exact = exact_change(chunk.base[mask], chunk.tuned[mask])
        self.inexact += int((~exact).sum())

    def text(self) -> str:
        """The report for people."""
        lines = [
            f"{self.changed:,} of the diffusion model's {self.elements:,} elements differ "
            f"({self.changed / self.elements:.3%}), by up to {self.largest:.3g}.",
            f"The delta has {self.kept:,} of them ({self.kept / self.elements:.3%} of the model): "
            f"{self.squared_share:.2%} of the squared change, a relative error of {self.relative_error:.2%}.",
        ]
        if self.largest_left_out:
            lines.append(f"The largest change left out is {self.largest_left_out:.3g}.")
        if self.inexact:
            lines.append(
                f"At {self.inexact:,} elements base + delta is not exactly the tuned weight: no change in fp32 is."
            )
        else:
            lines.append("At all of them base + delta is exactly the tuned weight.")
        if self.rounded:
            lines.append(
                f"{self.rounded:,} more differ by nothing but rounding, as the models are stored in different "
                "precisions: they are no changes."
            )
        lines += self.remarks
        for part, (differing, total) in (self.other_parts or {}).items():
            if differing:
                named = plain(part, NAME)
                lines.append(f"Not extracted: {differing} of the {total} tensors of {named} differ as well.")
        return "\n".join(lines)


def extract(
    base: Source,
    tuned: Source,
    *,
    density: float | None = None,
    count: int | None = None,
    support: SparseDelta | None = None,
) -> SparseDelta:
    """The delta from `base` to `tuned`: files, or mappings from name to tensor of any floating dtype.

    density: keep the largest |Δ|, this share of the diffusion model's elements, 0 < density ≤ 1
    count: keep this many, the largest |Δ|
    support: keep exactly the positions of this delta, changed or not
    None of them: keep every change.
    Where the models have different precisions, an element that only one of them rounds has not changed.

    Files may be checkpoints, diffusion models alone, or diffusers folders: their delta has ComfyUI's names. Of a
    checkpoint only the diffusion model is compared. A mapping's delta has the mapping's own names.
    Raises DeltaError for files or models that do not go together or do not differ; UnsupportedModelError, by name,
    for weights that only one of them has quantised, or in another way.

    >>> import torch
    >>> from sara_core import extract
    >>> base = {"layer.weight": torch.ones(2, 3)}  # or "model.safetensors", or a diffusers folder
    >>> tuned = {"layer.weight": torch.tensor([[1.0, 1.5, 1.0], [-2.0, 1.25, 1.0]])}
    >>> delta = extract(base, tuned, count=2)
    >>> delta.entries["layer.weight"]
    SparseEntry(indices=tensor([1, 3], dtype=torch.int32), values=tensor([ 0.5000, -3.0000]), shape=(2, 3))
    >>> delta.save("tuned.safetensors")

    What is lost, here the change by 0.25:

    >>> from sara_core.extraction.extract import extract_with_report
    >>> delta, report = extract_with_report(base, tuned, count=2)
    >>> report.changed, report.kept, report.largest_left_out
    (3, 2, 0.25)
    """
    return extract_with_report(base, tuned, density=density, count=count, support=support)[0]


@torch.no_grad()
def extract_with_report(
    base: Source,
    tuned: Source,
    *,
    density: float | None = None,
    count: int | None = None,
    support: SparseDelta | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[SparseDelta, ExtractionReport]:
    """As `extract`, with a report. `on_progress` is called with steps done and steps in all, and may raise to stop."""
    amount = {"density": density, "count": count, "support": support}
    amount = {name: value for name, value in amount.items() if value is not None}
    _check_amount(amount)
    with model_weights(base, "the base model") as one, model_weights(tuned, "the tuned model") as other:
        comparison = Comparison(one, other)
        steps = _Steps(comparison, {"support": 1, "all": 2}.get(next(iter(amount), "all"), 3), on_progress)
        report = ExtractionReport(
            comparison.elements, other_parts=comparison.other_parts(), remarks=comparison.remarks()
        )
        changes = _all_changes(steps, report)
        if support is not None:
            entries = _on_support(comparison, support, changes.squares, report)
        else:
            wanted = amount.get("count") or round(amount.get("density", 1.0) * report.elements)
            entries, report.squared_share = changes.keep(wanted, report.add_kept)
        steps.finish()
        report.kept = sum(len(entry.indices) for entry in entries.values())
        recorded = {"support": support.nnz} if support is not None else amount
        record = {"base": one.label, "tuned": other.label, **recorded, "squared_share": report.squared_share}
        metadata = {keys.FAMILY: one.family} if one.family else {}
    if support is not None:
        metadata |= {key: text for key, text in support.metadata.items() if key in _OF_BASE}
    return SparseDelta(entries, {**metadata, keys.EXTRACTION: json.dumps(record, ensure_ascii=False)}), report


def _check_amount(amount: dict) -> None:
    if len(amount) > 1:
        raise DeltaError(f"Give at most one of density, count and support (got {', '.join(amount)}).")
    if "count" in amount:
        amount["count"] = checked(amount["count"], "The count", 1, LARGEST_COUNT, whole=True)
    if "density" in amount:
        amount["density"] = checked(amount["density"], "The density", above=0, most=1)


class _Steps:
    """Reads the comparison several times and tells how far that is."""

    def __init__(self, comparison: Comparison, readings: int, on_progress):
        self.comparison, self.on_progress = comparison, on_progress or (lambda done, total: None)
        self.done, self.total = 0, comparison.elements * readings

    def chunks(self) -> Iterator[Chunk]:
        for chunk in self.comparison.chunks():
            yield chunk
            self.done += len(chunk.change)
            self.on_progress(self.done, self.total)

    def finish(self) -> None:
        """A reading that turned out not to be needed counts as done."""
        if self.done < self.total:
            self.on_progress(self.total, self.total)


def _all_changes(steps: _Steps, report: ExtractionReport) -> LargestChanges:
    """All differences, counted, and in the report how many there are and the largest."""
    changes = LargestChanges(steps.chunks)
    if changes.changed == 0:
        raise DeltaError("Both models have the same diffusion model: there is nothing to extract. Choose another one.")
    report.changed, report.largest, report.rounded = changes.changed, changes.largest, steps.comparison.rounded
    return changes


def _on_support(
    comparison: Comparison, support: SparseDelta, all_squares: float, report: ExtractionReport
) -> dict[str, SparseEntry]:
    pairs = {pair.name: pair for pair in comparison.pairs}
    entries, squares = {}, 0.0
    names = resolve(support.entries, pairs, f"'{comparison.base.label}'")
    wanted = {found: support.entries[name] for name, found in names.items()}
    skipped = left_out(wanted, {found: pairs[found].shape for found in wanted})
    report.remarks = [*report.remarks, *skipped.values()]
    for found, entry in wanted.items():
        if found in skipped:
            continue
        check_fits(found, entry, pairs[found].shape)
        base, tuned = comparison.both(pairs[found])
        indices = entry.indices.cpu()
        change, exact = exact_change(gather(base, indices), gather(tuned, indices))
        report.inexact += int((~exact).sum())
        squares += sum_of_squares(change)
        entries[found] = SparseEntry(indices, change, pairs[found].shape)
    report.squared_share = squares / all_squares
    return entries
