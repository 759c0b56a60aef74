"""Several changes on one weight that lives on, as one sum with one rounding, and what takes them off again.

    changes = InPlaceSum(weight, [first.indices, second.indices])
    changes.write([(first.values, 0.8), (second.values, -0.5)])    # weight = round(base + 0.8 · Δ₁ − 0.5 · Δ₂)
    changes.write([(first.values, 1.0), (second.values, 0.0)])     # as if the first had never been
    changes = InPlaceSum.put_on(weight, [(third.indices, third.values, 1.0)], instead_of=changes)    # one walk for all
    changes.restore()                                              # every bit is back
"""

from collections.abc import Sequence

import torch

from ..tensors.elements import added, gather, overwrite_, scatter_
from ..tensors.replacing import replace_


class InPlaceSum:
    """Σ s · Δ on some elements of one weight, and the base values of these elements.

    weight: floating point, strided, in any memory layout, also an inference tensor; it stays the caller's
    supports: of each change, int32 or int64 [n], unique flat positions in row-major order; kept as they are
    base: of each change the base values of its elements, [n] in the weight's dtype, on its device; read from the weight
        where they are not given

    Constructing writes nothing. Any thread may call the methods, in inference mode or not, one at a time.
    """

    def __init__(
        self, weight: torch.Tensor, supports: Sequence[torch.Tensor], base: Sequence[torch.Tensor] | None = None
    ):
        self.weight, self.supports = weight, tuple(supports)
        if base is None:
            base = (gather(weight, indices.to(weight.device)) for indices in self.supports)
        self.base = tuple(base)

    @classmethod
    def put_on(
        cls,
        weight: torch.Tensor,
        changes: Sequence[tuple[torch.Tensor, torch.Tensor, float]],
        instead_of: "InPlaceSum | None" = None,
    ) -> "InPlaceSum":
        """What the constructor and `write` give, of changes each with its support, Δ and strength, in as few walks
        through the weight as there can be.

        instead_of: what is on the same weight and is taken off first; only its `restore` has a meaning afterwards

        If it is interrupted, none of these changes is on, and of those before some elements may be.
        """
        supports = [indices for indices, _, _ in changes]
        if len(changes) == 1 and (instead_of is None or len(instead_of.supports) == 1):
            before = None if instead_of is None else (*instead_of._supports(), *instead_of._base())
            indices, values, strength = changes[0]
            here = indices.to(weight.device), values.to(weight.device)
            return cls(weight, supports, [replace_(weight, *here, strength, before)])
        if instead_of is not None:
            instead_of.restore()
        made = cls(weight, supports)
        try:
            made.write([(values, strength) for _, values, strength in changes])
        except BaseException:
            made.restore()
            raise
        return made

    def write(self, changes: Sequence[tuple[torch.Tensor, float]]) -> None:
        """weight = round(base + Σ s · Δ), added in the order given in float32 and rounded once to the weight's dtype.

        changes: of each support in turn, Δ (floating [n]) and its strength
        """
        if len(changes) == 1:
            (values, strength), (indices,), (base,) = changes[0], self._supports(), self._base()
            overwrite_(self.weight, indices, base, values.to(self.weight.device), strength)
        elif changes:
            self._write_sum(changes)

    def restore(self) -> None:
        """Give the weight back every bit it had, from the kept values."""
        self._restore(self.weight)

    def base_copy(self, device: torch.device) -> torch.Tensor:
        """The whole weight as it was, a new tensor on this device; an inference tensor if the weight is one."""
        with torch.inference_mode(self.weight.is_inference()), torch.no_grad():
            copy = self.weight.detach().to(device, copy=True)
        self._restore(copy)
        return copy

    def base_elements(self, start: int, count: int) -> torch.Tensor:
        """Elements start … start + count (flat, row-major) of the weight as it was, [≤ count] in its dtype, on its
        device."""
        places = torch.arange(start, min(start + count, self.weight.numel()), device=self.weight.device)
        elements = gather(self.weight, places)
        for indices, base in zip(self._supports(), self._base()):
            first, last = torch.searchsorted(indices, torch.tensor([start, start + count], device=indices.device))
            elements[indices[first:last].long() - start] = base[first:last]
        return elements

    def _restore(self, weight: torch.Tensor) -> None:
        for indices, base in zip(self.supports, self.base):
            scatter_(weight, indices.to(weight.device), base.to(weight.device, weight.dtype))

    def _write_sum(self, changes: Sequence[tuple[torch.Tensor, float]]) -> None:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        supports = self._supports()
        union, slots = torch.unique(torch.cat([indices.int() for indices in supports]), return_inverse=True)
        slots = slots.split([len(indices) for indices in supports])
        total = torch.empty(len(union), dtype=dtype, device=union.device)
        for places, base in zip(slots, self._base()):
            total[places] = base.to(dtype)
        for places, (values, strength) in zip(slots, changes):
            total[places] = added(total[places], values.to(total.device), strength)
        scatter_(self.weight, union, total.to(self.weight.dtype))

    def _supports(self) -> list[torch.Tensor]:
        return [indices.to(self.weight.device) for indices in self.supports]

    def _base(self) -> list[torch.Tensor]:
        # Whoever moved or converted the model meanwhile has moved and converted the base values, too.
        return [base.to(self.weight.device, self.weight.dtype) for base in self.base]
