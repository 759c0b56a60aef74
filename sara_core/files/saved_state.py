"""Checks of what a saved state holds, before anything is taken from it.

A snapshot is a file, and files are damaged, cut, written by other programs, or made to harm. An optimizer's kernels
believe the sizes they are given: moments that are shorter than their vector make them write over foreign memory. So
everything that continues a run (`check_state` of Store, Draws, LowRankLoss, Training) first compares every tensor's
shape and dtype, and every number's type and range, with what it would have saved itself.
"""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..errors import DeltaError

# More than there can be of anything that is counted one by one.
LARGEST_COUNT = 1 << 40
LEAST_ABOVE_0 = math.ulp(0.0)


def damaged(what: str) -> DeltaError:
    """The error for a state that cannot be what was saved; `what` is a clause without a full stop."""
    return DeltaError(f"This saved state of a training is damaged: {what}. Go on from an earlier one, or start anew.")


def fields(value: Any, what: str, names: Iterable[str]) -> Mapping:
    """`value`, if it is a mapping with all these names. Raises DeltaError otherwise, as every function here.

    what: what it is called in that error
    """
    if not isinstance(value, Mapping):
        raise damaged(f"{what} is no table of names and values")
    missing = [name for name in names if name not in value]
    if missing:
        raise damaged(f"{what} lacks {', '.join(missing)}")
    return value


def sequence(value: Any, what: str, length: int | None = None) -> Sequence:
    """`value`, if it is a list or tuple, of `length` entries if that is given."""
    if not isinstance(value, (list, tuple)):
        raise damaged(f"{what} is no list")
    if length is not None and len(value) != length:
        raise damaged(f"{what} has {len(value)} entries instead of {length}")
    return value


def whole_number(value: Any, what: str, least: int, most: int) -> int:
    """`value`, if it is an int from `least` to `most`, both included."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise damaged(f"{what} is no whole number")
    if not least <= value <= most:
        raise damaged(f"{what} is {_shown(value)}, and can only be {least} to {most}")
    return value


def number(value: Any, what: str, least: float = -math.inf, most: float = math.inf) -> float:
    """`value`, if it is a finite number from `least` to `most`, both included; numpy's count too."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise damaged(f"{what} is no number")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of floats
        finite = False
    if not finite or not least <= value <= most:
        raise damaged(f"{what} is {_shown(value)}, which it cannot be")
    return value


def text(value: Any, what: str) -> str:
    """`value`, if it is a str."""
    if type(value) is not str:
        raise damaged(f"{what} is no text")
    return value


def tensor(value: Any, what: str, dtype: torch.dtype, shape: tuple[int, ...], infinities: bool = False) -> torch.Tensor:
    """`value`, if it is a plain tensor of this dtype and shape, its elements one after the other in memory.

    Of floating point it holds no NaN, and no infinite values unless `infinities` are allowed.
    """
    plain_tensor(value, what)
    if value.dtype != dtype or value.shape != torch.Size(shape):
        raise damaged(f"{what} is {_described(value.dtype, value.shape)} instead of {_described(dtype, shape)}")
    if dtype.is_floating_point and (value.isnan().any() if infinities else not value.isfinite().all()):
        raise damaged(f"{what} holds values that are no numbers")
    return value


def plain_tensor(value: Any, what: str) -> torch.Tensor:
    """`value`, if it is a tensor that a kernel may be given the address of."""
    # A subclass may answer whatever it likes when it is asked for its shape.
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided or value.is_meta:
        raise damaged(f"{what} is no tensor with values")
    # Of an expanded one all elements may be the same four bytes, where kernels write one after the other; those with a
    # pending sign, and those that are zero without memory, are no values in memory either.
    if not value.is_contiguous() or value.is_neg() or value.is_conj() or value._is_zerotensor():
        raise damaged(f"{what} is not laid out as it was saved")
    if value.untyped_storage().nbytes() < (value.storage_offset() + value.numel()) * value.element_size():
        raise damaged(f"{what} has lost its memory")
    return value


def generator_state(value: Any, what: str) -> torch.Tensor:
    """`value`, if it is the state of a random generator on the CPU: uint8 [n], as `torch.Generator.get_state` gives."""
    expected = torch.Generator().get_state()
    tensor(value, what, expected.dtype, tuple(expected.shape))
    try:
        torch.Generator().set_state(value.cpu())
    except RuntimeError as error:
        raise damaged(f"{what} is none that a random generator can have") from error
    return value


def _described(dtype: torch.dtype, shape) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _shown(value) -> str:
    """A number as text, of which the longest that a file can hold has millions of digits."""
    if isinstance(value, int) and abs(value) >= 10**18:
        return "beyond 10^18"
    return str(value)
