"""A node pack of gpu_host.py's own: what a ComfyUI computes with, to the bit, and what memory its device has given.

It is copied into the server's custom_nodes, and knows nothing of SaRA: it asks the host itself for every weight, by the
cast with which the host's layers get theirs, so whatever is mapped, streamed, patched or written in place is seen as
the model sees it.
"""

import time
from collections.abc import Iterator

import comfy.model_management
import comfy.ops
import psutil
import safetensors
import torch
from aiohttp import web
from server import PromptServer

MIB = 1 << 20
ADDRESS = "/gpu_host/memory"


class GpuHostProbe:
    """Loads a MODEL as sampling would, twice gets each of its weights, and compares them with those of a file."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "_for_testing", "probe", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "expected": ("STRING", {"default": ""})}}

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")

    @torch.inference_mode()
    def probe(self, model, expected):
        device = model.load_device
        found = {"patcher": type(model).__name__, "device": str(device), "dtype": str(model.model_dtype()),
                 "computes_in": str(model.model.get_dtype_inference())}  # fmt: skip
        _clear(device)
        found["loading"] = _seconds(device, lambda: comfy.model_management.load_models_gpu([model]))
        for name in ("first_use", "second_use"):
            found[name] = _seconds(device, lambda: [None for _ in weights(model)])
        found["memory"] = memory(device)
        if expected:
            found.update(compared(model, expected))
        return {"ui": {"probe": [found]}}


class GpuHostAgain:
    """Hands a MODEL on, and has all that follows done again, of which the host would have kept the results."""

    CATEGORY, FUNCTION, RETURN_TYPES = "_for_testing", "again", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")

    def again(self, model):
        return (model,)


def weights(model) -> Iterator[tuple[str, torch.Tensor]]:
    """(key, what the host's layer would compute with now), in the dtype that the weight is stored in"""
    for name, module in model.model.diffusion_model.named_modules():
        if not hasattr(module, "comfy_cast_weights") or getattr(module, "weight", None) is None:
            continue
        dtype = module.weight.dtype
        weight, bias, cast = comfy.ops.cast_bias_weight(
            module, dtype=dtype, device=model.load_device, bias_dtype=dtype, offloadable=True
        )
        yield f"diffusion_model.{name}.weight", weight
        if bias is not None:
            yield f"diffusion_model.{name}.bias", bias
        comfy.ops.uncast_bias_weight(module, weight, bias, cast)


def compared(model, expected: str) -> dict:
    """How many elements have other bits than those of a file with the same keys, and by how much the worst is off."""
    elements = different = 0
    worst, of_other_kind = 0.0, []
    with safetensors.safe_open(expected, framework="pt") as file:
        missing = set(file.keys())
        for key, weight in weights(model):
            missing.discard(key)
            wanted = file.get_tensor(key).to(weight.device)
            if wanted.dtype != weight.dtype or wanted.shape != weight.shape:
                of_other_kind.append(key)
                continue
            others = weight != wanted
            elements, different = elements + weight.numel(), different + int(others.sum())
            worst = max(worst, float((weight.float() - wanted.float()).abs().max()))
    return {"elements": elements, "different": different, "worst": worst,
            "missing": sorted(missing)[:5], "of_other_kind": of_other_kind[:5]}  # fmt: skip


def memory(device) -> dict:
    """MiB: of torch's allocator now and at most, of the card (with what others have), and of this process in RAM."""
    found = {"ram": psutil.Process().memory_info().rss // MIB}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found.update(
            allocated=torch.cuda.memory_allocated(device) // MIB, peak=torch.cuda.max_memory_allocated(device) // MIB,
            card=(total - free) // MIB,
        )  # fmt: skip
    return found


def _clear(device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _seconds(device, function) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@PromptServer.instance.routes.get(ADDRESS)
async def tell_memory(request):
    """The memory of the host's device; the peak counts from here on."""
    device = comfy.model_management.get_torch_device()
    found = {**memory(device), "device": str(device)}
    _clear(device)
    return web.json_response(found)


NODE_CLASS_MAPPINGS = {"GpuHostProbe": GpuHostProbe, "GpuHostAgain": GpuHostAgain}
