"""What rounding left of a delta, counted while it is added."""

from dataclasses import dataclass

import torch


@dataclass
class Loss:
    """Sums over the elements that were changed.

    lost: those that are as before, though their change was not zero; rescaled: blocks that needed a new scale
    wanted: Σ change²; arrived: Σ change · (after − before)
    """

    lost: int = 0
    rescaled: int = 0
    wanted: float = 0.0
    arrived: float = 0.0

    def count(self, before: torch.Tensor, after: torch.Tensor, change: torch.Tensor) -> None:
        """Add these elements: their values before and after, and what should lie between; [n] each, floating."""
        before, after, change = before.double(), after.double(), change.double()
        self.lost += int(((after == before) & (change != 0)).sum())
        self.wanted += float(change.square().sum())
        # Where the base is not finite nothing can arrive.
        self.arrived += float((change * (after - before).nan_to_num(0.0, 0.0, 0.0)).sum())

    def add(self, other: "Loss") -> None:
        """Add what was counted elsewhere."""
        self.lost += other.lost
        self.rescaled += other.rescaled
        self.wanted += other.wanted
        self.arrived += other.arrived

    @property
    def share(self) -> float:
        """How much of the whole change arrived, measured along it: 1 for all of it."""
        return self.arrived / self.wanted if self.wanted else 1.0
