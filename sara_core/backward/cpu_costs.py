"""What the routes of a weight gradient take on the CPU, and so which of them is taken there.

No clock decides: the costs below were measured once for each kind of processor (`python dev.py bench route_costs`), so
that the same run takes the same routes, and has the same bits, every time. Where nobody has measured, the density
decides alone.
"""

import functools
from dataclasses import dataclass

import torch

from .ops import LayerOp

# Share of a weight's elements up to which the sampled product is taken where no costs are known.
SAMPLED_DENSITY = 0.12
# Elements of the smallest weight that was measured. Of smaller ones the calls themselves cost most.
SMALLEST_MEASURED = 320 * 320


@dataclass(frozen=True)
class Costs:
    """Picoseconds of one thread.

    layout: to cast and transpose, or unfold, one element of the layer's input or of its output's gradient
    product: of the sampled product, for one chosen element and token
    dense: of the dense gradient, for one element of the weight and token
    weight: of the dense gradient, for one element of the weight whatever the tokens
    """

    layout: float
    product: float
    dense: float
    weight: float = 0.0

    def sampled_pays(self, rows: int, columns: int, chosen: int, tokens: int) -> bool:
        """Whether the sampled product of `chosen` elements is no dearer than the dense gradient [rows, columns]."""
        sampled = self.layout * (rows + columns) + self.product * chosen
        return sampled * tokens <= (self.dense * tokens + self.weight) * rows * columns


LINEAR, CONVOLUTION = "linear", "convolution"
FP32, BF16 = torch.float32, torch.bfloat16
# Processors with matrix units (AMX), others that multiply bf16 (avx512_bf16), and those of them that take two cycles
# for a vector of 512 bits, and so longer for most that is dense.
MATRIX, VECTOR, HALF_VECTOR = "matrix", "vector", "half vector"
COSTS = {
    # AMD EPYC (Zen 4).
    (HALF_VECTOR, LINEAR, FP32): Costs(700, 98, 21.5, 450),
    (HALF_VECTOR, LINEAR, BF16): Costs(700, 95, 10.3, 240),
    (HALF_VECTOR, CONVOLUTION, FP32): Costs(510, 110, 20.8, 2000),
    (HALF_VECTOR, CONVOLUTION, BF16): Costs(610, 115, 9.4, 1000),
    # AMD EPYC (Zen 5), measured while one thread transposed, element by element: laying out is dearer here than it is.
    (VECTOR, LINEAR, FP32): Costs(800, 90, 19.5),
    (VECTOR, LINEAR, BF16): Costs(800, 100, 5.7),
    (VECTOR, CONVOLUTION, FP32): Costs(300, 120, 11.5, 1000),
    (VECTOR, CONVOLUTION, BF16): Costs(300, 120, 5.6, 1500),
    # Intel Xeon, measured while a Linear still laid out all tokens at once, and likewise.
    (MATRIX, LINEAR, FP32): Costs(1100, 96, 11.6),
    (MATRIX, LINEAR, BF16): Costs(1500, 160, 3.0),
}


def sampled_product_pays(
    op: LayerOp, rows: int, columns: int, chosen: int, tokens: int, dtype: torch.dtype
) -> bool:
    """Whether the sampled product is to be taken, and not the dense gradient, of a weight [rows, columns] with so many
    chosen elements.

    tokens: positions of the layer's output, of all samples; dtype: of the layer's input and its output's gradient
    """
    kind = LINEAR if op.spatial_dims is None else CONVOLUTION
    costs = COSTS.get((processor(), kind, dtype))
    if costs is None or op.groups > 1 or rows * columns < SMALLEST_MEASURED:
        return chosen <= SAMPLED_DENSITY * rows * columns
    return costs.sampled_pays(rows, columns, chosen, tokens)


@functools.cache
def processor() -> str | None:
    """Which kind of processor this is, of those with known costs; None: another."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # may be lowered by the user, to repeat another's bits
        return None
    for kind, name in ((MATRIX, "_is_amx_tile_supported"), (VECTOR, "_is_avx512_bf16_supported")):
        if getattr(torch.cpu, name, bool)():
            return HALF_VECTOR if kind == VECTOR and _is_zen4() else kind
    return None


def _is_zen4() -> bool:
    """Whether a processor with avx512_bf16 is AMD's (sse4a) from before Zen 5, which brought avx_vnni too. Older
    versions of torch cannot tell."""
    instructions = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(instructions.get("sse4a")) and not instructions.get("avx_vnni")
