"""Making a sparse delta of dense changes: the largest ones stay, and what is lost with the others is said."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from ..delta import SparseEntry
from ..delta.entry import all_finite, check_shape
from ..errors import DeltaError
from ..tensors.largest import MagnitudeHistogram, largest_cut

# A delta of more than half of all elements is larger than the dense file it came from.
_DENSE = 0.5

Changes = Callable[[], Iterable[tuple[str, torch.Tensor]]]


class Thinned(NamedTuple):
    """What was kept of dense changes.

    entries: weight name → its kept changes
    lost: share of the squared changes that was cut off, 0 … 1: ‖Δ − kept‖² / ‖Δ‖²
    """

    entries: dict[str, SparseEntry]
    lost: float


def thin(changes: Changes, density: float | None, elements: int) -> Thinned:
    """The largest changes by magnitude: `density` · `elements` of them, or without a density all that are not 0.

    changes: gives (name, dense change) of each weight, one at a time and the same every time; it is asked three times
    elements: of the whole model
    Raises DeltaError for a density outside 0 … 1, without one for changes that are not sparse, and for a change that
    is not finite.
    """
    if density is not None and not 0 < density <= 1:
        raise DeltaError(f"The density must be above 0 and at most 1, such as 0.05 for 5 %; it is {density}.")
    histogram, total = MagnitudeHistogram(), 0
    for name, change in changes():
        check_shape(name, tuple(change.shape))
        change = change.float()
        if not all_finite(change):
            raise DeltaError(f"The change of '{name}' has values that are NaN or infinite. Get the file again.")
        histogram.add(change)
        total += change.numel()
    changed = total - int(histogram.counts[0])
    if density is None and changed > _DENSE * total:
        raise DeltaError(
            f"The file changes {changed / total:.0%} of all elements of its weights, which is no sparse delta. Choose "
            "a density, such as 0.05 to keep the largest changes in 5 % of the model; what is lost is reported."
        )
    kept = total if density is None else max(1, round(density * elements))
    cut = largest_cut(histogram, (change.float().reshape(-1) for _, change in changes()), kept)
    entries, kept_squares = {}, 0.0
    for name, change in changes():
        values = change.float().reshape(-1)
        index = (cut.mask(values) & (values != 0)).nonzero().view(-1)
        if len(index):
            entries[name] = SparseEntry(index.to(torch.int32), values[index], tuple(change.shape))
            kept_squares += float(values[index].double().square().sum())
    squares = float(histogram.squares.sum())
    return Thinned(entries, max(0.0, 1 - kept_squares / squares) if squares else 0.0)
