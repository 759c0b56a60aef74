"""One weight's share of a delta, and the one validator that every way in passes through."""

import math
from typing import NamedTuple

import numpy
import torch

from ..errors import DeltaError
from ..tensors.elements import has_own_operations, scatter_

VALUE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**31 - 1
# dtype → the integer with its bits, and the bits of infinity: without the sign, NaN is above, all other numbers below.
_INFINITY = {
    torch.float32: (numpy.int32, 0x7F800000),
    torch.bfloat16: (numpy.int16, 0x7F80),
    torch.float16: (numpy.int16, 0x7C00),
}


class SparseEntry(NamedTuple):
    """The change of one weight.

    indices: int32 [n], flat row-major positions in the whole weight, strictly increasing
    values: float32, bfloat16 or float16 [n], the change Δ at each position
    shape: the shape of the whole weight
    """

    indices: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements of the whole weight."""
        return math.prod(self.shape)


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Raise DeltaError unless `shape` is that of a weight whose elements int32 can number."""
    if len(shape) > MAX_DIMENSIONS:
        raise _damaged(name, f"its shape has {len(shape)} dimensions, at most {MAX_DIMENSIONS} make sense")
    if any(size < 1 for size in shape):
        raise _damaged(name, f"its shape {list(shape)} has an empty or negative side")
    if math.prod(shape) > MAX_ELEMENTS:
        raise _damaged(name, f"its shape {list(shape)} has more than 2^31 - 1 elements")


def check_entry(name: str, entry: SparseEntry) -> None:
    """Raise DeltaError unless the entry is safe to apply to a weight of its shape.

    Checked: shape, dtypes, equal counts, indices in bounds and strictly increasing, finite values.
    """
    indices, values, shape = entry
    check_shape(name, shape)
    if indices.dtype != torch.int32 or indices.dim() != 1:
        raise _damaged(name, f"its indices are {indices.dtype} with {indices.dim()} dimensions, not a list of int32")
    if values.dtype not in VALUE_DTYPES or values.dim() != 1:
        raise _damaged(name, f"its values are {values.dtype} with {values.dim()} dimensions, not a list of floats")
    if len(indices) != len(values):
        raise _damaged(name, f"it has {len(indices)} indices but {len(values)} values")
    if indices.device != values.device:
        raise DeltaError(f"'{name}': indices are on {indices.device} and values on {values.device}; move them together")
    if len(indices) == 0:
        return
    if int(indices[0]) < 0 or int(indices[-1]) >= math.prod(shape):
        raise _damaged(name, f"an index lies outside the weight of shape {list(shape)}")
    if not bool((indices[1:] > indices[:-1]).all()):
        raise _damaged(name, "its indices are not in strictly increasing order (unsorted or duplicated)")
    check_finite(name, values)


def check_finite(name: str, values: torch.Tensor) -> None:
    """Raise DeltaError, naming the entry `name`, if one of the changes is NaN or infinite."""
    if not all_finite(values):
        raise _damaged(name, "it has values that are NaN or infinite")


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. values: floating, of any shape, on any device"""
    if values.dtype in _INFINITY and values.device.type == "cpu" and values.numel() and not has_own_operations(values):
        return _no_bits_of_infinity(values)
    # One such value makes the sum NaN or infinite; looking at every value is thirty times slower.
    return math.isfinite(values.sum(dtype=torch.float32)) or bool(torch.isfinite(values).all())


def _no_bits_of_infinity(values: torch.Tensor) -> bool:
    """As all_finite, in one thread: where others are busy, torch's threads wait for each other far longer."""
    integer, infinity = _INFINITY[values.dtype]
    bits = values.detach().reshape(-1).contiguous().view(torch.uint8).numpy().view(integer)
    # Signed, all negative numbers are below the positive ones; unsigned, all positive ones below the negative.
    unsigned = bits.view(f"u{bits.dtype.itemsize}")
    return bool(bits.max() < infinity and unsigned.max() < infinity + 2 ** (8 * bits.dtype.itemsize - 1))


def _damaged(name: str, finding: str) -> DeltaError:
    return DeltaError(f"The delta's entry '{name}' is damaged: {finding}. Get the file again from where it came from.")


def dense(entry: SparseEntry) -> torch.Tensor:
    """The change of the whole weight, float32 of its shape, on the CPU; 0 where the entry has no position."""
    change = torch.zeros(math.prod(entry.shape)).view(entry.shape)
    return scatter_(change, entry.indices.cpu(), entry.values.float().cpu())
