"""The gradient of the chosen elements of one weight, by several routes with the same result.

dense   the weight gradient in chunks of rows, from each of which the chosen elements are gathered; no more than a
        chunk of it ever exists; works everywhere
csr     only the chosen elements: sampled products of the rows of the output gradient and of the (unfolded) input
triton-tiles, triton-dots   the same products by kernels of our own (triton_gradient.py), on GPUs where Triton works

Which is fastest depends on the layer's shape, density, number of tokens and machine. On the CPU costs that were
measured beforehand decide (cpu_costs.py), so that the same run has the same bits every time. On other devices the first
use of each combination times all that work there, and the answer is kept for the process.
"""

import functools
import logging
import math
import textwrap
import time
import warnings
from collections.abc import Iterator

import torch

from ..errors import UnsupportedModelError
from .cpu_costs import sampled_product_pays
from .element_kernels import kernels_for
from .ops import LayerOp
from .support import Segment

KERNELS = ("triton-tiles", "triton-dots")
ROUTES = ("auto", "dense", "csr", *KERNELS)
# Bytes of the dense gradient that exist at a time.
DENSE_BYTES = 16 << 20
# Where torch has sampled products of sparse matrices.
CSR_DEVICES = ("cpu", "cuda")
# Relative difference from torch's result up to which a kernel is believed; TF32 alone makes 1e-3 of it.
KERNEL_TOLERANCE = 1e-2

_fastest: dict[tuple, str] = {}
# Kernels that failed on this machine.
_given_up: set[str] = set()


def sparse_weight_gradient(
    op: LayerOp, segment: Segment, x: torch.Tensor, grad_output: torch.Tensor, route: str = "auto"
) -> torch.Tensor:
    """∂loss/∂W at the segment's elements: fp32 [len(segment)], in the segment's order.

    x: the layer's input, after `op.prepare`; grad_output: gradient of its output; same floating dtype, any layout
    route: one of ROUTES; "auto" for the fastest one that works here

    Raises what `check_route` raises.
    """
    total = torch.zeros(len(segment), device=x.device)
    add_weight_gradient_(total, op, segment, x, grad_output, route)
    return total


def add_weight_gradient_(
    total: torch.Tensor, op: LayerOp, segment: Segment, x: torch.Tensor, grad_output: torch.Tensor, route: str = "auto"
) -> None:
    """Add what `sparse_weight_gradient` computes to `total`, fp32 [len(segment)]."""
    if route != "auto":
        check_route(route, x.device)
        _add_(route, total, op, segment, x, grad_output)
        return
    while True:
        route = _fastest_route(op, segment, x, grad_output)
        try:
            return _add_(route, total, op, segment, x, grad_output)
        except Exception as error:
            # Compiled anew for another layout, a kernel may fail that worked when it was measured.
            _give_up(route, error)


def check_route(route: str, device: torch.device) -> None:
    """Raise ValueError for an unknown route, and UnsupportedModelError for one that does not work on `device`."""
    if route not in ROUTES:
        raise ValueError(f"The way of computing weight gradients is one of {', '.join(ROUTES)}, not {route!r}.")
    obstacle = _obstacle(device) if route in KERNELS else None
    if route == "csr" and device.type not in CSR_DEVICES:
        obstacle = f"torch has no sampled products on the {device.type.upper()}"
    if obstacle:
        raise UnsupportedModelError(
            f'Weight gradients cannot be computed by "{route}": {obstacle}. Choose "auto": it takes the fastest way '
            "that works here."
        )


def _obstacle(device) -> str | None:
    """Why kernels do not run on a device, if so."""
    kernels, error = _kernels()
    if kernels is None:
        return f"it needs the Python package triton, which cannot be loaded here ({error})"
    if device.type != "cuda" and not kernels.INTERPRETED:
        return f"it runs on NVIDIA and AMD GPUs only, and this model is on the {device.type.upper()}"


@functools.cache
def _kernels():
    """(the module of the kernels, None), or (None, what is wrong with Triton)"""
    try:
        from . import triton_gradient
    except Exception as error:  # a Triton that does not go with this torch or driver raises anything
        return None, error
    return triton_gradient, None


def _give_up(route: str, error: Exception) -> None:
    """Never use a kernel again in this process. Raises the error if a kernel is not to blame."""
    if route not in KERNELS or isinstance(error, torch.OutOfMemoryError):
        raise error
    _given_up.add(route)
    logging.getLogger("sara").warning(
        "SaRA: computing weight gradients by %s does not work on this machine, so it is done another way (%s: %s)",
        route, type(error).__name__, textwrap.shorten(str(error), 300),
    )  # fmt: skip
    for key in [key for key, fastest in _fastest.items() if fastest == route]:
        del _fastest[key]


def _fastest_route(op, segment, x, grad_output) -> str:
    if x.device.type == "cpu":
        return cpu_route(op, segment, x, grad_output)
    if x.device.type not in CSR_DEVICES:
        return "dense"
    return _measured_route(op, segment, x, grad_output)


def cpu_route(op: LayerOp, segment: Segment, x: torch.Tensor, grad_output: torch.Tensor) -> str:
    """What "auto" takes on the CPU, for what `sparse_weight_gradient` is given."""
    tokens = grad_output.numel() // segment.rows
    pays = sampled_product_pays(op, segment.rows, segment.columns, len(segment), tokens, x.dtype)
    return "csr" if pays else "dense"


def _measured_route(op, segment, x, grad_output) -> str:
    key = (op, segment.shape, _about(len(segment)), x.shape, x.dtype, x.device)
    if key not in _fastest:
        _fastest[key] = _measure(op, segment, x, grad_output)
    return _fastest[key]


def _add_(route, total, op, segment, x, grad_output) -> None:
    """Kernels that raise have added nothing, so that another route can be tried."""
    {"dense": _add_dense_, "csr": _add_csr_, "triton-tiles": _add_tiles_, "triton-dots": _add_dots_}[route](
        total, op, segment, x, grad_output
    )


def row_chunks(op: LayerOp, segment: Segment, x: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of rows, each within one group, whose part of the dense gradient, in the dtype of the input
    `x`, fits into DENSE_BYTES; a single row may be larger."""
    rows_per_group = segment.rows // op.groups
    rows_per_chunk = max(1, min(rows_per_group, DENSE_BYTES // (segment.columns * x.element_size())))
    for group_start in range(0, segment.rows, rows_per_group):
        group_end = group_start + rows_per_group
        for first in range(group_start, group_end, rows_per_chunk):
            yield first, min(first + rows_per_chunk, group_end)


def _add_dense_(total, op, segment, x, grad_output):
    kernels = kernels_for(x.device, x.dtype)
    parts = []
    for first, last in row_chunks(op, segment, x):
        elements = segment.elements(first, last)
        if not elements:
            continue
        rows = op.weight_gradient_rows(x, grad_output, segment.shape, first, last)
        if kernels is None:
            parts.append(rows.reshape(-1).index_select(0, segment.flat(first, last)).float())
        else:
            kernels.pick_(total, rows.contiguous(), segment.crow, segment.col, range(first, last), elements)
    if parts:
        total.add_(torch.cat(parts))


def _add_csr_(total, op, segment, x, grad_output):
    def of_group(crow, col, group):
        result = torch.zeros(len(col), device=x.device)
        # The sampled product exists in fp32 only, and half precision would lose the sum over tokens anyway.
        for a, b in op.weight_gradient_factors(x, grad_output, group, torch.float32):
            result = _with_sampled_product(result, crow, col, a, b)
        return result

    total.add_(_of_groups(op, segment, of_group))


@functools.cache
def _let_torch_say_that_csr_is_beta() -> None:
    """Torch says so once a process, at the first use of such a tensor; nobody who trains can do anything about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.zeros(1, 1).to_sparse_csr()


def _with_sampled_product(total, crow, col, a, b):
    _let_torch_say_that_csr_is_beta()
    pattern = torch.sparse_csr_tensor(crow, col, total, size=(len(a), len(b)), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, a, b.t()).values()


def _add_tiles_(total, op, segment, x, grad_output):
    kernels, _ = _kernels()
    # Tiles are as fast in any layout: no transposed copies of a Linear's input and gradient.
    unfolded = functools.partial(op.weight_gradient_factors, dtype=x.dtype)
    _add_by_kernel_(kernels.tiles, total, op, segment, x, grad_output, _linear_views if _is_linear(op) else unfolded)


def _add_dots_(total, op, segment, x, grad_output):
    kernels, _ = _kernels()
    factors = functools.partial(op.weight_gradient_factors, dtype=x.dtype)
    _add_by_kernel_(kernels.dots, total, op, segment, x, grad_output, factors)


def _add_by_kernel_(product, total, op, segment, x, grad_output, factors):
    """factors: (x, grad_output, group) → as of an op's `weight_gradient_factors`"""
    if _is_linear(op):
        parts = list(factors(x, grad_output, 0))
        if len(parts) == 1:  # as on every GPU: one launch computes and adds
            product(segment.crow, segment.col, *parts[0], total)
            return

    def of_group(crow, col, group):
        result = None
        for a, b in factors(x, grad_output, group):
            part = product(crow, col, a, b)
            result = part if result is None else result.add_(part)
        return torch.zeros(len(col), device=x.device) if result is None else result

    total.add_(_of_groups(op, segment, of_group))


def _is_linear(op) -> bool:
    return op.spatial_dims is None


def _linear_views(x, grad_output, group):
    yield grad_output.reshape(-1, grad_output.shape[-1]).t(), x.reshape(-1, x.shape[-1]).t()


def _of_groups(op, segment, of_group):
    """What `of_group`(crow, col, group) says of each group's compressed rows, which begin with 0."""
    if op.groups == 1:
        return of_group(segment.crow, segment.col, 0)
    rows_per_group = segment.rows // op.groups
    parts = []
    for group in range(op.groups):
        first, last = group * rows_per_group, (group + 1) * rows_per_group
        elements = segment.elements(first, last)
        crow = segment.crow[first:last + 1] - elements.start
        parts.append(of_group(crow, segment.col[elements.start:elements.stop], group))
    return torch.cat(parts)


def _about(count: int) -> int:
    """The same for counts within a factor of √2 or so: layers of one shape hardly ever have equal ones."""
    return round(2 * math.log2(count))


def _measure(op, segment, x, grad_output) -> str:
    routes = ["csr", "dense"]
    if _obstacle(x.device) is None:
        routes += KERNELS
    seconds, expected = {}, None
    for _ in range(2):  # the first of each also warms up; the faster counts
        for route in (route for route in routes if route not in _given_up):
            try:
                _wait(x.device)
                start = time.perf_counter()
                result = torch.zeros(len(segment), device=x.device)
                _add_(route, result, op, segment, x, grad_output)
                _wait(x.device)
                seconds[route] = min(time.perf_counter() - start, seconds.get(route, math.inf))
                expected = result if expected is None else expected
                _check_kernel(route, result, expected)
            except Exception as error:
                _give_up(route, error)
    return min(seconds.keys() - _given_up, key=seconds.get)


def _check_kernel(route: str, result: torch.Tensor, expected: torch.Tensor) -> None:
    """What a compiler makes of a kernel on a machine nobody has seen is not to be trusted blindly."""
    if route in KERNELS and not (result - expected).norm() <= KERNEL_TOLERANCE * expected.norm():
        raise ArithmeticError("it gives other numbers than torch")


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
