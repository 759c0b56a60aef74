"""Chosen elements of a product a bᵀ as Triton kernels, for the routes of weight_gradient.py on GPUs.

tiles   dense tiles of the product on the matrix units, of which only the chosen elements are ever stored
dots    one dot product for each chosen element: for densities so low that tiles would be computed in vain

Both sum in fp32, in the same order every time. To be imported only where its routes are wanted: it needs Triton.
"""

import torch
import triton
import triton.language as tl

# None of these sizes was chosen by measurement. That the kernels find registers enough, and no more shared memory than
# every GPU has, was read off what the compiler makes of them for compute capabilities 8.0 to 12.0.
# Programs that keep one of the GPU's processors busy; with fewer, the tokens of each are divided.
PROGRAMS_PER_PROCESSOR = 2
# A part has no fewer tokens.
LEAST_TOKENS = 512
# Sides of the tiles, the first for products of at least LARGE tiles of it in half precision.
TILES = (128, 64)
LARGE = 64
TILE_TOKENS = 32
DOTS, DOT_TOKENS = 16, 128


@triton.jit
def _lower_bound(ascending, low, high, wanted):
    """For each interval [low, high) the first position at which `ascending` reaches `wanted`, or high."""
    unsearched = tl.max(high - low, axis=0)
    while unsearched > 0:
        middle = low + (high - low) // 2
        searching = low < high
        before = searching & (tl.load(ascending + middle, mask=searching, other=0) < wanted)
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
        unsearched = unsearched // 2
    return low


@triton.jit(do_not_specialize=["count"])
def _tiles(
    a, b, crow, col, out, rows, columns, tokens, count, tokens_per_part,
    a_row, a_token, b_column, b_token,
    TILE: tl.constexpr, TILE_TOKENS: tl.constexpr, PRECISION: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    first_column = tl.program_id(1) * TILE
    column = first_column + tl.arange(0, TILE)
    part = tl.program_id(2)
    in_rows, in_columns = row < rows, column < columns
    # Where the tile's elements lie is searched: a list of them would be the indices once more.
    end = tl.load(crow + row + 1, mask=in_rows, other=0)
    first = _lower_bound(col, tl.load(crow + row, mask=in_rows, other=0), end, first_column)
    last = _lower_bound(col, first, end, first_column + TILE)
    most = tl.max(last - first, axis=0)
    if most > 0:
        begin = part * tokens_per_part
        stop = tl.minimum(begin + tokens_per_part, tokens)
        token = begin + tl.arange(0, TILE_TOKENS)
        a_at = a + row[:, None].to(tl.int64) * a_row + token[None, :].to(tl.int64) * a_token
        b_at = b + token[:, None].to(tl.int64) * b_token + column[None, :].to(tl.int64) * b_column
        total = tl.zeros((TILE, TILE), dtype=tl.float32)
        for _ in range(begin, stop, TILE_TOKENS):
            in_tokens = token < stop
            total = tl.dot(
                tl.load(a_at, mask=in_rows[:, None] & in_tokens[None, :], other=0.0),
                tl.load(b_at, mask=in_tokens[:, None] & in_columns[None, :], other=0.0),
                total, input_precision=PRECISION,
            )  # fmt: skip
            token += TILE_TOKENS
            a_at += TILE_TOKENS * a_token
            b_at += TILE_TOKENS * b_token
        out += part.to(tl.int64) * count
        for number in range(most):
            element = first + number
            chosen = element < last
            # Registers have no addresses: the column is found by comparing.
            wanted = tl.load(col + element, mask=chosen, other=-1)
            value = tl.sum(tl.where(wanted[:, None] == column[None, :], total, 0.0), axis=1)
            if ADDS:
                value += tl.load(out + element, mask=chosen, other=0.0)
            tl.store(out + element, value, mask=chosen)


@triton.jit(do_not_specialize=["count"])
def _dots(
    a, b, crow, col, out, rows, tokens, count, tokens_per_part,
    a_row, a_token, b_column, b_token,
    DOTS: tl.constexpr, DOT_TOKENS: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0) * DOTS + tl.arange(0, DOTS)
    part = tl.program_id(1)
    chosen = element < count
    nothing = tl.zeros((DOTS,), dtype=tl.int32)
    row = _lower_bound(crow, nothing, nothing + rows + 1, element + 1) - 1
    column = tl.load(col + element, mask=chosen, other=0)
    begin = part * tokens_per_part
    stop = tl.minimum(begin + tokens_per_part, tokens)
    token = begin + tl.arange(0, DOT_TOKENS)
    a_at = a + row[:, None].to(tl.int64) * a_row + token[None, :].to(tl.int64) * a_token
    b_at = b + column[:, None].to(tl.int64) * b_column + token[None, :].to(tl.int64) * b_token
    total = tl.zeros((DOTS, DOT_TOKENS), dtype=tl.float32)
    for _ in range(begin, stop, DOT_TOKENS):
        inside = chosen[:, None] & (token < stop)[None, :]
        left = tl.load(a_at, mask=inside, other=0.0).to(tl.float32)
        total += left * tl.load(b_at, mask=inside, other=0.0).to(tl.float32)
        token += DOT_TOKENS
        a_at += DOT_TOKENS * a_token
        b_at += DOT_TOKENS * b_token
    value = tl.sum(total, axis=1)
    at = out + part.to(tl.int64) * count + element
    if ADDS:
        value += tl.load(at, mask=chosen, other=0.0)
    tl.store(at, value, mask=chosen)


INTERPRETED = not isinstance(_tiles, triton.JITFunction)
# Triton's interpreter takes the bits of bf16 for integers when it multiplies matrices.
OPERANDS = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)


def tiles(
    crow: torch.Tensor, col: torch.Tensor, a: torch.Tensor, b: torch.Tensor, total: torch.Tensor | None = None
) -> torch.Tensor:
    """(a bᵀ) at the elements of compressed rows: fp32 [n], added to `total` [n] if that is given.

    crow: int32 [rows + 1], beginning with 0; col: int32 [n], ascending in each row
    a [rows, tokens], b [columns, tokens]: of one floating dtype, any strides; fp32 is multiplied as TF32 only where
        torch.backends.cuda.matmul allows it
    """
    a, b = _operands(a, b)
    (rows, tokens), columns = a.shape, b.shape[0]
    is_large = a.dtype != torch.float32 and _ceil(rows, TILES[0]) * _ceil(columns, TILES[0]) >= LARGE
    tile = TILES[0] if is_large else TILES[1]
    grid = _ceil(rows, tile), _ceil(columns, tile)
    tokens_per_part, parts = _division(grid[0] * grid[1], tokens, TILE_TOKENS, a.device)
    out, adds = _output(total, parts, len(col), a.device)
    with torch.cuda.device_of(a):
        _tiles[(*grid, parts)](
            a, b, crow, col, out, rows, columns, tokens, len(col), tokens_per_part, *a.stride(), *b.stride(),
            TILE=tile, TILE_TOKENS=TILE_TOKENS, PRECISION="tf32" if _tf32_is_allowed() else "ieee",
            ADDS=adds, num_warps=8 if is_large or a.dtype == torch.float32 else 4,
        )  # fmt: skip
    return _sum(out, total, adds)


def dots(
    crow: torch.Tensor, col: torch.Tensor, a: torch.Tensor, b: torch.Tensor, total: torch.Tensor | None = None
) -> torch.Tensor:
    """As `tiles`; fastest with `a` and `b` contiguous over tokens, and always with the full precision of fp32."""
    a, b = _operands(a, b)
    rows, tokens = a.shape
    programs = _ceil(len(col), DOTS)
    tokens_per_part, parts = _division(programs, tokens, DOT_TOKENS, a.device)
    out, adds = _output(total, parts, len(col), a.device)
    if programs:
        with torch.cuda.device_of(a):
            _dots[(programs, parts)](
                a, b, crow, col, out, rows, tokens, len(col), tokens_per_part, *a.stride(), *b.stride(),
                DOTS=DOTS, DOT_TOKENS=DOT_TOKENS, ADDS=adds,
            )  # fmt: skip
    return _sum(out, total, adds)


def _output(total, parts, count, device) -> tuple[torch.Tensor, bool]:
    """What the programs write to, and whether they add to what is there."""
    if total is not None and parts == 1:
        return total, True
    return torch.empty(parts, count, device=device), False


def _sum(out, total, has_added):
    if has_added:
        return total
    result = out[0] if len(out) == 1 else out.sum(0)
    return result if total is None else total.add_(result)


def _operands(a, b):
    return (a, b) if a.dtype in OPERANDS else (a.float(), b.float())


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _division(programs: int, tokens: int, step: int, device) -> tuple[int, int]:
    """Into how many tokens each, and how many parts, the sum is divided to give every processor something to do."""
    processors = 1 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count
    parts = min(_ceil(PROGRAMS_PER_PROCESSOR * processors, max(1, programs)), tokens // LEAST_TOKENS)
    tokens_per_part = step * _ceil(_ceil(tokens, max(1, parts)), step)
    return tokens_per_part, max(1, _ceil(tokens, max(1, tokens_per_part)))


def _tf32_is_allowed() -> bool:
    matmul = torch.backends.cuda.matmul
    try:
        return matmul.allow_tf32
    except RuntimeError:  # refused by torch from 2.9 on once somebody has used the new name
        return matmul.fp32_precision == "tf32"
