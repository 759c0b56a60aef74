"""One change of a weight's elements put on, or put in the place of another, in one walk through the weight.

Each element's neighbourhood is brought into the processor's cache once: taking one change off, keeping the base values
and writing the other one walks are three of their own otherwise, each as long as it takes to read most of the weight.
"""

from collections.abc import Iterable

import torch

from .elements import added, at_a_time, memory_of, places_of, scatter_, writer_of

# Positions int32 or int64 [n], strictly increasing and flat, and a value for each.
_Elements = tuple[torch.Tensor, torch.Tensor]


def replace_(
    weight: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    strength: float,
    instead_of: _Elements | None = None,
) -> torch.Tensor:
    """weight[indices] = round(base + strength · values); returns the base, what was there before, as a new tensor [n].

    indices: int32 or int64 [n], strictly increasing; values: floating [n]
    instead_of: positions as `indices`, and what belongs there, in the weight's dtype: put back first

    All are on the weight's device. The bits are those of `scatter_`, `gather` and `overwrite_` one after the other.
    If it is interrupted, nothing of this change is left; of what was to be put back some may be.
    """
    done = 0
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        base, memory = torch.empty(len(indices), dtype=weight.dtype, device=weight.device), memory_of(weight)
        write = writer_of(memory)
        try:
            for new, old in _walk(weight, indices, None if instead_of is None else instead_of[0]):
                if instead_of is not None:
                    write(places_of(weight, instead_of[0][old].long()), instead_of[1][old])
                places, before = places_of(weight, indices[new].long()), base[new]
                torch.index_select(memory, 0, places, out=before)
                done = new.stop
                write(places, added(before, values[new], strength))
        except BaseException:
            scatter_(weight, indices[:done], base[:done])
            raise
    return base


def _walk(
    weight: torch.Tensor, indices: torch.Tensor, others: torch.Tensor | None
) -> list[tuple[slice, slice | None]]:
    """The elements of one vector, or of both, by ranges of positions, in order: few enough to stay in the cache."""
    if others is None:
        size = at_a_time(weight, indices)
        return [(part, None) for part in _slices(range(size, len(indices), size), len(indices))]
    longer = max(indices, others, key=len)
    size = at_a_time(weight, longer)
    cuts = longer[size::size].contiguous()
    ends = (torch.searchsorted(vector, cuts.to(vector.dtype)).tolist() for vector in (indices, others))
    return list(zip(*(_slices(of_vector, len(vector)) for of_vector, vector in zip(ends, (indices, others)))))


def _slices(ends: Iterable[int], count: int) -> list[slice]:
    return [slice(*pair) for pair in zip([0, *ends], [*ends, count])]
