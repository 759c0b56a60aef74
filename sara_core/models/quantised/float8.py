"""float8 with one scale for the whole weight, or none."""

import torch

from ...delta import SparseEntry
from .elements import FLOAT8, add_scaled_, too_large
from .formats import Layer, Shape
from .loss import Loss

_SCALE_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


class Float8:
    """scale · float8. An element's byte becomes round((float32(byte) · scale + strength · Δ) / scale), to nearest even:
    the scale stays as it is, and elements that a delta does not name keep their value with their bytes."""

    dtypes = frozenset(FLOAT8)
    optional = options = frozenset()
    padded_to = 1

    def __init__(self, name: str, scale: str | None):
        self.name, self._scale = name, scale
        self.scales = {} if scale is None else {scale: _SCALE_DTYPES}

    def shape(self, stored: Shape) -> Shape:
        return stored

    def dequantised(self, layer: Layer) -> torch.Tensor:
        return layer.tensors["weight"].float() * self._read_scale(layer)

    def add(self, layer: Layer, entry: SparseEntry, strength: float, loss: Loss) -> dict[str, torch.Tensor]:
        weight = layer.tensors["weight"]
        dtype = weight.dtype
        precision = torch.finfo(dtype)
        # Up to here the largest number is the nearest one; what torch makes of more depends on its version.
        limit = precision.max * (1 + precision.eps / 4)

        def decode(codes: torch.Tensor) -> torch.Tensor:
            return codes.view(dtype).float()

        def encode(numbers: torch.Tensor) -> torch.Tensor:
            if not bool((numbers.abs() <= limit).all()):
                raise too_large(layer.name, dtype)
            return numbers.to(dtype).view(torch.uint8)

        codes = weight.view(torch.uint8).view(-1)  # torch cannot scatter float8
        add_scaled_(codes, entry, strength, self._read_scale(layer), decode, encode, loss)
        return {"weight": weight}

    def _read_scale(self, layer: Layer) -> float:
        if self._scale is None:
            return 1.0
        if layer.tensors[self._scale].numel() != 1:
            raise layer.damaged(self._scale, "is not one number")
        scale = float(layer.tensors[self._scale])
        if not 0 < scale < float("inf"):
            raise layer.damaged(self._scale, f"is {scale}")
        return scale
