"""How merged deltas lie to each other: where they overlap, where they pull in opposite directions, what each adds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..delta import SparseDelta
from ..foreign_text import NAME, plain
from ..names.blocks import block_of, natural_order


@dataclass
class BlockShares:
    """One block of the model in a merge.

    elements: positions that any of the deltas changes; shared: those that at least two change by other than 0;
    conflicts: of these, where not all signs are equal
    amounts: float64 [deltas], the sum of |change| that each delta puts into the result
    """

    amounts: torch.Tensor
    elements: int = 0
    shared: int = 0
    conflicts: int = 0

    @property
    def shares(self) -> list[float]:
        """Each delta's share of the result, adding up to 1 (or all 0 if nothing is left)."""
        return (self.amounts / self.amounts.sum().clamp_min(1e-300)).tolist()


class MergeReport:
    """Filled by sara_core.merging.merge; overlap and conflicts are those of the deltas with their weights, before any
    of their elements are taken away, the shares those in the result.

    blocks: name of a block → BlockShares; total: of the whole model
    counts: int64 [deltas, deltas], positions that two deltas both change; on the diagonal those of each
    opposed: int64 [deltas, deltas], of these, where the signs differ
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], method: str, factors: Sequence[str] = ()):
        """names: anybody's; method: for people, with its settings; factors: the lines that gave parts of the model
        factors"""
        self.names = [plain(name, NAME) for name in names]
        self.weights, self.method, self.factors = list(weights), method, list(factors)
        deltas = len(self.names)
        self.blocks: dict[str, BlockShares] = {}
        self.total = BlockShares(torch.zeros(deltas, dtype=torch.float64))
        self.counts = torch.zeros(deltas, deltas, dtype=torch.int64)
        self.opposed = torch.zeros(deltas, deltas, dtype=torch.int64)
        self.elements, self.density = 0, 0.0

    def add(self, name: str, values: torch.Tensor, present: torch.Tensor, parts: torch.Tensor) -> None:
        """Count one weight, over the n positions that any of the deltas changes.

        values: fp32 [deltas, n], the changes times their weights, 0 where a delta has none; present: bool [deltas, n],
            where it has one; parts: fp32 [deltas, n], what of it went into the result
        """
        block = self.blocks.setdefault(block_of(name), BlockShares(torch.zeros_like(self.total.amounts)))
        signs = values.sign().to(torch.int8)
        shared = (signs != 0).sum(0) > 1
        conflicts = (signs > 0).any(0) & (signs < 0).any(0)
        for one in (block, self.total):
            one.elements += values.shape[1]
            one.shared += int(shared.sum())
            one.conflicts += int(conflicts.sum())
            one.amounts += parts.abs().sum(1, dtype=torch.float64)
        for first in range(len(values)):
            for second in range(first, len(values)):
                self.counts[first, second] += int((present[first] & present[second]).sum())
                self.opposed[first, second] += int((signs[first] * signs[second] < 0).sum())

    def result(self, delta: SparseDelta) -> None:
        """Take note of what came out."""
        self.elements, self.density = delta.nnz, delta.density

    def overlap(self, first: int, second: int) -> float:
        """Shared positions of two deltas as a share of the positions of both (intersection over union), 0 … 1."""
        low, high = sorted((first, second))
        both = int(self.counts[low, high])
        return both / max(1, int(self.counts[low, low] + self.counts[high, high]) - both)

    def conflict(self, first: int, second: int) -> float:
        """Share of two deltas' common positions at which they pull in opposite directions, 0 … 1."""
        low, high = sorted((first, second))
        return int(self.opposed[low, high]) / max(1, int(self.counts[low, high]))

    def ordered_blocks(self) -> list[str]:
        """The blocks' names in natural order, 10 after 9."""
        return sorted(self.blocks, key=natural_order)

    def text(self) -> str:
        """The report for people."""
        lines = [
            f"{self.method} of {len(self.names)} deltas: {self.elements:,} elements, {self.density:.3%} of the weights "
            "they are in",
            *(f"  {line}" for line in self.factors),
            "",
            "Share of the result (sum of |change|):",
        ]
        for name, weight, share in zip(self.names, self.weights, self.total.shares):
            lines.append(f"  {share:6.1%}  {name} at weight {weight:g}")
        if len(self.names) > 1:
            lines += ["", *self._pair_lines(), "", *self._block_lines()]
        return "\n".join(lines)

    def _pair_lines(self) -> list[str]:
        lines = ["Overlap of positions, and opposite signs among the common ones:"]
        for first in range(len(self.names)):
            for second in range(first + 1, len(self.names)):
                lines.append(
                    f"  {self.overlap(first, second):6.1%}  {self.conflict(first, second):6.1%}  "
                    f"{self.names[first]} and {self.names[second]}"
                )
        return lines

    def _block_lines(self) -> list[str]:
        shown = {name: plain(name, NAME) for name in self.ordered_blocks()}
        width = max(map(len, shown.values()), default=0)
        lines = ["Blocks: elements, opposite signs among the shared ones, share of each delta:"]
        for name, text in shown.items():
            block = self.blocks[name]
            shares = "  ".join(f"{share:6.1%}" for share in block.shares)
            lines.append(
                f"  {text:{width}}  {block.elements:>11,}  {block.conflicts / max(1, block.shared):6.1%}  {shares}"
            )
        return lines
