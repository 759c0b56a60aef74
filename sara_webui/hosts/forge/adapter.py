"""A change as those hosts take it that patch weights by objects, as ComfyUI does."""

from collections.abc import Mapping
from typing import Any

import torch

from sara_core.delta.entry import SparseEntry
from sara_core.tensors.elements import add_sparse_


class SaRAAdapter:
    """base + strength · Δ in fp32; the host rounds it to the weight's dtype. To be mixed into the host's own class.

    before: the parameters that are patched, as they were before, to be asked when this one is; None where the host's
        copy is exact, or something else changes the weight first
    """

    name = "sara"

    def __init__(self, entry: SparseEntry, strength: float, before: Mapping[str, Any] | None = None):
        self._entry, self._strength, self._before = entry, strength, before
        self.loaded_keys: set[str] = set()
        self.weights: list[torch.Tensor] = []

    def calculate_weight(self, weight: torch.Tensor, key: str, *_, **__) -> torch.Tensor:
        """weight: the host's copy, in whatever dtype it computes in"""
        kept = self._before.get(key) if self._before is not None else None
        # The host's copy is in fp16 on many GPUs, which bf16 and fp32 do not fit into.
        exact = weight if kept is None else kept.weight.to(weight.device)
        changed = exact.to(torch.float32, copy=True)
        device = changed.device
        return add_sparse_(changed, self._entry.indices.to(device), self._entry.values.to(device), self._strength)
