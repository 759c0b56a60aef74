"""Transposing on the CPU.

What torch has for it (`t().contiguous()`) moves one element at a time with one thread. Shuffling the channels of a
picture is by definition a transposition of each of its pixels, [groups, channels of a group] to [channels of a group,
groups], for which torch has vectorised kernels in fp32, and threads share the pixels.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

# What is transposed at a time for all threads; a thread has at least one part.
TOGETHER_BYTES = 2 << 20


def transposed_parts(matrix: torch.Tensor, rows: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The matrix [n, columns] in parts of so many rows, the last one shorter, each transposed: [columns, rows] of
    `dtype`, contiguous.

    On the CPU as many parts are transposed at once as keep all threads busy.
    """
    if matrix.device.type != "cpu" or dtype != torch.float32 or matrix.stride(-1) != 1:
        # Columns that lie in memory one after the other are only copied.
        yield from (part.to(dtype).t().contiguous() for part in matrix.split(rows))
        return
    part_bytes = rows * matrix.shape[1] * dtype.itemsize
    at_once = max(torch.get_num_threads(), TOGETHER_BYTES // part_bytes)
    for together in matrix.split(rows * at_once):
        whole = len(together) // rows
        for parts, of_rows in ((whole, together[:whole * rows]), (1, together[whole * rows:])):
            if len(of_rows):
                yield from _transposed_each(of_rows.to(dtype), parts)


def _transposed_each(matrix: torch.Tensor, parts: int) -> torch.Tensor:
    """[parts · rows, columns] → [parts, columns, rows]"""
    rows, columns = len(matrix) // parts, matrix.shape[1]
    # Each part is a pixel of a picture one pixel wide, with its channels last.
    pixels = matrix.reshape(1, parts, 1, rows * columns).permute(0, 3, 1, 2)
    return F.channel_shuffle(pixels, rows).permute(0, 2, 3, 1).reshape(parts, columns, rows)
