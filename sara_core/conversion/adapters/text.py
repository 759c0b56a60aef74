"""Where an adapter file's modules of text encoders go, with a base that has those encoders or without.

A base is often the diffusion model alone, and its text encoders are files of their own. What a LoRA changes does not
depend on their weights, and its factors tell their shapes; what does depend on them is left out without them.
"""

import math
from collections.abc import Mapping

import torch

from ...errors import DeltaError
from ...files.source import Source
from ...models.base import Base
from ...names.parts import Part
from ...names.resolve import BIAS, WEIGHT
from ...names.text_modules import own_module

# Parts (parts.py) of changes that are the same whatever the weight is.
_WITHOUT_WEIGHT = {"up", "down", "alpha", "diff", "bias", "lora_bias",
                   *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")),
                   *(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"))}  # fmt: skip
# No layer of a text encoder has more elements; factors of a few bytes could ask for any number.
_MOST_ELEMENTS = 1 << 28


class TextBase:
    """The weights of text encoders that a file changes: as a Base, of which AdapterFile asks the same.

    label: the base's, as the user calls it; family: of the model
    shapes: a delta's whole name → shape: what the base has, and what the file's modules tell of the others
    """

    def __init__(self, base: Base, source: Source):
        self.label, self.family = base.label, base.family
        self._source = source
        self._of_base = base.text_encoders
        self._present = {name.split(".")[1] for name in self._of_base.shapes}
        self.shapes = dict(self._of_base.shapes)

    def weight(self, name: str) -> torch.Tensor:
        """A weight of the base, in its own dtype. Raises DeltaError if the base does not have its text encoder."""
        if name not in self._of_base.shapes:
            raise DeltaError(
                f"What the file changes of '{name}' depends on that weight, and '{self.label}' has no text encoders. "
                "Give the whole checkpoint."
            )
        return self._of_base.weight(name)

    def place(self, module: str, tensors: Mapping[str, str]) -> Part | None:
        """The place of a module's weight; None where there is none: the module is of no text encoder that is known, its
        encoder in the base has no such layer, or its shape is not known.

        module: by its name in the file; tensors: part → name in the file
        """
        own = own_module(module, self.family)
        if own is None:
            return None
        name = own + WEIGHT
        if own.split(".")[1] not in self._present:
            shape = self._told(tensors)
            if shape is None or math.prod(shape) > _MOST_ELEMENTS:
                return None
            self.shapes.setdefault(name, shape)
            self.shapes.setdefault(own + BIAS, shape[:1])
        return Part(name) if name in self.shapes else None

    def _told(self, tensors: Mapping[str, str]) -> tuple[int, ...] | None:
        """The shape of a weight that a module's tensors alone tell."""
        if not tensors.keys() <= _WITHOUT_WEIGHT:
            return None
        sides = {part: self._source.shape(name) for part, name in tensors.items() if part != "alpha"}
        if "diff" in sides:
            return sides["diff"]
        pairs = [[sides.get(part) for part in pair] for pair in (("up", "down"), ("hada_w1_a", "hada_w1_b"))]
        kronecker = [sides.get(f"lokr_{part}") or self._product(sides, f"lokr_{part}") for part in ("w1", "w2")]
        for rows, columns in pairs:
            if rows and columns and len(rows) == len(columns) == 2:
                return rows[0], columns[1]
        if all(side and len(side) == 2 for side in kronecker):
            return tuple(one * other for one, other in zip(*kronecker))
        return None

    @staticmethod
    def _product(sides: Mapping[str, tuple[int, ...]], factor: str) -> tuple[int, ...] | None:
        rows, columns = sides.get(f"{factor}_a"), sides.get(f"{factor}_b")
        return (rows[0], columns[-1]) if rows and columns else None
