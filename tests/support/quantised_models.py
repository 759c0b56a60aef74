"""Tiny random models in every precision that people have: written to a file, and loaded as the host's loaders do."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import gguf
import numpy
import safetensors.torch
import torch

from tests.support import gguf_pack
from tests.support.family_models import FAMILIES, Family, _encoder, random_state_dict, transformer

Z_IMAGE_LAYOUT = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 256,
    "cap_feat_dim": 256,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
}


def _z_image():
    from comfy.ldm.lumina.model import NextDiT

    return transformer(NextDiT, Z_IMAGE_LAYOUT)


# Z-Image, narrower than the host recognises it: `recognised` makes it do so.
Z_IMAGE = Family("Z-Image", _z_image, (16, 8, 8), _encoder(32, 256))
LAYOUTS = {"Flux": FAMILIES["Flux"], "SD1.5": FAMILIES["SD1.5"], "Z-Image": Z_IMAGE}
_ARCHITECTURES = {"Flux": "flux", "SD1.5": "sd1", "Z-Image": "lumina2"}


@contextmanager
def recognised(family: str):
    """Let the host recognise the family by its narrow layout too."""
    if family != Z_IMAGE.name:
        yield
        return
    import comfy.model_detection
    import comfy.supported_models

    kind = comfy.supported_models.ZImage
    narrow = {**kind.unet_config, "dim": Z_IMAGE_LAYOUT["dim"]}
    found = mock.patch.object(comfy.model_detection, "detect_unet_config", _z_image_of_its_own_names)
    with mock.patch.object(kind, "unet_config", narrow), found:
        yield


def _z_image_of_its_own_names(weights, *_, **__):
    """None for diffusers' names, which the host then changes."""
    return dict(Z_IMAGE_LAYOUT) if any(".attention.qkv." in name for name in weights) else None


@dataclass(frozen=True)
class Kind:
    """A precision of files.

    store: (layer's name without ".weight", its weight [out, in] in bf16) → tensors of the file, by their names
    everything: the dtype of every tensor of the file instead, and what Load Diffusion Model is asked for: left to
        itself the host widens it on a CPU
    mark: further tensors of the file
    gguf_type: for a GGUF file, the type of its matrices
    """

    name: str
    store: Callable | None = None
    everything: torch.dtype | None = None
    mark: dict | None = None
    gguf_type: str | None = None


def _layout(name: str, weight, **options):
    """The host's own quantisation of one weight: (bytes, parameters)."""
    from comfy import quant_ops

    return quant_ops.get_layout_class(name).quantize(weight, **options)


def _described(layer: str, format: str, tensors: dict, **more) -> dict[str, torch.Tensor]:
    text = json.dumps({"format": format, **more}).encode()
    described = {f"{layer}.{name}": tensor.contiguous().clone() for name, tensor in tensors.items()}
    return {**described, f"{layer}.comfy_quant": torch.tensor(list(text), dtype=torch.uint8)}


def _scaled_fp8(scale_of: Callable, name: str = "weight_scale"):
    def store(layer, weight):
        scale = scale_of(weight.float().abs().max()).reshape(())
        packed = (weight.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        if name != "weight_scale":
            return {f"{layer}.weight": packed, f"{layer}.{name}": scale.reshape(1)}
        return _described(layer, "float8_e4m3fn", {"weight": packed, name: scale})

    return store


def _mxfp8(layer, weight):
    packed, parameters = _layout("TensorCoreMXFP8Layout", weight)
    return _described(layer, "mxfp8", {"weight": packed, "weight_scale": parameters.scale.view(torch.uint8)})


def _nvfp4(layer, weight):
    packed, parameters = _layout("TensorCoreNVFP4Layout", weight, scale="recalculate")
    scales = {"weight_scale": parameters.block_scale, "weight_scale_2": parameters.scale}
    return _described(layer, "nvfp4", {"weight": packed, **scales})


def _int8(layer, weight):
    packed, parameters = _layout("TensorWiseINT8Layout", weight)
    return _described(layer, "int8_tensorwise", {"weight": packed, "weight_scale": parameters.scale})


def _int8_convrot(layer, weight):
    turned = {"convrot": True, "convrot_groupsize": _ROTATION}
    packed, parameters = _layout("TensorWiseINT8Layout", weight, per_channel=True, **turned)
    return _described(layer, "int8_tensorwise", {"weight": packed, "weight_scale": parameters.scale}, **turned)


def _convrot_w4a4(layer, weight):
    packed, parameters = _layout("TensorCoreConvRotW4A4Layout", weight, convrot_groupsize=_ROTATION)
    tensors = {"weight": packed, "weight_scale": parameters.scale}
    return _described(layer, "convrot_w4a4", tensors, convrot_groupsize=_ROTATION)


_ROTATION = 64
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_OLD_MARK = {"scaled_fp8": torch.zeros(0).to(_E4M3)}
KINDS = {
    kind.name: kind
    for kind in [
        Kind("bf16"),
        Kind("fp8 e4m3", everything=_E4M3),
        Kind("fp8 e5m2", everything=_E5M2),
        Kind("fp8 scaled, old", _scaled_fp8(lambda m: m / 448, "scale_weight"), mark=_OLD_MARK),
        Kind("fp8 scaled", _scaled_fp8(lambda m: m / 448)),
        Kind("fp8 scaled by 1", _scaled_fp8(torch.ones_like)),
        Kind("mxfp8", _mxfp8),
        Kind("nvfp4", _nvfp4),
        Kind("int8", _int8),
        Kind("int8 convrot", _int8_convrot),
        Kind("convrot w4a4", _convrot_w4a4),
        *(Kind(f"GGUF {name}", gguf_type=name) for name in ("Q8_0", "Q5_0", "Q4_0", "Q4_K", "BF16")),
    ]
}  # fmt: skip


def bf16_weights(family: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The random weights that every file of the family is made of."""
    weights = random_state_dict(LAYOUTS[family].make, seed)
    return {name: weight.to(torch.bfloat16) for name, weight in weights.items()}


def is_quantised(name: str, weight: torch.Tensor) -> bool:
    """Whether files of quantised weights quantise this one: a matrix inside a block, as those do that people have,
    and none whose width the host reads to recognise a UNet."""
    inside = any(part.isdigit() for part in name.split(".")) and name.endswith(".weight")
    inside = inside and not name.endswith("attn2.to_k.weight")
    return inside and weight.dim() == 2 and weight.shape[0] % 64 == 0 and weight.shape[1] % 64 == 0


def _file(kind: str, family: str) -> str:
    return f"{kind}-{family}.{'gguf' if KINDS[kind].gguf_type else 'safetensors'}"


def write(kind: str, family: str, folder: Path, seed: int = 0) -> Path:
    """A file of the family in this precision, from `bf16_weights`."""
    made, weights, path = KINDS[kind], bf16_weights(family, seed), folder / _file(kind, family)
    if made.gguf_type:
        return _write_gguf(made, family, weights, path)
    stored = dict(made.mark or {})
    for name, weight in weights.items():
        if made.everything:
            stored[name] = weight.to(made.everything)
        elif made.store and is_quantised(name, weight):
            stored |= made.store(name.removesuffix(".weight"), weight)
        else:
            stored[name] = weight
    safetensors.torch.save_file(stored, path)
    return path


def load(path: Path, family: str):
    """A MODEL as the host's Load Diffusion Model, or the GGUF pack's loader, gives it: of inference tensors."""
    import comfy.sd

    with recognised(family), torch.inference_mode():
        if path.suffix == ".gguf":
            return gguf_pack.load(path)
        asked = next((kind.everything for kind in KINDS.values() if path.name == _file(kind.name, family)), None)
        return comfy.sd.load_diffusion_model(str(path), model_options={"dtype": asked} if asked else {})


def model(kind: str, family: str, folder: Path, seed: int = 0):
    """A MODEL of the family in this precision."""
    return load(write(kind, family, folder, seed), family)


def _write_gguf(kind: Kind, family: str, weights: dict, path: Path) -> Path:
    writer = gguf.GGUFWriter(path, arch=_ARCHITECTURES[family])
    for name, weight in weights.items():
        if is_quantised(name, weight):
            packed, type_ = _packed(weight.float().numpy(), gguf.GGMLQuantizationType[kind.gguf_type])
            writer.add_tensor(name, packed, raw_dtype=type_)
        else:
            writer.add_tensor(name, weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _packed(weight: numpy.ndarray, type_) -> tuple[numpy.ndarray, "gguf.GGMLQuantizationType"]:
    """Packed rows and their type: Q8_0 where rows are no multiple of the type's blocks, as llama.cpp does it."""
    block, size = gguf.GGML_QUANT_SIZES[type_]
    if weight.shape[1] % block:
        type_ = gguf.GGMLQuantizationType.Q8_0
    if type_.name.endswith("_K"):
        return _random_blocks(weight, block, size), type_
    return gguf.quants.quantize(weight, type_), type_


def _random_blocks(weight: numpy.ndarray, block: int, size: int) -> numpy.ndarray:
    """Rows of a K-quant, which the gguf package reads and does not write: random bytes behind two small factors."""
    rows, columns = weight.shape
    packed = numpy.random.default_rng(0).integers(0, 256, (rows, columns // block, size), dtype=numpy.uint8)
    factors = numpy.array([1e-4, 5e-4], dtype=numpy.float16)
    packed[:, :, :4] = factors.view(numpy.uint8)
    return packed.reshape(rows, -1)


def references(kind: str, family: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """fp32 weights that a file's are when dequantised, by their names in it, without what the host has loaded."""
    made, weights = KINDS[kind], bf16_weights(family, seed)
    return {name: _reference(made, name, weight) for name, weight in weights.items()}


def as_stored(kind: str, name: str, weight: torch.Tensor) -> torch.Tensor:
    """What is left of a weight of this name in files of this kind, float32."""
    return _reference(KINDS[kind], name, weight)


def _reference(kind: Kind, name: str, weight: torch.Tensor) -> torch.Tensor:
    if kind.everything:
        return weight.to(kind.everything).float()
    if not is_quantised(name, weight) or kind.name == "bf16":
        return weight.float()
    if kind.gguf_type:
        packed, type_ = _packed(weight.float().numpy(), gguf.GGMLQuantizationType[kind.gguf_type])
        return torch.from_numpy(numpy.array(gguf.quants.dequantize(packed, type_))).reshape(weight.shape)
    return _unpacked(kind.store("", weight), weight)


def _unpacked(stored: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """A weight of the host's formats from what a file holds of it, by the layout's own dequantisation in fp32."""
    from comfy import quant_ops

    packed, scale = stored[".weight"], stored.get(".weight_scale", stored.get(".scale_weight"))
    if ".comfy_quant" not in stored:
        return packed.float() * scale
    about = json.loads(bytes(stored[".comfy_quant"].tolist()))
    if about["format"] == "float8_e4m3fn":
        return packed.float() * scale
    layout = quant_ops.get_layout_class(quant_ops.QUANT_ALGOS[about["format"]]["comfy_tensor_layout"])
    options = {name: value for name, value in about.items() if name != "format"}
    if about["format"] == "nvfp4":
        options |= {"scale": stored[".weight_scale_2"], "block_scale": scale}
    else:
        options["scale"] = scale.view(torch.float8_e8m0fnu) if about["format"] == "mxfp8" else scale
    parameters = layout.Params(orig_dtype=torch.float32, orig_shape=tuple(weight.shape), **options)
    return layout.dequantize(packed, parameters)[: weight.shape[0], : weight.shape[1]]


def output(patcher, family: str, seed: int = 0) -> torch.Tensor:
    """What a MODEL makes of one random sample and caption, loaded in full, through the wrappers in its options."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    layout = LAYOUTS[family]
    (caption, options), (sample,) = layout.captions(1, seed)[0], layout.latents(1, seed)
    arguments = {"guidance": torch.tensor([options["guidance"]])} if "guidance" in options else {}
    if "pooled_output" in options:
        arguments["y"] = options["pooled_output"]
    if family == "Z-Image":
        arguments["num_tokens"] = caption.shape[1]
    sigma = torch.tensor([5.0 if family == "SD1.5" else 0.5])
    about = patcher.model_options.get("transformer_options", {})
    with torch.inference_mode():
        return patcher.model.apply_model(sample, sigma, c_crossattn=caption, transformer_options=about, **arguments)
