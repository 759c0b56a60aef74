"""The routes to a layer's sparse weight gradient, side by side: which is fastest for which layer, at which density.

    python dev.py bench weight_gradient [--model sd15|sdxl] [--latent N] [--batch N] [--json FILE]
    python dev.py bench weight_gradient --device cuda [--dtype bf16|fp16|fp32]

Layers of Stable Diffusion 1.5 and XL with random input and gradient, milliseconds, the best of a few calls. The rule of
sara_core.backward.weight_gradient for the CPU rests on this table; on a GPU it measures for itself what is measured
here.
"""

import argparse
import json
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

from benchmarks.lib.report import check_json_option, machine
from benchmarks.lib.timing import best_milliseconds
from sara_core.backward.ops import ConvOp, LinearOp
from sara_core.backward.support import Support
from sara_core.backward.weight_gradient import KERNELS, ROUTES, check_route, sparse_weight_gradient
from sara_core.errors import UnsupportedModelError

# Where the CPU changes from one route to the other lies above what anybody trains.
DENSITIES = {"cpu": (0.001, 0.006, 0.02, 0.06, 0.12, 0.25), "cuda": (0.001, 0.006, 0.02, 0.06)}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
USUAL_DTYPE = {"cpu": "fp32", "cuda": "bf16"}
USUAL_LATENT = {"cpu": {"sd15": 32, "sdxl": 32}, "cuda": {"sd15": 64, "sdxl": 128}}
TEXT_TOKENS = 77


def linear(out_features: int, in_features: int, tokens: int, batch: int):
    shape = (out_features, in_features)
    return LinearOp(), shape, (batch, tokens, in_features), (batch, tokens, out_features)


def convolution(out_channels: int, in_channels: int, size: int, batch: int, kernel: int = 3):
    op = ConvOp((kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), 1)
    shape = (out_channels, in_channels, kernel, kernel)
    return op, shape, (batch, in_channels, size, size), (batch, out_channels, size, size)


def sd15_layers(latent: int, batch: int) -> dict:
    half, quarter, eighth = latent // 2, latent // 4, latent // 8
    return {
        "Linear 320→320": linear(320, 320, latent**2, batch),
        "Linear 320→2560": linear(2560, 320, latent**2, batch),
        "Linear 768→640 (text)": linear(640, 768, TEXT_TOKENS, batch),
        "Linear 1280→1280": linear(1280, 1280, quarter**2, batch),
        "Linear 1280→10240": linear(10240, 1280, quarter**2, batch),
        "Conv 3×3 4→320": convolution(320, 4, latent, batch),
        "Conv 3×3 320→320": convolution(320, 320, latent, batch),
        "Conv 3×3 640→640": convolution(640, 640, half, batch),
        "Conv 3×3 1280→1280": convolution(1280, 1280, quarter, batch),
        "Conv 3×3 2560→1280": convolution(1280, 2560, eighth, batch),
        "Conv 1×1 640→640": convolution(640, 640, half, batch, kernel=1),
    }


def sdxl_layers(latent: int, batch: int) -> dict:
    half, quarter = latent // 2, latent // 4
    return {
        "Linear 640→640": linear(640, 640, half**2, batch),
        "Linear 640→5120": linear(5120, 640, half**2, batch),
        "Linear 2048→1280 (text)": linear(1280, 2048, TEXT_TOKENS, batch),
        "Linear 1280→1280": linear(1280, 1280, quarter**2, batch),
        "Linear 1280→10240": linear(10240, 1280, quarter**2, batch),
        "Linear 5120→1280": linear(1280, 5120, quarter**2, batch),
        "Conv 3×3 320→320": convolution(320, 320, latent, batch),
        "Conv 3×3 640→640": convolution(640, 640, half, batch),
        "Conv 3×3 1280→1280": convolution(1280, 1280, quarter, batch),
        "Conv 3×3 2560→1280": convolution(1280, 2560, quarter, batch),
    }


LAYERS = {"sd15": sd15_layers, "sdxl": sdxl_layers}


def main() -> int:
    arguments = parsed()
    warnings.filterwarnings("ignore", message="Sparse CSR")
    torch.manual_seed(0)
    routes = working_routes(arguments.device)
    print("| layer | density |", " | ".join(routes), "| fastest |")
    print("|---|---|" + "---|" * (len(routes) + 1))
    measurements = []
    for model in arguments.model or LAYERS:
        latent = arguments.latent or USUAL_LATENT[arguments.device][model]
        for name, layer in LAYERS[model](latent, arguments.batch).items():
            about = {"model": model, "latent": latent, "batch": arguments.batch, "layer": name}
            for measurement in measured(layer, routes, arguments.device, DTYPES[arguments.dtype]):
                measurements.append({**about, **measurement})
                print(line(measurements[-1], routes), flush=True)
    fastest = Counter(measurement["fastest"] for measurement in measurements)
    largest = max(max(measurement["differences"].values()) for measurement in measurements)
    print("Fastest:", ", ".join(f"{route} in {count}" for route, count in fastest.most_common()) + ".")
    print(f"Largest relative difference from csr, which sums in fp32: {largest:.1e}.")
    if arguments.json:
        about = {"machine": machine(), "device": device_name(arguments.device), "torch": torch.__version__}
        report = {**about, "dtype": arguments.dtype, "measurements": measurements}
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py bench weight_gradient", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DENSITIES, default="cpu", help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="of input and gradient (default: fp32, on a GPU bf16)")
    parser.add_argument("--model", choices=LAYERS, action="append", help="layers of one only (default: all)")
    parser.add_argument("--latent", type=int, help="its side (default: 32, on a GPU the model's own)")
    parser.add_argument("--batch", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to FILE")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU on this machine")
    check_json_option(parser, arguments.json)
    arguments.dtype = arguments.dtype or USUAL_DTYPE[arguments.device]
    return arguments


def working_routes(device: str) -> list[str]:
    routes = [route for route in ROUTES if route not in ("auto", *KERNELS)]
    for route in KERNELS if device == "cuda" else ():
        try:
            check_route(route, torch.device(device))
        except UnsupportedModelError as error:
            print(error, file=sys.stderr)
        else:
            routes.append(route)
    return routes


def measured(layer, routes: list[str], device: str, dtype: torch.dtype):
    """Yields for each density what every route takes, and how far its result is from that of csr."""
    op, shape, *tensor_shapes = layer
    x, grad_output = (torch.randn(size, device=device).to(dtype) for size in tensor_shapes)
    for density in DENSITIES[device]:
        elements = torch.Size(shape).numel()
        indices = torch.randperm(elements)[:max(1, int(elements * density))].sort().values.to(torch.int32)
        support = Support.from_indices({"weight": indices}, {"weight": shape})
        problem = op, support.segments[0].to(device), x, grad_output
        exact = sparse_weight_gradient(*problem, "csr")
        milliseconds, differences = {}, {}
        for route in routes:
            try:
                result = sparse_weight_gradient(*problem, route)
                milliseconds[route] = best_milliseconds(lambda: sparse_weight_gradient(*problem, route), device)
            except Exception as error:  # of any kind where a kernel does not compile; the others go on
                print(f"{route}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            differences[route] = float((result - exact).norm() / exact.norm())
        yield {
            "density": density, "milliseconds": milliseconds, "differences": differences,
            "fastest": min(milliseconds, key=milliseconds.get),
        }  # fmt: skip


def line(measurement: dict, routes: list[str]) -> str:
    name = f"{measurement['model']} {measurement['layer']}, {measurement['latent']}²"
    times = measurement["milliseconds"]
    cells = [f"{times[route]:.2f}" if route in times else "fails" for route in routes]
    return f"| {name} | {measurement['density']:.1%} | {' | '.join(cells)} | {measurement['fastest']} |"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


if __name__ == "__main__":
    sys.exit(main())
