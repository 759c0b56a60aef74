"""A delta added to single elements of a weight, in place: in its own precision, or under one scale for all of it."""

from collections.abc import Callable

import torch

from ...delta import SparseEntry
from ...errors import DeltaError
from ...tensors.elements import added, gather, scatter_
from .loss import Loss

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
# Beside a float8 weight: in older files, and in described ones.
SCALES = ("scale_weight", "weight_scale")
# Changes that are added at a time: the temporaries, some 50 bytes for each, do not grow with the delta.
CHUNK = 2**20


def add_(name: str, weight: torch.Tensor, entry: SparseEntry, strength: float, loss: Loss) -> None:
    """Add strength · Δ to a weight, floating, 1-D, on the CPU, in place. Raises DeltaError if its dtype has no number
    that large."""
    for indices, values in _parts(entry):
        before = gather(weight, indices)
        after = added(before, values, strength)
        if bool((after.isinf() & before.isfinite()).any()):
            raise too_large(name, weight.dtype)
        scatter_(weight, indices, after)
        loss.count(before, after, values.float() * strength)


def add_scaled_(
    codes: torch.Tensor,
    entry: SparseEntry,
    strength: float,
    scale: float,
    decode: Callable[[torch.Tensor], torch.Tensor],
    encode: Callable[[torch.Tensor], torch.Tensor],
    loss: Loss,
) -> None:
    """Add strength · Δ to a weight that is scale · decode(codes), in place; the scale stays as it is.

    codes: integers, 1-D, on the CPU; decode: codes → float32; encode: float32 → the nearest codes
    """
    for indices, values in _parts(entry):
        before, change = gather(codes, indices), values.float() * strength
        after = encode((decode(before) * scale + change) / scale)
        scatter_(codes, indices, after)
        loss.count(decode(before).double() * scale, decode(after).double() * scale, change)


def added_to(
    name: str, weight: torch.Tensor, entry: SparseEntry, strength: float, dtype: torch.dtype, loss: Loss
) -> torch.Tensor:
    """round(weight + strength · Δ) in another dtype. weight: float32, 1-D, on the CPU; changed on the way. Raises
    DeltaError if the dtype has no number that large."""
    for indices, values in _parts(entry):
        base, change = gather(weight, indices), values.float() * strength
        wanted = base + change
        loss.count(base.to(dtype), wanted.to(dtype), change)
        scatter_(weight, indices, wanted)
    return rounded(name, weight, dtype)


def rounded(name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A float32 weight in another dtype. Raises DeltaError if that has no number so large."""
    result = weight.to(dtype)
    if bool((result.isinf() & weight.isfinite()).any()):
        raise too_large(name, dtype)
    return result


def too_large(name: str, dtype: torch.dtype) -> DeltaError:
    """The error for a weight that its dtype cannot hold once it is changed."""
    return DeltaError(
        f"The delta makes elements of '{name}' larger than {str(dtype).removeprefix('torch.')} can hold. Choose a "
        "lower strength, or bf16 as the precision of the result."
    )


def _parts(entry: SparseEntry):
    return zip(entry.indices.cpu().split(CHUNK), entry.values.cpu().split(CHUNK))
