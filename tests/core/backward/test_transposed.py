"""Transposing on the CPU gives what torch's way gives, in one order of memory, whatever the threads and the layout."""

import pytest
import torch

from sara_core.backward import transposed
from sara_core.backward.transposed import transposed_parts


def matrix_of(rows, columns, dtype, layout):
    if layout == "columns":  # as a convolution's positions behind its channels
        return torch.randn(columns, rows).to(dtype).t()
    if layout == "slice":
        return torch.randn(rows, columns + 3).to(dtype)[:, 1:-2]
    return torch.randn(rows, columns).to(dtype)


@pytest.mark.parametrize("layout", ["rows", "columns", "slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, columns, at_a_time", [
    (64, 32, 16), (65, 32, 16), (100, 7, 16), (5, 40, 16), (33, 17, 1), (48, 1, 16), (1, 9, 4), (16, 16, 16),
])  # fmt: skip
@pytest.mark.parametrize("threads, together", [(1, 1), (2, 1), (3, 1), (1, 1 << 20)])
def test_each_part_is_the_transposed_of_so_many_rows(
    monkeypatch, rows, columns, at_a_time, dtype, layout, threads, together
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(transposed, "TOGETHER_BYTES", together)
    matrix = matrix_of(rows, columns, dtype, layout)
    before = matrix.clone()
    parts = list(transposed_parts(matrix, at_a_time, torch.float32))
    assert len(parts) == len(matrix.split(at_a_time))
    for part, rows_of_it in zip(parts, matrix.split(at_a_time)):
        assert part.dtype == torch.float32 and part.is_contiguous() and torch.equal(part, rows_of_it.float().t())
    assert torch.equal(matrix, before)


def test_other_dtypes_are_transposed_too():
    matrix = torch.randn(10, 6).double()
    parts = list(transposed_parts(matrix, 4, torch.float64))
    assert torch.equal(torch.cat(parts, 1), matrix.t()) and all(part.is_contiguous() for part in parts)


@pytest.mark.parametrize("threads, together, most", [(1, 1, 1), (2, 1, 2), (5, 1, 5), (1, 3 * 8 * 16 * 4, 3)])
def test_what_is_transposed_at_once_keeps_the_threads_busy_and_no_more_memory_than_said(
    monkeypatch, threads, together, most
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(transposed, "TOGETHER_BYTES", together)
    parts = list(transposed_parts(torch.randn(8 * 10, 16), 8, torch.float32))
    of_memory = [part.untyped_storage().data_ptr() for part in parts]
    assert max(of_memory.count(memory) for memory in of_memory) == most
