"""Every route to a layer's sparse weight gradient on a GPU, against the dense gradient in fp64 on the CPU.

Input and output gradient are drawn in the dtype of the check, so that both sides multiply the same numbers. The limits:

1e-5   fp32 without TF32; half precision where products are exact and summed in fp32 (csr and the Triton kernels)
1e-2, 2e-3   bf16 and fp16 by the dense route, whose gradient is rounded to that dtype, and whose partial sums may be
2e-3   fp32 where torch may compute in TF32
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from sara_core.backward import weight_gradient
from sara_core.backward.ops import layer_op
from sara_core.backward.support import Support
from sara_core.backward.weight_gradient import KERNELS, ROUTES, check_route, sparse_weight_gradient
from sara_core.errors import UnsupportedModelError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DENSITIES = (0.001, 0.006, 0.06, 0.3)
EXACT, TF32, ROUNDED = 1e-5, 2e-3, {"bf16": 1e-2, "fp16": 2e-3}


class Layer(NamedTuple):
    """make: the module, on the CPU; shape: of its input; arrange: gives input and output gradient another layout"""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    arrange: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous


def _channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def _transposed(x):
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def layers(width: int) -> dict[str, Layer]:
    """width: a twentieth of the narrowest channels; 16 has the shapes of SD1.5, 1 is for trying out"""
    w = width
    return {
        "Linear": Layer(lambda: nn.Linear(20 * w, 80 * w), (2, 64 * w, 20 * w)),
        "Linear, text": Layer(lambda: nn.Linear(48 * w, 40 * w), (8, 77, 48 * w)),
        "Linear, odd sizes": Layer(lambda: nn.Linear(317, 129), (3, 45, 317)),
        "Linear, transposed": Layer(lambda: nn.Linear(20 * w, 20 * w), (2, 64 * w, 20 * w), _transposed),
        "Conv1d, stride 2, dilation 2": Layer(
            lambda: nn.Conv1d(8 * w, 6 * w, 4, stride=2, padding=3, dilation=2), (2, 8 * w, 133)
        ),
        "Conv2d 3×3": Layer(lambda: nn.Conv2d(8 * w, 12 * w, 3, padding=1), (2, 8 * w, 32, 32)),
        "Conv2d 3×3, channels last": Layer(
            lambda: nn.Conv2d(8 * w, 8 * w, 3, padding=1), (2, 8 * w, 16, 16), _channels_last
        ),
        "Conv2d 1×1": Layer(lambda: nn.Conv2d(20 * w, 20 * w, 1), (2, 20 * w, 32, 32)),
        "Conv2d, stride 2": Layer(lambda: nn.Conv2d(8 * w, 8 * w, 3, stride=2, padding=1), (2, 8 * w, 32, 32)),
        "Conv2d, dilation 2": Layer(lambda: nn.Conv2d(6 * w, 8 * w, 3, padding=2, dilation=2), (2, 6 * w, 19, 17)),
        "Conv2d, 4 groups, circular": Layer(
            lambda: nn.Conv2d(8 * w, 8 * w, 3, padding=1, groups=4, padding_mode="circular"), (2, 8 * w, 16, 16)
        ),
        "Conv2d, depthwise": Layer(lambda: nn.Conv2d(8 * w, 8 * w, 3, groups=8 * w), (2, 8 * w, 16, 16)),
        "Conv3d": Layer(lambda: nn.Conv3d(4 * w, 6 * w, 3, padding=1), (2, 4 * w, 6, 8, 10)),
    }


def check(name: str, error: float, limit: float, note: str = "") -> dict:
    """What a check found; an error that is NaN is beyond every limit, and None in the file, as JSON has no NaN."""
    found = None if math.isnan(error) else float(error)
    return {"name": name, "error": found, "limit": limit, "ok": bool(error <= limit), "note": note}


def relative_error(result: torch.Tensor, expected: torch.Tensor, size: float = 0.0) -> float:
    """‖result − expected‖ ÷ ‖expected‖, or ÷ `size` where that is larger."""
    result, expected = (tensor.detach().to("cpu", torch.float64) for tensor in (result, expected))
    return float((result - expected).norm() / max(float(expected.norm()), size))


@contextmanager
def full_precision(allow_tf32: bool = False):
    """fp32 products are fp32's own, unless TF32 is what is looked at."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = allow_tf32
    try:
        yield
    finally:
        for setting, allowed in zip(settings, before):
            setting.allow_tf32 = allowed


def items(dtype: str, device: str, small: bool) -> dict[str, Callable[[], Iterator[dict]]]:
    """Checks in one dtype by name; each yields results."""
    every = layers(1 if small else 16)
    tasks = {f"{name}, {dtype}": partial(layer_results, layer, dtype, device) for name, layer in every.items()}
    if dtype == "fp32":
        tasks["Linear, fp32 as TF32"] = partial(layer_results, every["Linear"], dtype, device, allow_tf32=True)
        tasks["Conv2d 3×3, fp32 as TF32"] = partial(layer_results, every["Conv2d 3×3"], dtype, device, allow_tf32=True)
    return tasks


def layer_results(layer: Layer, dtype: str, device: str, allow_tf32: bool = False) -> Iterator[dict]:
    """One layer at each density by each route."""
    with full_precision(allow_tf32):
        torch.manual_seed(0)
        module, x = layer.make().double(), torch.randn(layer.shape).to(DTYPES[dtype])
        output = module(x.double())
        grad_output = torch.randn(output.shape).to(DTYPES[dtype])
        output.backward(grad_output.double())
        op, dense = layer_op(module), module.weight.grad
        x, grad_output = (layer.arrange(part.to(device)) for part in (x, grad_output))
        for density in DENSITIES:
            index = torch.randperm(dense.numel())[:max(1, int(density * dense.numel()))].sort().values.int()
            segment, = Support.from_indices({"weight": index}, {"weight": dense.shape})
            expected = dense.reshape(-1)[index.long()]
            # Of a single element the sum may happen to cancel out: measured against what the gradient's elements are.
            size = float(dense.norm()) * (len(index) / dense.numel()) ** 0.5
            for route in _routes(device):
                weight_gradient._fastest.clear()
                name, limit = f"{density:.1%} by {route}", _limit(route, dtype, allow_tf32)
                try:
                    result = sparse_weight_gradient(op, segment.to(device), op.prepare(x), grad_output, route)
                    taken = ", ".join(set(weight_gradient._fastest.values()))
                    yield check(name, relative_error(result, expected, size), limit, taken)
                except Exception as error:  # a kernel that does not compile; the other routes go on
                    yield {**check(name, float("nan"), limit), "exception": f"{type(error).__name__}: {error}"[:2000]}
                    if "CUDA error" in str(error):
                        raise


def _routes(device: str) -> list[str]:
    """All of them on a GPU, where a route that is refused has failed; on the CPU those that work there."""
    if device != "cpu":
        return list(ROUTES)
    return [route for route in ROUTES if route not in KERNELS or _runs(route)]


def _runs(route: str) -> bool:
    try:
        check_route(route, torch.device("cpu"))
    except UnsupportedModelError:
        return False
    return True


def _limit(route: str, dtype: str, allow_tf32: bool) -> float:
    if allow_tf32:
        return TF32
    return ROUNDED[dtype] if dtype in ROUNDED and route in ("auto", "dense") else EXACT
