"""What baking asks of a format of quantised weights."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch

from ...delta import SparseEntry
from ...errors import DeltaError, UnsupportedModelError
from ...foreign_text import NAME, plain
from .loss import Loss

Shape = tuple[int, ...]
# Of a format's description, what does not say how the weight is to be read.
HARMLESS = frozenset({"format", "full_precision_matrix_mult", "linear_dtype", "orig_dtype"})
# Beside a weight, what is of the input that it is multiplied with.
OF_INPUTS = frozenset({"input_scale", "scale_input"})
DESCRIPTION = "comfy_quant"
_VERSION = "Use the fp16, bf16 or fp32 version of the checkpoint."


class Layer(NamedTuple):
    """A quantised weight as its file has it, read.

    name: of the weight in the file; checkpoint: what to call the file
    tensors: "weight" and what lies beside it → contents, in the shapes of the file; options: of its description
    """

    name: str
    checkpoint: str
    tensors: Mapping[str, torch.Tensor]
    options: Mapping

    def damaged(self, own_name: str, what: str) -> DeltaError:
        """The error for a tensor beside the weight that cannot be right."""
        found = plain(self.name.removesuffix("weight") + own_name, NAME)
        return DeltaError(f"The checkpoint is damaged: its '{found}' {what}. Download it again.")


class Format(Protocol):
    """One way to store a weight.

    name: as descriptions have it; dtypes: of the weight's bytes, as safetensors calls them
    scales: what must lie beside the weight, own name → dtypes; optional: what may, besides `OF_INPUTS`
    options: what descriptions may say of it, besides `HARMLESS`
    padded_to: rows and columns are filled up to a multiple of this
    """

    name: str
    dtypes: frozenset[str]
    scales: Mapping[str, frozenset[str]]
    optional: frozenset[str]
    options: frozenset[str]
    padded_to: int

    def shape(self, stored: Shape) -> Shape:
        """The weight's own shape. stored: the shape of its bytes in the file, with two sides"""

    def dequantised(self, layer: Layer) -> torch.Tensor:
        """The weight, float32, in its own shape. Raises DeltaError for scales that cannot be right."""

    def add(self, layer: Layer, entry: SparseEntry, strength: float, loss: Loss) -> dict[str, torch.Tensor]:
        """Add strength · Δ in this format: own name → new contents of what changed, in the shapes and dtypes of the
        file. Raises UnsupportedModelError, by name, where the format cannot hold changes of single elements."""


def unsupported(name: str, checkpoint: str, stored: str, remedy: str = _VERSION) -> UnsupportedModelError:
    """The error for a weight that cannot be read or changed. stored: "I8", "int8 with …"."""
    return UnsupportedModelError(
        f"The weight '{plain(name, NAME)}' of '{checkpoint}' is stored as {stored}, as in quantised models: a sparse "
        f"delta cannot be added to it. {remedy}"
    )


def positive(layer: Layer, own_name: str) -> torch.Tensor:
    """A scale's tensor in float32. Raises DeltaError if it holds anything but finite numbers above 0, or 0."""
    scale = layer.tensors[own_name].float()
    if not bool((scale.isfinite() & (scale >= 0)).all()):
        worst = scale[~(scale.isfinite() & (scale >= 0))].view(-1)[0]
        raise layer.damaged(own_name, f"has {float(worst)} in it")
    return scale
