"""What it costs a delta to be saved with values of fewer bits."""

from collections.abc import Mapping

import torch

from ..names.resolve import resolve
from ..tensors.elements import added, gather
from .delta import SparseDelta
from .text_part import split


def rounded_values(delta: SparseDelta, dtype: torch.dtype) -> int:
    """How many of the changes `dtype` does not hold exactly."""
    return sum(int((values.to(dtype) != values).sum()) for _, values, _ in delta.entries.values())


def differing_weights(delta: SparseDelta, dtype: torch.dtype, base: Mapping[str, torch.Tensor]) -> int:
    """How many elements of the base's weights, in its own dtype and at strength 1, differ if the changes are rounded.

    dtype: to which the changes are rounded; base: name → weight, floating point, on any device. What the delta changes
        of text encoders, which stand beside a model, is not counted

    Raises DeltaError if the base lacks one of the delta's weights.
    """
    differing = 0
    for name, own in resolve(split(delta)[0].entries, base, "the model").items():
        indices, values, _ = delta.entries[name]
        before = gather(base[own], indices.to(base[own].device)).cpu()
        exact, rounded = (added(before, change.cpu(), 1.0) for change in (values, values.to(dtype)))
        differing += int((exact != rounded).sum())
    return differing
