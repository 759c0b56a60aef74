"""What a loaded model's weights are, whatever the precision that ComfyUI, or a pack, keeps them in.

Four kinds are known: ordinary floating weights, float8 without a scale, the host's QuantizedTensor (with its scales
inside), and the tensors of ComfyUI-GGUF (`tensor_type`, `tensor_shape`, and `patches` that its layers apply on the
fly). All of them report the shape that the weight has once it is dequantised.
"""

import comfy.ops
import torch
from comfy import quant_ops

from ...sara_core.errors import UnsupportedModelError
from ...sara_core.tensors.elements import has_own_operations

ORDINARY = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_UNSCALED = {torch.float8_e4m3fn: "fp8 e4m3", torch.float8_e5m2: "fp8 e5m2"}
_LAYOUTS = {
    "TensorCoreFP8Layout": "fp8 scaled",
    "TensorCoreFP8E4M3Layout": "fp8 scaled",
    "TensorCoreFP8E5M2Layout": "fp8 scaled",
    "TensorCoreMXFP8Layout": "mxfp8",
    "TensorCoreNVFP4Layout": "nvfp4",
    "TensorWiseINT8Layout": "int8",
    "TensorCoreConvRotW4A4Layout": "convrot w4a4",
}
# What lies beside a quantised weight as a parameter of its own; scales of the weight itself are inside it.
SMOOTHING = "pre_quant_scale"
_BESIDE_THE_WEIGHT = ("input_scale", SMOOTHING)
_GGUF_AS_THEY_ARE = ("F64", "F32", "F16")


def logical_shapes(patcher) -> dict[str, torch.Size]:
    """The shape that each of a MODEL's weights has when it is dequantised, by the host's keys.

    What quantisation adds to a state dict (packed bytes, scales, the description of the format) is not among them.
    """
    model = patcher.model
    parameters = {
        name: weight.shape
        for name, weight in model.named_parameters(remove_duplicate=False)
        if not _is_beside_a_weight(model, name)
    }
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    stored = patcher.model_state_dict()
    return parameters | {name: weight.shape for name, weight in stored.items() if name in buffers}


def _is_beside_a_weight(model, name: str) -> bool:
    layer, _, parameter = name.rpartition(".")
    return parameter in _BESIDE_THE_WEIGHT and hasattr(model.get_submodule(layer), "layout_type")


def precision_of(weight: torch.Tensor) -> str | None:
    """What people call the precision of a weight: "fp8 scaled", "nvfp4", "GGUF Q4_0" …; None for ordinary floating
    ones. A kind that is not known here has the name of its class or dtype."""
    if is_gguf(weight):
        kind = getattr(weight.tensor_type, "name", None)
        return None if kind is None or kind in _GGUF_AS_THEY_ARE else f"GGUF {kind}"
    if is_host_quantised(weight):
        return _LAYOUTS.get(weight._layout_cls, weight._layout_cls)
    if has_own_operations(weight) or type(weight) not in (torch.Tensor, torch.nn.Parameter):
        return type(weight).__name__
    if weight.dtype in ORDINARY:
        return None
    return _UNSCALED.get(weight.dtype, str(weight.dtype).removeprefix("torch."))


def is_gguf(weight: torch.Tensor) -> bool:
    """Whether a weight is one of ComfyUI-GGUF, or of a pack of the same make; its unquantised ones are too."""
    return hasattr(weight, "tensor_type") and hasattr(weight, "tensor_shape")


def is_host_quantised(weight: torch.Tensor) -> bool:
    """Whether a weight is the host's own QuantizedTensor."""
    return isinstance(weight, quant_ops.QuantizedTensor)


def is_known(weight: torch.Tensor) -> bool:
    """Whether `dequantised` knows what to do with this weight, so that sizes and changes have a meaning."""
    if is_gguf(weight) or is_host_quantised(weight):
        return True
    return precision_of(weight) in (None, *_UNSCALED.values())


def check_known(name: str, weight: torch.Tensor) -> None:
    """Raise UnsupportedModelError, by the weight's name, unless `is_known`."""
    if not is_known(weight):
        raise UnsupportedModelError(
            f"'{name}' is stored as {precision_of(weight)}, which SaRA cannot read. Use the model in fp8, nvfp4, int8, "
            "GGUF, fp16, bf16 or fp32."
        )


def ordinary(weight: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor of no class of its own, for what ComfyUI-GGUF keeps unquantised: its tensors answer
    clone() and detach() with themselves."""
    return weight.as_subclass(torch.Tensor) if is_gguf(weight) and precision_of(weight) is None else weight


@torch.no_grad()
def dequantised(module, name: str = "weight", dtype: torch.dtype = torch.float32, device=None) -> torch.Tensor:
    """The parameter `name` of a layer, without patches, as a new tensor in `dtype` on `device` (by default its own).

    By the host's own means, in the precision that it computes in when it computes in `dtype`. A factor for the layer's
    input that belongs to the weight (nvfp4's smoothing) is multiplied in. Nothing else of the model is touched or held.
    Raises UnsupportedModelError for a kind that is not known.
    """
    weight = getattr(module, name)
    return dequantised_weight(module, name, weight, dtype, weight.device if device is None else device)


@torch.no_grad()
def dequantised_weight(module, name: str, weight: torch.Tensor, dtype: torch.dtype, device) -> torch.Tensor:
    """As `dequantised`, of a tensor that is, or once was, the parameter `name` of the layer: the host keeps a second
    one of a weight that it has patched."""
    if is_gguf(weight):
        return _from_gguf(module, weight, dtype, device)
    if is_host_quantised(weight):
        result = _from_bank(module, weight, dtype, device) if weight.dim() > 2 else _from_host(weight, dtype, device)
        smoothing = getattr(module, SMOOTHING, None) if name == "weight" else None
        return result if smoothing is None else result * smoothing.to(device=device, dtype=dtype)
    check_known(name, weight)
    return weight.to(device=device, dtype=dtype, copy=True)


def _from_host(weight, dtype, device) -> torch.Tensor:
    return weight.to(device=device, dtype=dtype).dequantize().to(dtype)


def _from_bank(module, weight, dtype, device) -> torch.Tensor:
    """Experts one by one: formats with blocks of scales only know matrices."""
    experts = (module.expert_weight(number) for number in range(weight.shape[0]))
    return torch.stack([_from_host(expert, dtype, device) for expert in experts])


def _from_gguf(module, weight, dtype, device) -> torch.Tensor:
    """Through a second tensor on the same memory, for the first one carries the LoRAs of a loaded model."""
    if precision_of(weight) is None:
        return weight.detach().as_subclass(torch.Tensor).to(device=device, dtype=dtype, copy=True)
    bare = weight.detach().as_subclass(type(weight))
    bare.tensor_type, bare.tensor_shape, bare.patches = weight.tensor_type, weight.tensor_shape, []
    result = module.get_weight(bare.to(device), dtype)
    return result.as_subclass(torch.Tensor).to(device=device, dtype=dtype)


def multiplies_quantised(module) -> bool:
    """Whether the host computes with this layer's weight in its quantised form: it multiplies, or looks up, before it
    dequantises. It no longer does once the layer has a weight function, whose result it needs: even one that changes
    nothing changes the layer's output, by about 3 % for fp8.

    The answer is for a layer without such functions; patches that the host writes into the weight change nothing.
    """
    weight = getattr(module, "weight", None)
    if weight is None:
        return False
    fast_fp8 = getattr(comfy.ops, "fp8_ops", None)
    if fast_fp8 is not None and isinstance(module, fast_fp8.Linear):
        return weight.dtype is torch.float8_e4m3fn
    if not is_host_quantised(weight):
        return False
    if isinstance(module, torch.nn.Embedding) or hasattr(module, "expert_linear"):
        return True
    return not _dequantises_first(module, weight)


def _dequantises_first(module, weight) -> bool:
    forced = getattr(module, "_full_precision_mm", False) or getattr(module, "comfy_force_cast_weights", False)
    # These two layouts quantise a floating input by themselves, wherever torch multiplies with them.
    return forced and precision_of(weight) not in ("int8", "convrot w4a4")
