"""A few neighbouring elements of a weight, and how far the precision that it is stored in may have moved them.

Of a plain tensor, of float8 with one scale beside it, and of what a host can dequantise (`QuantisedWeight`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy
import torch

from ..tensors.elements import gather, has_own_operations
from .quantised import FLOAT8, SCALES

RUN = 4
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
_NAMES = ("fp64", "fp32", "fp16", "bf16", "fp8 e4m3", "fp8 e5m2")
_SCALED = "fp8 scaled"


@dataclass(frozen=True)
class Sample:
    """Neighbouring elements of a weight: x became x' with |x − x'| ≤ ½ ε · |x| + error.

    values: float64 [RUN]
    rounding: a dtype with this ε, None where so few bits are left that no bound tells anything
    error: ≥ 0, in units of the values
    """

    values: numpy.ndarray
    rounding: torch.dtype | None
    error: float

    @property
    def is_plain(self) -> bool:
        """Whether it was only cast, and not scaled before that."""
        return self.rounding is not None and self.error == floor(self.rounding)

    def shares_its_grid_with(self, other: "Sample") -> bool:
        """Whether both were rounded, coarsely, to the same numbers: then one base gives the same elements."""
        coarse = self.rounding in FLOAT8.values() or self.error > floor(torch.bfloat16)
        return coarse and self.rounding == other.rounding and numpy.float32(self.error) == numpy.float32(other.error)


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight that is no plain tensor.

    shape: that it has when dequantised
    precision: its name, for people
    sample: gives the RUN elements from a flat position on, row-major, dequantised
    """

    shape: torch.Size
    precision: str
    sample: Callable[[int], Sample]


def floor(dtype: torch.dtype) -> float:
    """The smallest positive number of a dtype: below it everything is rounded to a multiple of it."""
    precision = torch.finfo(dtype)
    return precision.smallest_normal * precision.eps


def sampler(name: str, weights: Mapping[str, torch.Tensor | QuantisedWeight]) -> Callable[[int], Sample] | None:
    """What gives the RUN elements of weight `name` from a flat position on; None if they cannot be read."""
    weight = weights[name]
    if isinstance(weight, QuantisedWeight):
        return weight.sample
    if weight.dtype not in DTYPES or has_own_operations(weight) or weight.is_meta:
        return None
    scales = _scales(name, weights)
    if not scales:
        return lambda start: Sample(_elements(weight, start), weight.dtype, floor(weight.dtype))
    if weight.dtype not in FLOAT8.values() or len(scales) > 1 or scales[0].numel() != 1:
        return None
    scale = float(scales[0])
    if not 0 < scale < math.inf:
        return None
    return lambda start: Sample(_elements(weight, start) * scale, weight.dtype, floor(weight.dtype) * scale)


def precision_of(names: list[str], weights: Mapping[str, torch.Tensor | QuantisedWeight]) -> str:
    """The precision of these weights, for people: of those that are quantised if any are, the one that most elements
    have. Empty if it has no name here."""
    counts: dict[tuple[bool, str], int] = {}
    for name in names:
        if named := _precision(name, weights):
            place = is_quantised(named), named
            counts[place] = counts.get(place, 0) + weights[name].shape.numel()
    return max(counts, key=lambda place: (place[0], counts[place]))[1] if counts else ""


def named_precision(dtype: torch.dtype) -> str:
    """The name of one of DTYPES, for people."""
    return _NAMES[DTYPES.index(dtype)]


def is_quantised(precision: str) -> bool:
    """Whether a precision of that name is below 16 bits."""
    return precision not in _NAMES[:4]


def _precision(name: str, weights: Mapping) -> str:
    weight = weights[name]
    if isinstance(weight, QuantisedWeight):
        return weight.precision
    if weight.dtype not in DTYPES or has_own_operations(weight):
        return ""
    return _SCALED if _scales(name, weights) else named_precision(weight.dtype)


def _scales(name: str, weights: Mapping) -> list[torch.Tensor]:
    """What stands beside a weight whose elements are something else than they say."""
    layer = name.removesuffix("weight")
    return [weights[layer + scale] for scale in SCALES if layer + scale in weights]


def _elements(weight: torch.Tensor, start: int) -> numpy.ndarray:
    """The RUN elements from flat position `start`, float64."""
    codes = weight.detach()
    if codes.element_size() == 1:
        codes = codes.view(torch.uint8)  # bytes, which any torch can gather
    elements = gather(codes, torch.arange(start, start + RUN, device=codes.device))
    return elements.view(weight.dtype).cpu().double().numpy()
