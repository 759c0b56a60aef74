"""The one way in which Δ is written into weights that live on: from base values that are kept.

    change = InPlaceChange(weight, entry.indices, entry.values)
    change.write(0.8)      # weight = round(base + 0.8 · Δ)
    change.write(0.5)      # as if the first had never been
    change.restore()       # every bit is back

A training does the same for the elements it trains (backward/store.py), whose positions it keeps in another form.
"""

import torch

from ..tensors.elements import gather, overwrite_, scatter_


class InPlaceChange:
    """Δ on some elements of one weight, and the base values of these elements.

    weight: floating point, strided, in any memory layout, also an inference tensor; it stays the caller's
    indices: int32 or int64 [n], unique flat positions in row-major order; values: Δ, floating [n]. Both are kept as
        they are and must not change.
    base: [n] in the weight's dtype, on its device

    Constructing writes nothing. Any thread may call the methods, in inference mode or not, one at a time.
    """

    def __init__(self, weight: torch.Tensor, indices: torch.Tensor, values: torch.Tensor):
        self.weight, self.indices, self.values = weight, indices, values
        self.base = gather(weight, indices.to(weight.device))

    def write(self, strength: float) -> None:
        """weight = round(base + strength · Δ) on the elements, one rounding to its dtype; at strength 0 the base."""
        device = self.weight.device
        overwrite_(self.weight, self.indices.to(device), self._base(), self.values.to(device), strength)

    def restore(self) -> None:
        """Give the weight back every bit it had, from the kept values."""
        scatter_(self.weight, self.indices.to(self.weight.device), self._base())

    def _base(self) -> torch.Tensor:
        # Whoever moved or converted the model meanwhile has moved and converted the base values, too.
        return self.base.to(self.weight.device, self.weight.dtype)
