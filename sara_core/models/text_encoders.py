"""The text encoders of a checkpoint file by a delta's names: their weights, and what a delta changes of them there."""

from collections.abc import Mapping

import torch

from ..delta import SparseEntry
from ..delta.translate import dense_to_diffusers, to_comfy
from ..errors import DeltaError
from ..files.source import Source
from ..names.text_checkpoints import Shapes, is_turned, text_parts
from ..names.text_encoders import encoder_of, titles_of
from ..wording import listed


class TextEncoders:
    """Weights of text encoders, each read when it is asked for.

    label: what the user calls the file; shapes: a delta's names → shapes
    """

    def __init__(self, source: Source):
        self.label = source.label
        self._source = source
        stored = {name: source.shape(name) for name in source.names}
        self._parts = text_parts(stored)
        self.shapes = {name: _own_shape(part, stored[part.name]) for name, part in self._parts.items()}

    def weight(self, name: str) -> torch.Tensor:
        """A weight in its own dtype; use it while the file is open, and do not change it."""
        part = self._parts[name]
        tensor = self._source.tensor(part.name)
        return tensor.T if is_turned(part) else dense_to_diffusers(tensor, part)


def stored_entries(
    entries: Mapping[str, SparseEntry], shapes: Shapes, label: str
) -> tuple[dict[str, SparseEntry], list[str]]:
    """A delta's entries of text encoders by the names of a file's tensors, and a sentence on those that it has not.

    shapes: name → shape of all the file's tensors; label: what the user calls the file
    Raises DeltaError if the file has an encoder of this name without one of the weights.
    """
    parts = text_parts(shapes)
    present = {encoder_of(name) for name in parts}
    absent = [name for name in entries if encoder_of(name) not in present]
    found = {name: entry for name, entry in entries.items() if name not in absent}
    if missing := found.keys() - parts.keys():
        raise DeltaError(
            f"{len(missing)} of the delta's weights of text encoders do not exist in '{label}': {listed(missing)}. Use "
            "the checkpoint that the delta was made for."
        )
    turned = {name: _turned(entry) if is_turned(parts[name]) else entry for name, entry in found.items()}
    said = [f"Left out: the change of {titles_of(absent)}, which '{label}' does not have."] if absent else []
    return to_comfy(turned, parts), said


def _own_shape(part, stored: tuple[int, ...]) -> tuple[int, ...]:
    return stored[::-1] if is_turned(part) else part.part_shape(stored) or ()


def _turned(entry: SparseEntry) -> SparseEntry:
    """The entry of a matrix with its rows as columns."""
    if len(entry.shape) != 2:
        return entry  # of another shape than the file's weight, which is refused where the two are compared
    rows, columns = entry.shape
    positions = entry.indices.long()
    positions, order = (positions % columns * rows + positions // columns).sort()
    return SparseEntry(positions.to(torch.int32), entry.values[order], (columns, rows))
