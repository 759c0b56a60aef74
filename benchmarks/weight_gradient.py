"""The two routes to a layer's sparse weight gradient, side by side: which is faster at which density.

    python dev.py bench weight_gradient

Layers of Stable Diffusion 1.5 at 32×32 latents, fp32. Each cell is milliseconds by CSR sampled product / by dense
chunks and gather, the best of three. The rule of sara_core.weight_gradient for the CPU rests on this table.
"""

import sys
import warnings

import torch

from benchmarks._timing import best_milliseconds
from sara_core.layers import ConvOp, LinearOp
from sara_core.support import Support
from sara_core.weight_gradient import sparse_weight_gradient

DENSITIES = (0.001, 0.006, 0.02, 0.06, 0.12, 0.25)


def linear(out_features: int, in_features: int, tokens: int, batch: int = 1):
    shape = (out_features, in_features)
    return LinearOp(), shape, (batch, tokens, in_features), (batch, tokens, out_features)


def convolution(out_channels: int, in_channels: int, size: int, kernel: int = 3, batch: int = 1):
    op = ConvOp((kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), 1)
    shape = (out_channels, in_channels, kernel, kernel)
    return op, shape, (batch, in_channels, size, size), (batch, out_channels, size, size)


LAYERS = {
    "Linear 320→320, 1024 tokens": linear(320, 320, 1024),
    "Linear 320→320, 4096 tokens": linear(320, 320, 4096),
    "Linear 320→2560, 1024 tokens": linear(2560, 320, 1024),
    "Linear 768→640, 77 tokens": linear(640, 768, 77),
    "Linear 1280→1280, 64 tokens": linear(1280, 1280, 64),
    "Linear 1280→10240, 64 tokens": linear(10240, 1280, 64),
    "Linear 320→320, 32 × 64 tokens": linear(320, 320, 64, batch=32),
    "Conv 3×3 4→320, 32²": convolution(320, 4, 32),
    "Conv 3×3 320→320, 32²": convolution(320, 320, 32),
    "Conv 3×3 640→640, 16²": convolution(640, 640, 16),
    "Conv 3×3 1280→1280, 8²": convolution(1280, 1280, 8),
    "Conv 3×3 2560→1280, 4²": convolution(1280, 2560, 4),
    "Conv 3×3 320→320, 8 × 8²": convolution(320, 320, 8, batch=8),
    "Conv 1×1 640→640, 16²": convolution(640, 640, 16, kernel=1),
}


def main() -> int:
    warnings.filterwarnings("ignore", message="Sparse CSR")
    generator = torch.Generator().manual_seed(0)
    print("| layer |", " | ".join(f"{density:.1%}" for density in DENSITIES), "|")
    print("|---|" + "---|" * len(DENSITIES))
    for name, (op, shape, input_shape, output_shape) in LAYERS.items():
        x = torch.randn(input_shape, generator=generator)
        grad_output = torch.randn(output_shape, generator=generator)
        cells = [cell(op, shape, x, grad_output, density, generator) for density in DENSITIES]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
    return 0


def cell(op, shape, x, grad_output, density: float, generator) -> str:
    elements = torch.Size(shape).numel()
    indices = torch.randperm(elements, generator=generator)[:max(1, int(elements * density))]
    segment, = Support.from_indices({"weight": indices.sort().values.to(torch.int32)}, {"weight": shape})
    milliseconds = {
        route: best_milliseconds(lambda route=route: sparse_weight_gradient(op, segment, x, grad_output, route))
        for route in ("csr", "dense")
    }
    return f"{milliseconds['csr']:.1f} / {milliseconds['dense']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
