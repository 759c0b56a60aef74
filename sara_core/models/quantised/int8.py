"""int8 with a scale for each row or one for the whole weight, as it is or turned in groups first."""

import torch

from ...delta import SparseEntry
from . import blocks, rotation
from .elements import add_scaled_
from .formats import Layer, Shape, positive, unsupported
from .loss import Loss

_LARGEST = 127


class Int8:
    """scale · int8, symmetric around 0, of a matrix [rows, columns].

    A row whose changed elements no longer fit gets a new scale. One scale for the whole weight stays as it is: what is
    too large for it becomes the largest number.
    """

    name = "int8_tensorwise"
    dtypes = frozenset({"I8"})
    scales = {"weight_scale": frozenset({"F64", "F32", "F16", "BF16"})}
    optional = frozenset()
    options = rotation.OPTIONS
    padded_to = 1
    limit = _LARGEST + 0.5

    def shape(self, stored: Shape) -> Shape:
        return stored

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.float()

    def encode(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.round().clamp(-_LARGEST, _LARGEST).to(torch.int8)

    def scale_for(self, largest: torch.Tensor) -> torch.Tensor:
        return (largest / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)

    def dequantised(self, layer: Layer) -> torch.Tensor:
        weight = layer.tensors["weight"].float() * self._scale(layer)
        return rotation.turned(layer, weight) if rotation.is_turned(layer) else weight

    def add(self, layer: Layer, entry: SparseEntry, strength: float, loss: Loss) -> dict[str, torch.Tensor]:
        weight, scale = layer.tensors["weight"], self._scale(layer)
        is_turned = rotation.is_turned(layer)
        if scale.numel() == 1:
            if is_turned:
                raise rotation.refusal(layer, "int8 with one scale,")
            if not float(scale):
                raise layer.damaged("weight_scale", "is 0")
            add_scaled_(weight.view(-1), entry, strength, float(scale), self.decode, self.encode, loss)
            return {"weight": weight}
        rows = blocks.Blocks(weight, scale.view(-1).clone())
        if is_turned:
            self._add_turned(layer, rows, entry, strength, loss)
        else:
            blocks.add_(rows, self, entry.indices.cpu(), entry.values.cpu().float() * strength, loss)
        stored = layer.tensors["weight_scale"]
        return {"weight": weight, "weight_scale": rows.scales.to(stored.dtype).view(stored.shape)}

    def _add_turned(self, layer: Layer, rows: blocks.Blocks, entry: SparseEntry, strength: float, loss: Loss) -> None:
        """Each change is spread over its group, all of which is rounded anew; the sum of its parts arrives."""
        size = rotation.group_size(layer, rows.codes.shape[1])
        codes = rows.codes.view(-1, size)
        for groups, owners, turned in rotation.spread(entry, strength, size):
            before, part = codes[groups], Loss()
            places = (groups[:, None] * size + torch.arange(size)).view(-1)
            blocks.add_(rows, self, places, turned.reshape(-1), part)
            # What is lost are changes in whose group no code is another one.
            part.lost = int((codes[groups] == before).all(1)[owners].sum())
            loss.add(part)

    def _scale(self, layer: Layer) -> torch.Tensor:
        scale, rows = positive(layer, "weight_scale"), layer.tensors["weight"].shape[0]
        if scale.numel() != 1 and scale.shape != (rows, 1):
            raise unsupported(layer.name, layer.checkpoint, f"int8 with scales of shape {list(scale.shape)}")
        return scale
