"""Where the Triton kernels for single elements (triton_elements.py) may take torch's place.

What a compiler makes of a kernel on a machine nobody has seen is not to be trusted blindly: on each device, and for
each dtype, it has to give torch's bits for a small example first. Otherwise torch does the work, more slowly.
"""

import functools
import logging
import textwrap
from collections.abc import Sequence
from types import ModuleType

import torch

from ..tensors.elements import added
from .support import Segment, Support

_SHAPES = {"a": (5, 70), "b": (3, 4, 3, 3), "c": (9,)}


def kernels_for(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The module of the kernels, where they work on `device` for weights of this dtype; None where torch has to do:
    also while somebody watches what torch is asked for, as where memory is foretold."""
    if device.type != "cuda" or torch._C._len_torch_dispatch_stack():
        return None
    return _proved(device, dtype)


@functools.cache
def _proved(device, dtype):
    try:
        from . import triton_elements as kernels

        if dtype not in kernels.DTYPES:
            return None
        prove(kernels, device, dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # without Triton, or with one that does not go with this torch, driver or compiler
        level = logging.DEBUG if isinstance(error, ImportError) else logging.WARNING
        logging.getLogger("sara").log(
            level, "SaRA: elements of weights are written by torch, as kernels for it do not work here (%s: %s)",
            type(error).__name__, textwrap.shorten(str(error), 300),
        )  # fmt: skip
        return None
    return kernels


@torch.no_grad()
def prove(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ArithmeticError where a kernel gives other bits than torch for a small example."""
    generator = torch.Generator().manual_seed(0)

    def random(size):
        return torch.randn(size, generator=generator)

    weights = {name: random(shape).to(device, dtype) for name, shape in _SHAPES.items()}
    index = {
        name: random(weight.numel()).gt(0.3).nonzero().view(-1).to(torch.int32) for name, weight in weights.items()
    }
    support = Support.from_indices(index, _SHAPES)
    support.segments = [segment.to(device) for segment in support]
    values = (random(support.nnz) * 1e-2).to(device)
    values[::5] = 0
    base = torch.cat([weights[segment.name].view(-1)[segment.flat()] for segment in support])
    wanted = {name: weight.clone() for name, weight in weights.items()}
    for segment in support:
        wanted[segment.name].view(-1)[segment.flat()] = added(base[segment.span], values[segment.span], 1.0)
    segment = support.segments[0]
    changed = weights[segment.name].clone()
    kernels.change_(changed, segment.crow, segment.col, values[segment.span], dtype)
    kernels.write_(
        table_of([weights[segment.name] for segment in support], support.segments),
        torch.cat([segment.crow for segment in support]), torch.cat([segment.col for segment in support]), base, values,
    )  # fmt: skip
    results = [(changed, wanted[segment.name]), *((weights[name], wanted[name]) for name in weights)]
    rows = range(1, segment.rows)
    elements = range(int(segment.crow[1]), len(segment))
    dense, total = random((len(rows), segment.columns)).to(device, dtype), random(len(segment)).to(device)
    expected = total.clone()
    expected[elements.start:] += dense.view(-1)[segment.flat(1)].float()
    kernels.pick_(total, dense, segment.crow, segment.col, rows, elements)
    if not all(torch.equal(ours, torchs) for ours, torchs in [*results, (total, expected)]):
        raise ArithmeticError("they give other bits than torch")


def table_of(weights: Sequence[torch.Tensor], segments: Sequence[Segment]) -> torch.Tensor:
    """What triton_elements.write_ is told of several contiguous weights: int64 [5, weights], on their device."""
    first_element, first_pointer, rows = 0, 0, []
    for weight, segment in zip(weights, segments):
        rows.append((weight.data_ptr(), first_element, first_pointer, segment.rows, segment.columns))
        first_element += len(segment)
        first_pointer += segment.rows + 1
    return torch.tensor(rows, dtype=torch.int64).t().contiguous().to(weights[0].device)
