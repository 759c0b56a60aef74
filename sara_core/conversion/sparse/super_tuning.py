"""Super-Tuning as PEFT keeps it: sparse changes of Linear layers at flat positions.

Of each layer the file has `base_model.model.<layer>.supertuning_values`, float [n], and `.supertuning_indices`, int32
[n] in any order, but not the layer's shape; a hybrid ("Supra") has a LoRA beside them, `.supertuning_lora_A.weight`
and `.supertuning_lora_B.weight`, whose change is added.
"""

from collections.abc import Collection, Iterator

import torch

from ...delta import SparseEntry
from ...delta.entry import VALUE_DTYPES, check_entry, dense
from ...errors import DeltaError
from ...files.source import Source
from ...models.base import Base
from ...names.resolve import PREFIX, WEIGHT
from ...tensors.elements import add_sparse_
from ..adapters.file import AdapterFile, opened_adapter
from ..adapters.peft_settings import Alphas, alphas_of
from ..foreign_file import ForeignFile
from ..formats import Reader, Sign
from ..peft import WEIGHT_FILES
from ..remedies import CONVERT
from ..request import ReadRequest
from ..result import Conversion
from .entries import layer_names, sorted_entry

_VALUES, _INDICES, _LORA = ".supertuning_values", ".supertuning_indices", ".supertuning_lora_"


class SuperTuningReader(Reader):
    """A file of PEFT's with sparse changes alone."""

    called = "Super-Tuning"
    names = ("Super-Tuning",)
    signs = (Sign("a sparse adapter of PEFT", CONVERT, (_VALUES,)),)
    files_in_folder = WEIGHT_FILES

    def recognises(self, file: ForeignFile) -> bool:
        """By its values, without a LoRA."""
        return super().recognises(file) and not _is_hybrid(file.names)

    def read(self, file: ForeignFile, request: ReadRequest) -> Conversion:
        """Exactly its changes."""
        return request.made(read(file.source, request.base))


class HybridReader(Reader):
    """A file of PEFT's with a LoRA in it, so that its change is not sparse."""

    called = "Super-Tuning with a LoRA"
    signs = SuperTuningReader.signs
    takes_density = True
    files_in_folder = SuperTuningReader.files_in_folder

    def recognises(self, file: ForeignFile) -> bool:
        """By its values, with a LoRA."""
        return super().recognises(file) and _is_hybrid(file.names)

    def read(self, file: ForeignFile, request: ReadRequest) -> Conversion:
        """The largest changes of both together."""
        alphas, notes = alphas_of(file.path, _lora_of(file.source))
        hybrid = Hybrid(file.source, request.base, alphas, request.reading)
        kept = request.keep_largest(hybrid.changes, len(hybrid))
        conversion = request.made(kept.entries, kept.lost)
        conversion.left_out = hybrid.lora.left_out
        conversion.notes += [*notes, *hybrid.lora.notes()]
        return conversion


def _is_hybrid(names: Collection[str]) -> bool:
    return any(_LORA in name for name in names)


def _lora_of(source: Source) -> Source:
    """The LoRA of a hybrid, by the names that other LoRAs of PEFT have."""
    return source.renamed({name.replace(_LORA, ".lora_"): name for name in source.names if _LORA in name})


class Hybrid:
    """A file with both parts, opened but for its sparse one not read.

    Raises DeltaError as `read` does, for a LoRA that does not fit the base, and without PEFT's settings.
    """

    def __init__(self, source: Source, base: Base, alphas: Alphas, reading: str):
        if not alphas.known:
            raise DeltaError(
                "The file is a Super-Tuning hybrid with a LoRA inside, whose strength (lora_alpha) stands in the "
                "adapter_config.json that PEFT saved with it. Put both into one folder, by PEFT's names."
            )
        self._sparse = read(source.renamed({name: name for name in source.names if _LORA not in name}), base)
        for name, entry in self._sparse.items():
            check_entry(name, entry)
        self.lora: AdapterFile = opened_adapter(_lora_of(source), base, alphas, reading)

    def changes(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, dense change in float32) of each weight, one at a time."""
        rest = dict(self._sparse)
        for name, change in self.lora.changes():
            if (entry := rest.pop(name, None)) is not None:
                add_sparse_(change, entry.indices, entry.values)
            yield name, change
        for name, entry in rest.items():
            yield name, dense(entry)

    def __len__(self) -> int:
        return len(self._sparse.keys() | {PREFIX + name for name in self.lora.modules})


def read(source: Source, base: Base) -> dict[str, SparseEntry]:
    """Entries by ComfyUI's names. Raises DeltaError unless every layer is sound and one of the base's, and for files
    without positions."""
    names = source.names
    if not any(name.endswith(_INDICES) for name in names):
        raise DeltaError(
            "The file was saved without positions, which PEFT then guesses anew from the weights. Save it again in "
            "PEFT with save_precomputed_indices=True."
        )
    entries = {}
    for layer, tensors in layer_names(names, {_VALUES, _INDICES}).items():
        name = layer + WEIGHT
        if len(base.diffusers_shapes.get(name, ())) != 2:
            raise DeltaError(f"'{base.label}' has no Linear layer '{layer}'. Give the base that the file was made for.")
        values, positions = source.tensor(tensors[_VALUES]), source.tensor(tensors[_INDICES])
        if positions.dtype not in (torch.int32, torch.int64) or values.dtype not in VALUE_DTYPES or values.dim() != 1:
            raise DeltaError(f"The file's layer '{layer}' is damaged: no list of values with positions.")
        entries[name] = sorted_entry(name, positions.long(), values, base.diffusers_shapes[name])
    return base.from_diffusers(entries)
