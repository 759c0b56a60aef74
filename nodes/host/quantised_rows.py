"""Single rows of quantised weights, dequantised: whole layers would take half a minute of a large model.

By the host's own means, of a second tensor on the memory of those rows, so that nothing else is read.
"""

import dataclasses

import torch

from .precision import is_gguf

# Scales of blocks lie in tiles of so many rows, which cannot be cut.
_TILE = 128
_SMOOTHING = "pre_quant_scale"


@torch.no_grad()
def dequantised_row(module, weight: torch.Tensor, row: int) -> torch.Tensor:
    """Row `row` of a layer's quantised weight, without patches: fp32 [elements of a row], in main memory.

    weight: the module's, or what the host keeps of it while patches are written into it. A GGUF weight's rows may be
        longer or shorter than its shape says: see `row_length`.
    """
    if is_gguf(weight):
        return _gguf_row(module, weight, row)
    part, inside = _tile(*_matrix(weight, row))
    values = part.dequantize()[inside].float().cpu()
    smoothing = getattr(module, _SMOOTHING, None)
    return values if smoothing is None else values * smoothing.float().cpu()


def row_length(weight: torch.Tensor) -> int:
    """How many elements a row of a quantised weight has."""
    if is_gguf(weight):
        packed = weight.as_subclass(torch.Tensor)
        return weight.tensor_shape.numel() // (packed.numel() // packed.shape[-1])
    return weight.shape[-1]


def row_scale(weight: torch.Tensor, row: int) -> float:
    """The scale by which a row of one of the host's quantised weights is multiplied that has one for every row, or
    for all of them."""
    part, inside = _tile(*_matrix(weight, row))
    scales = part._params.scale.float().flatten()
    return float(scales[inside if len(scales) > 1 else 0])


def _gguf_row(module, weight, row: int) -> torch.Tensor:
    packed = weight.as_subclass(torch.Tensor)
    part = packed.reshape(-1, packed.shape[-1])[row : row + 1].as_subclass(type(weight))
    part.tensor_type, part.tensor_shape, part.patches = weight.tensor_type, torch.Size([1, row_length(weight)]), []
    return module.get_weight(part, torch.float32).as_subclass(torch.Tensor).flatten().float().cpu()


def _matrix(weight, row: int):
    """The matrix of a bank of them that the row is in, and its place there."""
    if weight.dim() < 3:
        return weight, row
    bank, rows = weight._qdata.flatten(0, -3), weight.shape[-2]
    number, parameters = row // rows, weight._params
    own = {
        name: tensor[number] if tensor.dim() and len(tensor) == len(bank) else tensor
        for name, tensor in _tensors(parameters).items()
    }
    return _like(weight, bank[number], orig_shape=tuple(weight.shape[-2:]), **own), row % rows


def _tile(weight, row: int):
    """The tile of a matrix that the row is in, in fp32 when dequantised, and its place there."""
    codes = weight._qdata
    rows = slice(row - row % _TILE, row - row % _TILE + _TILE)
    own = {
        name: tensor[rows] if tensor.dim() and len(tensor) >= len(codes) > 1 else tensor
        for name, tensor in _tensors(weight._params).items()
    }
    codes = codes[rows]
    shape = (min(len(codes), weight.shape[0] - rows.start), weight.shape[1])
    return _like(weight, codes, orig_dtype=torch.float32, orig_shape=shape, **own), row - rows.start


def _tensors(parameters) -> dict[str, torch.Tensor]:
    fields = {field.name: getattr(parameters, field.name) for field in dataclasses.fields(parameters)}
    return {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}


def _like(weight, codes: torch.Tensor, **changed):
    return type(weight)(codes, weight._layout_cls, dataclasses.replace(weight._params, **changed))
