"""Super-Tuning as PEFT keeps it: sparse changes of Linear layers at flat positions.

Of each layer the file has `base_model.model.<layer>.supertuning_values`, float [n], and `.supertuning_indices`, int32
[n] in any order, but not the layer's shape; a hybrid ("Supra") has a LoRA beside them.
"""

import torch

from ..base import Base
from ..entry import VALUE_DTYPES, SparseEntry
from ..errors import DeltaError
from .shira import layer_names, sorted_entry
from .source import Source

_VALUES, _INDICES = ".supertuning_values", ".supertuning_indices"


def read(source: Source, base: Base) -> dict[str, SparseEntry]:
    """Entries by ComfyUI's names. Raises DeltaError unless every layer is sound and one of the base's, and for files
    without positions or with a LoRA inside."""
    names = source.names
    if any(".supertuning_lora_" in name for name in names):
        raise DeltaError(
            "The file is a Super-Tuning hybrid with a LoRA inside. Merge it into its model in PEFT, and extract the "
            "difference from the base with a density."
        )
    if not any(name.endswith(_INDICES) for name in names):
        raise DeltaError(
            "The file was saved without positions, which PEFT then guesses anew from the weights. Save it again in "
            "PEFT with save_precomputed_indices=True."
        )
    entries = {}
    for layer, tensors in layer_names(names, {_VALUES, _INDICES}).items():
        name = f"{layer}.weight"
        if len(base.own_shapes.get(name, ())) != 2:
            raise DeltaError(f"'{base.label}' has no Linear layer '{layer}'. Give the base that the file was made for.")
        values, positions = source.tensor(tensors[_VALUES]), source.tensor(tensors[_INDICES])
        if positions.dtype not in (torch.int32, torch.int64) or values.dtype not in VALUE_DTYPES or values.dim() != 1:
            raise DeltaError(f"The file's layer '{layer}' is damaged: no list of values with positions.")
        entries[name] = sorted_entry(name, positions.long(), values, base.own_shapes[name])
    return base.from_own(entries)
