"""Reading and writing the chosen elements of weights as Triton kernels: one launch where torch needs a dozen or more.

On a GPU such work is over long before the next launch is made, so launches are what it costs. Positions are found from
compressed rows (support.py) where they are used; a list of them is never made. To be imported only where its kernels
are wanted: it needs Triton.

All wrappers take contiguous weights of a dtype of DTYPES, and compressed rows crow int32 [rows + 1], col int32 [n].
"""

import torch
import triton
import triton.language as tl

from .triton_gradient import _lower_bound

# Elements of one program.
ELEMENTS = 256
# Weights of other dtypes are left to torch.
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _places(crow, col, element, chosen, rows, columns):
    """Flat positions, int64, of elements of one weight."""
    nothing = element * 0
    row = _lower_bound(crow, nothing, nothing + rows + 1, element + 1) - 1
    return row.to(tl.int64) * columns + tl.load(col + element, mask=chosen, other=0)


@triton.jit
def _changed(base, change):
    """base + change in fp32; where the change is 0, the base itself, −0.0 included."""
    return tl.where(change == 0.0, base, base + change)


@triton.jit(do_not_specialize=["first", "last", "rows", "columns", "first_place"])
def _pick(dense, crow, col, total, first, last, rows, columns, first_place, ELEMENTS: tl.constexpr):
    element = first + tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
    chosen = element < last
    place = _places(crow, col, element, chosen, rows, columns) - first_place
    picked = tl.load(dense + place, mask=chosen, other=0.0).to(tl.float32)
    tl.store(total + element, tl.load(total + element, mask=chosen, other=0.0) + picked, mask=chosen)


@triton.jit(do_not_specialize=["count", "rows", "columns"])
def _change(copy, crow, col, values, count, rows, columns, STORED: tl.constexpr, ELEMENTS: tl.constexpr):
    element = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
    chosen = element < count
    at = copy + _places(crow, col, element, chosen, rows, columns)
    base = tl.load(at, mask=chosen, other=0.0).to(STORED).to(tl.float32)
    change = tl.load(values + element, mask=chosen, other=0.0)
    tl.store(at, _changed(base, change).to(STORED).to(copy.dtype.element_ty), mask=chosen)


@triton.jit(do_not_specialize=["count", "weights"])
def _write(table, crow, col, base, values, count, weights, ELEMENTS: tl.constexpr):
    element = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
    chosen = element < count
    nothing = element * 0
    # The rows of the table, each for all weights: address, first element, first compressed row, rows, columns.
    first_element = table + weights
    weight = _lower_bound(first_element, nothing, nothing + weights, element + 1) - 1
    first = tl.load(first_element + weight)
    crow_at = tl.load(table + 2 * weights + weight).to(tl.int32)
    rows = tl.load(table + 3 * weights + weight).to(tl.int32)
    columns = tl.load(table + 4 * weights + weight)
    row = _lower_bound(crow, crow_at, crow_at + rows + 1, element - first + 1) - 1 - crow_at
    place = row.to(tl.int64) * columns + tl.load(col + element, mask=chosen, other=0)
    at = tl.load(table + weight).to(tl.pointer_type(base.dtype.element_ty)) + place
    before = tl.load(base + element, mask=chosen, other=0.0).to(tl.float32)
    change = tl.load(values + element, mask=chosen, other=0.0)
    tl.store(at, _changed(before, change).to(base.dtype.element_ty), mask=chosen)


def pick_(
    total: torch.Tensor, dense: torch.Tensor, crow: torch.Tensor, col: torch.Tensor, rows: range, elements: range
) -> None:
    """total[elements] += dense at the elements of some rows of a weight.

    total: fp32 [n] of the whole weight; dense [len(rows), columns]; elements: those of `rows`
    """
    if not elements:
        return
    columns = dense.numel() // len(rows)
    with torch.cuda.device_of(total):
        _pick[(triton.cdiv(len(elements), ELEMENTS),)](
            dense, crow, col, total, elements.start, elements.stop, len(crow) - 1, columns, rows.start * columns,
            ELEMENTS=ELEMENTS,
        )  # fmt: skip


def change_(
    copy: torch.Tensor, crow: torch.Tensor, col: torch.Tensor, values: torch.Tensor, stored_dtype: torch.dtype
) -> None:
    """copy = round(copy + values) at the elements of a weight; the sum is rounded to `stored_dtype` first.

    values: fp32 [n]
    """
    if not len(col):
        return
    rows = len(crow) - 1
    with torch.cuda.device_of(copy):
        _change[(triton.cdiv(len(col), ELEMENTS),)](
            copy, crow, col, values, len(col), rows, copy.numel() // rows, STORED=DTYPES[stored_dtype],
            ELEMENTS=ELEMENTS,
        )  # fmt: skip


def write_(
    table: torch.Tensor, crow: torch.Tensor, col: torch.Tensor, base: torch.Tensor, values: torch.Tensor
) -> None:
    """weight = round(base + values) at the elements of several weights of one dtype.

    table: int64 [5, weights]: where each weight is in memory, its first element, the first of its row pointers, its
        rows and its columns; crow, col, base, values: of all weights, one after the other
    """
    if not len(col):
        return
    with torch.cuda.device_of(base):
        _write[(triton.cdiv(len(col), ELEMENTS),)](
            table, crow, col, base, values, len(col), table.shape[1], ELEMENTS=ELEMENTS
        )
