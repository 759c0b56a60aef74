"""Files of the SaRA authors' code, written by torch.save from either of their optimizers.

They are {"threshold": θ, 0: tensor, 1: tensor, …}: for each parameter of a diffusers UNet, counted in the order of
`model.parameters()`, the *final* values of all elements that were below θ in the base, in row-major order. Neither
positions nor names nor shapes are there: the base must be the one that was trained on, to the last bit.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ...delta import SparseEntry
from ...delta.entry import VALUE_DTYPES
from ...errors import DeltaError
from ...files.torch_file import is_plain
from ...models.base import Base
from ...models.comparison import exact_change
from ...names.parameter_order import parameter_order
from ..foreign_file import ForeignFile
from ..formats import Reader
from ..request import ReadRequest
from ..result import Conversion

_THRESHOLD = "threshold"
# Parameters of the published UNets, which tell what a file was trained on.
_MODELS = {686: "SD 1.x or SD 2.x", 1680: "SDXL"}


class SaraAuthorsReader(Reader):
    """A file that torch.save wrote, recognised by what it holds."""

    called = "A file of the SaRA authors' code"
    names = ("SaRA",)

    def recognises(self, file: ForeignFile) -> bool:
        """By its threshold and its numbered tensors."""
        return is_original(file.content)

    def read(self, file: ForeignFile, request: ReadRequest) -> Conversion:
        """Exactly its changes."""
        return request.made(read(file.content, request.base))


def is_original(content: Any) -> bool:
    """Whether this is what such a file holds."""
    return (
        isinstance(content, dict)
        and _THRESHOLD in content
        and len(content) > 1
        and all(key == _THRESHOLD or type(key) is int for key in content)
    )


def threshold(content: Mapping) -> float:
    """θ. Raises DeltaError unless it is a number above 0."""
    value = content[_THRESHOLD]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise DeltaError("The file's threshold is not a number above 0. Get the file again from where it came from.")
    return float(value)


def read(content: Mapping, base: Base) -> dict[str, SparseEntry]:
    """The changes by ComfyUI's names: final values minus the base's.

    Raises DeltaError for damaged files, and if the base is not the one the file was trained on: the error names the
    first layer whose number of values does not fit.
    """
    theta, order = threshold(content), parameter_order(base.diffusers_shapes)
    count = len(content) - 1
    if count != len(order):
        raise DeltaError(
            f"The file is for a model of {count} parameters ({_MODELS.get(count, 'a UNet of another size')}), and "
            f"'{base.label}' has {len(order)}. Give the base that it was trained on."
        )
    entries = {}
    for number, name in enumerate(order):
        final = content.get(number)
        if not is_plain(final, VALUE_DTYPES, 1):
            raise DeltaError(f"The file's values of '{name}' (parameter {number}) are missing or damaged.")
        entries[name] = _entry(name, final.detach(), base.diffusers_weight(name), theta, base.label)
    return base.from_diffusers(entries)


def _entry(name: str, final: torch.Tensor, weight: torch.Tensor, theta: float, label: str) -> SparseEntry:
    # In the dtype of training, which the values still have: it decides what is below θ.
    trained = weight.to(final.dtype)
    positions = (trained.abs() < theta).reshape(-1).nonzero().view(-1)
    if len(positions) != len(final):
        raise _wrong_base(name, len(final), len(positions), theta, weight.dtype, final.dtype, label)
    change, _ = exact_change(trained.reshape(-1)[positions], final)
    changed = change != 0
    return SparseEntry(positions[changed].to(torch.int32), change[changed], tuple(weight.shape))


def _wrong_base(name, in_file, in_base, theta, stored, trained, label) -> DeltaError:
    coarser = torch.finfo(stored).eps > torch.finfo(trained).eps if stored.is_floating_point else True
    needed = f"the {_short(trained)} version of it" if coarser else "exactly the model that it was trained on"
    return DeltaError(
        f"The file has {in_file:,} values for '{name}', but in '{label}' ({_short(stored)}) {in_base:,} weights of it "
        f"are below the threshold {theta:g}. Give {needed}: the file only says which weights it changed by their size."
    )


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, str(dtype)[6:])
