"""What the host's `backup` holds of a weight that was changed in place: the elements, not the whole weight."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ....sara_core.delta.in_place_sum import InPlaceSum


class Change(NamedTuple):
    """indices: int32 or int64 [n], flat; values: Δ, floating [n]; strength: that Δ is multiplied by."""

    indices: torch.Tensor
    values: torch.Tensor
    strength: float


class KeptElements:
    """Takes the place of the weight that the host would keep: whoever reads `weight` gets a copy of the base, so that
    every way in which a host or a pack takes patches off gives the base back.

    parameter: that is changed, for as long as this is in the backup
    """

    # The host then makes `weight` the parameter's value instead of copying it into what is there.
    inplace_update = False

    def __init__(
        self,
        parameter: torch.nn.Parameter,
        changes: Sequence[Change],
        offload_device: torch.device,
        instead_of: "KeptElements | None" = None,
    ):
        """Puts the changes on the parameter, in the place of others that are on it; if that is interrupted, those can
        still be restored, and nothing else is on."""
        self._elements = InPlaceSum.put_on(parameter, changes, None if instead_of is None else instead_of._elements)
        self._offload_device = offload_device

    @property
    def parameter(self) -> torch.nn.Parameter:
        return self._elements.weight

    @property
    def base(self) -> tuple[torch.Tensor, ...]:
        """The base values that are kept, of each change's elements."""
        return self._elements.base

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the whole weight as it is without patches, where the host keeps what it does not compute with."""
        return self._elements.base_copy(self._offload_device)

    def base_elements(self, start: int, count: int) -> torch.Tensor:
        """Some neighbouring elements without patches, flat and row-major, without a copy of the weight."""
        return self._elements.base_elements(start, count)

    def has_support_of(self, changes: Sequence[Change]) -> bool:
        """Whether these changes are of the elements whose base values are kept."""
        kept = self._elements.supports
        return len(kept) == len(changes) and all(
            indices is change.indices or torch.equal(indices, change.indices)
            for indices, change in zip(kept, changes)
        )

    def write(self, changes: Sequence[Change]) -> None:
        self._elements.write([(change.values, change.strength) for change in changes])

    def restore(self) -> None:
        self._elements.restore()
