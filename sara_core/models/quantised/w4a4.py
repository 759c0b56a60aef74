"""Signed 4-bit integers with a scale for each row, of a weight that was turned in groups first."""

import torch

from ...delta import SparseEntry
from . import rotation
from .formats import Layer, Shape, positive
from .loss import Loss


class ConvRotW4A4:
    """scale · int4 of a matrix [rows, columns], the even columns in the low half of each byte."""

    name = "convrot_w4a4"
    dtypes = frozenset({"I8", "U8"})
    scales = {"weight_scale": frozenset({"F32", "F16", "BF16"})}
    optional = frozenset()
    options = rotation.OPTIONS
    padded_to = 1

    def shape(self, stored: Shape) -> Shape:
        return stored[0], 2 * stored[1]

    def dequantised(self, layer: Layer) -> torch.Tensor:
        packed, scale = layer.tensors["weight"].view(torch.int8), positive(layer, "weight_scale")
        if scale.numel() != packed.shape[0]:
            raise layer.damaged("weight_scale", "is not one number for each row")
        # Shifts of int8 keep the sign.
        codes = torch.stack([(packed << 4) >> 4, packed >> 4], -1).view(self.shape(packed.shape))
        return rotation.turned(layer, codes.float() * scale.view(-1, 1))

    def add(self, layer: Layer, entry: SparseEntry, strength: float, loss: Loss) -> dict[str, torch.Tensor]:
        raise rotation.refusal(layer, "4-bit integers")
