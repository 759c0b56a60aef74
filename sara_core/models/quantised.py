"""Which weights of a checkpoint file a delta can be added to, and how: in their own precision, or in scaled float8.

In float8 a weight is the product of its bytes and, where the file has one, a single scale: `<layer>.scale_weight`, or
`<layer>.weight_scale` in ComfyUI's own format. The scale stays as it is, so elements that a delta does not name keep
their value with their bytes. Every other kind of quantisation packs elements together or shares scales between some of
them: those are refused by name.
"""

from collections.abc import Mapping
from typing import BinaryIO

import torch

from ..delta import SparseEntry
from ..errors import DeltaError, UnsupportedModelError
from ..names.resolve import BIAS, WEIGHT
from ..tensors.elements import added, gather, scatter_

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}

SCALES = ("scale_weight", "weight_scale")
# What a layer may have beside its weight that does not decide what its weight is.
_OTHERS = ("comfy_quant", "scale_input", "input_scale")
# Files for other engines have no `.weight` at all where they are quantised.
_PACKED = (".qweight", ".weight_packed")
_REMEDY = "Bake into the fp16, bf16 or fp32 version of the checkpoint."
# Changes that are added at a time: the temporaries, some 50 bytes for each, do not grow with the delta.
_CHUNK = 2**20


def scale_name(name: str, header: Mapping[str, Mapping], checkpoint: str) -> str | None:
    """The tensor with the scale of weight `name`, None if it has none.

    header: of the safetensors file, name → dtype and shape; checkpoint: what to call it

    Raises UnsupportedModelError, by name, if single elements of the weight cannot be changed exactly.
    """
    dtype = header[name]["dtype"]
    if dtype not in DTYPES and dtype not in FLOAT8:
        raise UnsupportedModelError(
            f"The weight '{name}' of '{checkpoint}' is stored as {dtype}, as in quantised models: a sparse delta "
            f"cannot be added to it. {_REMEDY}"
        )
    beside = _beside(name, header)
    scales = [own for own in SCALES if own in beside]
    unknown = sorted(beside.keys() - {*SCALES, *_OTHERS}) if dtype in FLOAT8 else []
    whole = all(_numbers(header[beside[own]]) == 1 and header[beside[own]]["dtype"] in DTYPES for own in scales)
    if unknown or len(scales) > 1 or not whole or (scales and dtype not in FLOAT8):
        found = ", ".join(unknown or scales)
        raise UnsupportedModelError(
            f"The weight '{name}' of '{checkpoint}' is stored as {dtype} with {found} beside it, a quantisation that a "
            f"sparse delta cannot be added to exactly. {_REMEDY}"
        )
    return beside[scales[0]] if scales else None


def check_not_packed(header: Mapping[str, Mapping], checkpoint: str) -> None:
    """Raise UnsupportedModelError if the file's weights are packed for another engine, under names of their own.

    header: of the safetensors file, name → dtype and shape; checkpoint: what to call it
    """
    packed = next((name for name in header if name.endswith(_PACKED)), None)
    if packed is not None:
        raise UnsupportedModelError(
            f"'{checkpoint}' is quantised ('{packed}'): it has no weights that a delta could be added to. {_REMEDY}"
        )


def read_scale(source: BinaryIO, begin: int, name: str, tensor: Mapping) -> float:
    """The number that a scale's tensor holds; begin: where the file's tensors begin. Raises DeltaError if it is none
    to multiply by."""
    start, end = tensor["data_offsets"]
    source.seek(begin + start)
    scale = float(torch.frombuffer(bytearray(source.read(end - start)), dtype=DTYPES[tensor["dtype"]]))
    if not 0 < scale < float("inf"):
        raise DeltaError(f"The checkpoint is damaged: its '{name}' is {scale}. Download it again.")
    return scale


def add_to_weight_(name: str, weight: torch.Tensor, entry: SparseEntry, strength: float, scale: float) -> int:
    """Add strength · Δ to a weight, 1-D on the CPU, in place; returns how many changes rounding took back entirely.

    weight: float8, or floating point that a delta can be written into; scale: by which float8 is multiplied, otherwise
        unused

    In float8 the weight is scale · bytes: bytes become round((float32(bytes) · scale + strength · Δ) / scale), to
    nearest even. Raises DeltaError if the weight's dtype has no number that large.
    """
    is_float8 = weight.dtype in FLOAT8.values()
    codes = weight.view(torch.uint8) if is_float8 else weight  # torch cannot scatter float8
    lost = 0
    for indices, values in zip(entry.indices.cpu().split(_CHUNK), entry.values.cpu().split(_CHUNK)):
        before = gather(codes, indices).view(weight.dtype)
        if is_float8:
            after = _added_to_float8(name, before, values, strength, scale)
        else:
            after = added(before, values, strength)
            if bool((after.isinf() & before.isfinite()).any()):
                raise _too_large(name, weight.dtype)
        scatter_(codes, indices, after.view(codes.dtype))
        lost += int(((after.double() == before.double()) & (values.float() * strength != 0)).sum())
    return lost


def _added_to_float8(
    name: str, codes: torch.Tensor, values: torch.Tensor, strength: float, scale: float
) -> torch.Tensor:
    wanted = (codes.float() * scale + values.float() * strength) / scale
    precision = torch.finfo(codes.dtype)
    # Up to here the largest number is the nearest one; what torch makes of more depends on its version.
    if not bool((wanted.abs() <= precision.max * (1 + precision.eps / 4)).all()):
        raise _too_large(name, codes.dtype)
    return wanted.to(codes.dtype)


def _too_large(name: str, dtype: torch.dtype) -> DeltaError:
    return DeltaError(
        f"The delta makes elements of '{name}' larger than {str(dtype).removeprefix('torch.')} can hold. Choose a "
        "lower strength, or bake into the bf16 or fp32 version of the checkpoint."
    )


def _beside(name: str, header: Mapping[str, Mapping]) -> dict[str, str]:
    """What the layer of weight `name` has beside weights and biases: own name → name in the file."""
    if not name.endswith(WEIGHT):
        return {}
    layer = name.removesuffix(WEIGHT) + "."
    return {
        other.removeprefix(layer): other
        for other in header
        if other.startswith(layer) and not other.endswith((WEIGHT, BIAS))
    }


def _numbers(tensor: Mapping) -> int:
    return torch.Size(tensor["shape"]).numel()
