"""What a conversion made of a foreign file, and what it says of it."""

from dataclasses import dataclass, field

from ..delta import SparseDelta

_ROUNDING = 1e-9


@dataclass
class Conversion:
    """A delta made of a foreign file.

    source: what the file was; lost: share of its squared changes that the density cut off, 0 … 1
    left_out: names of parts of the file that a delta does not hold; notes: further lines for people
    """

    delta: SparseDelta
    source: str
    lost: float = 0.0
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report for people."""
        lines = [f"{self.source}: {self.delta.nnz:,} changes in {len(self.delta.entries)} weights."]
        if self.lost > _ROUNDING:
            lines.append(f"Lost with the smaller changes: {self.lost:.2%} of the squared change.")
        return "\n".join(lines + self.notes)
