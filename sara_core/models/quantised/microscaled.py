"""Floats of 8 and 4 bits whose blocks of 32 or 16 neighbours share a scale: mxfp8 and nvfp4.

Both are of matrices [rows, columns] whose rows are whole blocks, and have their scales in the order of NVIDIA's matrix
units. https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

import torch

from ...delta import SparseEntry
from . import blocks
from .formats import Layer, Shape, positive
from .loss import Loss

_FLOAT8 = torch.float8_e4m3fn


class Mxfp8:
    """2^(exponent − 127) · float8 (4 bits of exponent, 3 of mantissa), in blocks of 32."""

    name = "mxfp8"
    dtypes = frozenset({"F8_E4M3"})
    scales = {"weight_scale": frozenset({"U8", "F8_E8M0"})}
    optional = options = frozenset()
    limit = 464.0
    padded_to = 32
    _block, _bias, _no_number = 32, 127, 255

    def shape(self, stored: Shape) -> Shape:
        return stored

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.view(_FLOAT8).float()

    def encode(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.clamp(-448, 448).to(_FLOAT8).view(torch.uint8)

    def scale_for(self, largest: torch.Tensor) -> torch.Tensor:
        exponents = (largest / self.limit).log2().ceil().clamp(-self._bias, self._no_number - 1 - self._bias)
        return torch.exp2(exponents)

    def dequantised(self, layer: Layer) -> torch.Tensor:
        return blocks.values(self._read(layer), self).view(layer.tensors["weight"].shape)

    def add(self, layer: Layer, entry: SparseEntry, strength: float, loss: Loss) -> dict[str, torch.Tensor]:
        weight, tiled = layer.tensors["weight"], layer.tensors["weight_scale"]
        changed = self._read(layer)
        blocks.add_(changed, self, entry.indices.cpu(), entry.values.cpu().float() * strength, loss)
        exponents = (changed.scales.log2() + self._bias).to(torch.uint8).view(weight.shape[0], -1)
        blocks.swizzle_(tiled.view(torch.uint8), exponents)
        return {"weight": weight, "weight_scale": tiled}

    def _read(self, layer: Layer) -> blocks.Blocks:
        weight = layer.tensors["weight"]
        exponents = _scales(layer, weight.shape[0], weight.shape[1], self._block).view(torch.uint8)
        if bool((exponents == self._no_number).any()):
            raise layer.damaged("weight_scale", "has values in it that are no numbers")
        scales = torch.exp2(exponents.float() - self._bias)
        return blocks.Blocks(weight.view(torch.uint8).view(-1, self._block), scales.view(-1))


class Nvfp4:
    """scale of the weight · float8 · 4-bit float (2 bits of exponent, 1 of mantissa), in blocks of 16.

    The even columns are in the high half of each byte. With smoothing, the weight of a column is what is stored times
    the column's `pre_quant_scale`, which the program that loads it multiplies the input with.
    """

    name = "nvfp4"
    dtypes = frozenset({"U8"})
    scales = {"weight_scale": frozenset({"F8_E4M3", "U8"}), "weight_scale_2": frozenset({"F32", "F16", "BF16"})}
    optional, options = frozenset({"pre_quant_scale"}), frozenset()
    padded_to = 16
    _block, _largest = 16, 6.0
    _numbers = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    _between = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    limit = 7.0

    def __init__(self):
        # Of two equally near numbers the even code: every second threshold belongs to the code above it.
        self._thresholds = self._between.clone()
        self._thresholds[1::2] = torch.nextafter(self._thresholds[1::2], torch.tensor(0.0))

    def shape(self, stored: Shape) -> Shape:
        return stored[0], 2 * stored[1]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes, uint8 below 16 → float32, in the same shape."""
        numbers = self._numbers[(codes & 7).long()]
        return torch.where(codes >= 8, -numbers, numbers)

    def encode(self, numbers: torch.Tensor) -> torch.Tensor:
        """float32 → the nearest codes, of two equally near ones the even one."""
        magnitudes = torch.bucketize(numbers.abs(), self._thresholds).to(torch.uint8)
        return magnitudes | (numbers.signbit().to(torch.uint8) << 3)

    def dequantised(self, layer: Layer) -> torch.Tensor:
        read, _ = self._read(layer)
        weight = blocks.values(read, self).view(self.shape(layer.tensors["weight"].shape))
        smoothing = self._smoothing(layer, weight.shape[1])
        return weight if smoothing is None else weight * smoothing

    def add(self, layer: Layer, entry: SparseEntry, strength: float, loss: Loss) -> dict[str, torch.Tensor]:
        packed, tiled = layer.tensors["weight"], layer.tensors["weight_scale"]
        rows, columns = self.shape(packed.shape)
        (changed, whole), indices = self._read(layer), entry.indices.cpu()
        change = entry.values.cpu().float() * strength
        smoothing = self._smoothing(layer, columns)
        if smoothing is not None:
            change = change / smoothing[indices.long() % columns]
        blocks.add_(changed, _Under(whole, self), indices, change, loss)
        pairs = changed.codes.view(rows, -1, 2)
        scales = (changed.scales / whole).to(_FLOAT8).view(torch.uint8).view(rows, -1)
        blocks.swizzle_(tiled.view(torch.uint8), scales)
        return {"weight": pairs[..., 0] << 4 | pairs[..., 1], "weight_scale": tiled}

    def _read(self, layer: Layer) -> tuple[blocks.Blocks, float]:
        """The blocks, and the scale of the whole weight, which is in theirs."""
        packed = layer.tensors["weight"]
        rows, columns = self.shape(packed.shape)
        whole = positive(layer, "weight_scale_2")
        if whole.numel() != 1 or not float(whole):
            raise layer.damaged("weight_scale_2", "is not one number above 0")
        scales = _scales(layer, rows, columns, self._block).view(_FLOAT8).float()
        if not bool((scales >= 0).all()):
            raise layer.damaged("weight_scale", "has values in it that are no scales")
        codes = torch.stack([packed >> 4, packed & 15], -1).view(-1, self._block)
        return blocks.Blocks(codes, scales.view(-1) * float(whole)), float(whole)

    def _smoothing(self, layer: Layer, columns: int) -> torch.Tensor | None:
        if "pre_quant_scale" not in layer.tensors:
            return None
        smoothing = layer.tensors["pre_quant_scale"].float().view(-1)
        if len(smoothing) not in (1, columns) or not bool((smoothing.isfinite() & (smoothing != 0)).all()):
            raise layer.damaged("pre_quant_scale", "is not one finite number other than 0 for each column")
        return smoothing.expand(columns)


class _Under:
    """nvfp4's codes in a weight whose blocks' scales, float8, are multiplied by one for all of them."""

    def __init__(self, whole: float, codes: Nvfp4):
        self.limit, self.decode, self.encode = codes.limit, codes.decode, codes.encode
        self._whole = whole

    def scale_for(self, largest: torch.Tensor) -> torch.Tensor:
        smallest, most = torch.finfo(_FLOAT8).smallest_normal / 8, torch.finfo(_FLOAT8).max
        wanted = (largest / Nvfp4._largest / self._whole).clamp(smallest, most)
        return wanted.to(_FLOAT8).float() * self._whole


def _scales(layer: Layer, rows: int, columns: int, block: int) -> torch.Tensor:
    """The scales of all blocks, as bytes, [rows, blocks of a row]."""
    tiled = layer.tensors["weight_scale"]
    if columns % block or tiled.numel() != blocks.swizzled_size(rows, columns // block):
        raise layer.damaged("weight_scale", "is not of the size of its weight")
    return blocks.unswizzled(tiled.view(torch.uint8).view(-1), rows, columns // block)
