"""The gradient of the chosen elements of one weight, by two routes with the same result.

dense   the weight gradient in chunks of rows, from each of which the chosen elements are gathered; no more than a
        chunk of it ever exists
csr     only the chosen elements: sampled products of the rows of the output gradient and of the (unfolded) input

Which is faster depends on the layer's shape, density, number of tokens and machine. On the CPU the sampled product
wins for nearly every layer up to densities far above the usual ones (`python dev.py bench weight_gradient`), so there
the density decides and the same run has the same bits every time. On other devices the first use of each combination
times both, and the answer is kept for the process.
"""

import math
import time
import warnings
from collections.abc import Iterator

import torch

from .support import Segment

ROUTES = ("auto", "dense", "csr")
# Bytes of the dense gradient that exist at a time.
DENSE_BYTES = 16 << 20
# Share of a weight's elements up to which "auto" takes the sampled product on the CPU.
CPU_CSR_DENSITY = 0.12

# Said once per process by torch about every use of CSR tensors; nothing a user could do about it.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

_fastest: dict[tuple, str] = {}


def sparse_weight_gradient(op, segment: Segment, x, grad_output, route: str = "auto") -> torch.Tensor:
    """∂loss/∂W at the segment's elements: fp32 [len(segment)], in the segment's order.

    op: the layer's operation (layers.py)
    x: the layer's input, after `op.prepare`; grad_output: gradient of its output; same floating dtype, any layout
    route: "dense" or "csr", or "auto" for the faster one
    """
    if route == "auto":
        route = _faster_route(op, segment, x, grad_output)
    return {"dense": _dense, "csr": _csr}[route](op, segment, x, grad_output)


def _faster_route(op, segment, x, grad_output) -> str:
    if x.device.type == "cpu":
        return "csr" if len(segment) <= CPU_CSR_DENSITY * segment.rows * segment.columns else "dense"
    return _measured_route(op, segment, x, grad_output)


def _measured_route(op, segment, x, grad_output) -> str:
    key = (op, segment.shape, _about(len(segment)), x.shape, x.dtype, x.device)
    if key not in _fastest:
        _fastest[key] = _measure(op, segment, x, grad_output)
    return _fastest[key]


def row_chunks(op, segment: Segment, x) -> Iterator[tuple[int, int]]:
    """Ranges of rows, each within one group, whose part of the dense gradient fits into DENSE_BYTES."""
    rows_per_group = segment.rows // op.groups
    rows_per_chunk = max(1, min(rows_per_group, DENSE_BYTES // (segment.columns * x.element_size())))
    for group_start in range(0, segment.rows, rows_per_group):
        group_end = group_start + rows_per_group
        for first in range(group_start, group_end, rows_per_chunk):
            yield first, min(first + rows_per_chunk, group_end)


def _dense(op, segment, x, grad_output):
    parts = []
    for first, last in row_chunks(op, segment, x):
        position = segment.flat(first, last)
        if position.numel():
            rows = op.weight_gradient_rows(x, grad_output, segment.shape, first, last)
            parts.append(rows.reshape(-1).index_select(0, position).float())
    return torch.cat(parts)


def _csr(op, segment, x, grad_output):
    # The sampled product exists in fp32 only, and half precision would lose the sum over tokens anyway.
    x, grad_output = x.float(), grad_output.float()
    rows_per_group = segment.rows // op.groups
    parts = []
    for group in range(op.groups):
        crow = segment.crow[group * rows_per_group:(group + 1) * rows_per_group + 1]
        begin, end = (int(crow[0]), int(crow[-1])) if op.groups > 1 else (0, len(segment))
        col = segment.col[begin:end]
        total = torch.zeros(end - begin, device=x.device)
        for a, b in op.weight_gradient_factors(x, grad_output, group):
            pattern = torch.sparse_csr_tensor(
                crow - begin, col, total, size=(rows_per_group, segment.columns), check_invariants=False
            )
            total = torch.sparse.sampled_addmm(pattern, a, b.t()).values()
        parts.append(total)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _about(count: int) -> int:
    """The same for counts within a factor of √2 or so: layers of one shape hardly ever have equal ones."""
    return round(2 * math.log2(count))


def _measure(op, segment, x, grad_output) -> str:
    seconds = {}
    for _ in range(2):  # the first of each also warms up; the faster counts
        for name, function in (("csr", _csr), ("dense", _dense)):
            _wait(x.device)
            start = time.perf_counter()
            function(op, segment, x, grad_output)
            _wait(x.device)
            seconds[name] = min(time.perf_counter() - start, seconds.get(name, math.inf))
    return min(seconds, key=seconds.get)


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
