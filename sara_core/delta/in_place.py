"""The one way in which Δ is written into weights that live on: from base values that are kept.

    change = InPlaceChange(weight, entry.indices, entry.values)
    change.write(0.8)      # weight = round(base + 0.8 · Δ)
    change.write(0.5)      # as if the first had never been
    change.restore()       # every bit is back

A training does the same for the elements it trains (backward/store.py), whose positions it keeps in another form.
"""

import torch

from ..tensors.elements import added, gather, overwrite_, scatter_


# A change d that is added and subtracted again leaves some rounding steps of |weight + d|, and d may be the larger one.
_LEFT_BY_UNDOING = 8


class InPlaceChange:
    """Δ on some elements of one weight, and the base values of these elements.

    weight: floating point, strided, in any memory layout, also an inference tensor; it stays the caller's
    indices: int32 or int64 [n], unique flat positions in row-major order; values: Δ, floating [n]. Both are kept as
        they are and must not change.
    base: [n] in the weight's dtype, on its device

    Constructing writes nothing. Any thread may call the methods, in inference mode or not, one at a time.
    """

    def __init__(self, weight: torch.Tensor, indices: torch.Tensor, values: torch.Tensor):
        self.weight, self.indices, self.values, self._strength = weight, indices, values, 0.0
        self.base = gather(weight, indices.to(weight.device))

    def write(self, strength: float) -> None:
        """weight = round(base + strength · Δ) on the elements, one rounding to its dtype; at strength 0 the base."""
        device = self.weight.device
        overwrite_(self.weight, self.indices.to(device), self._base(), self.values.to(device), strength)
        self._strength = strength

    @torch.no_grad()
    def is_in_place(self, most: int | None = None) -> bool:
        """Whether the elements are as `write` and `restore` left them, up to what is left in their last bits by a
        change that was made and undone, so that nobody else's change is lost by the next one. A weight that was
        converted meanwhile counts as in place.

        most: about how many of the elements to look at, spread over all; None for all of them
        """
        if self.weight.dtype != self.base.dtype:
            return True
        device, some = self.weight.device, slice(None, None, 1 if most is None else max(1, len(self.indices) // most))
        written = added(self._base()[some], self.values[some].to(device), self._strength)
        difference = gather(self.weight, self.indices[some].to(device)).float() - written
        return not difference.norm() > _LEFT_BY_UNDOING * torch.finfo(self.base.dtype).eps * written.float().norm()

    def restore(self) -> None:
        """Give the weight back every bit it had, from the kept values."""
        self._strength = 0.0
        scatter_(self.weight, self.indices.to(self.weight.device), self._base())

    def _base(self) -> torch.Tensor:
        # Whoever moved or converted the model meanwhile has moved and converted the base values, too.
        return self.base.to(self.weight.device, self.weight.dtype)
