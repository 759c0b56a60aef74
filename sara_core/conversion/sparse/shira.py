"""SHiRA (arXiv 2406.13175) as PEFT keeps it: sparse changes of Linear layers, rows and columns in int32.

A PEFT adapter is a folder with adapter_model.safetensors and adapter_config.json. Of each layer the file has
`base_model.model.<layer>.shira_weight`, float [n], and `.shira_indices`, int32 [2, n] (PEFT on Windows writes them as
float32), but not the layer's shape.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ...delta import SparseDelta, SparseEntry
from ...delta.entry import VALUE_DTYPES
from ...delta.text_part import split
from ...delta.translate import to_diffusers
from ...errors import DeltaError, NameTakenError
from ...files import atomic, container, disk
from ...files.source import Source
from ...models.base import Base, opened_base
from ...names.diffusers import diffusers_parts
from ...names.resolve import WEIGHT, prefix_of
from ...names.text_encoders import titles_of
from ...tensors.elements import sum_of_squares
from ...wording import counted
from ..foreign_file import ForeignFile
from ..formats import Reader, Sign, Writer
from ..peft import CONFIG, PREFIX, WEIGHT_FILES, WEIGHTS
from ..remedies import CONVERT
from ..request import ReadRequest, WriteRequest
from ..result import Conversion
from .entries import layer_names, sorted_entry

_VALUES, _INDICES = ".shira_weight", ".shira_indices"
# Of a change in the file: its value in fp32, its row and its column.
_CHANGE_BYTES = 12


class ShiraReader(Reader):
    """A file of PEFT's, or its folder."""

    called = "SHiRA"
    names = ("SHiRA",)
    signs = (Sign("a sparse adapter of PEFT", CONVERT, (_VALUES,)),)
    files_in_folder = WEIGHT_FILES

    def read(self, file: ForeignFile, request: ReadRequest) -> Conversion:
        """Exactly its changes."""
        return request.made(read(file.source, request.base))


class ShiraWriter(Writer):
    """A folder that PEFT loads."""

    summary = "a folder that PEFT loads, with Linear layers only"
    ending = ""

    def write(self, delta: SparseDelta, path: Path, request: WriteRequest) -> str:
        """By the names of diffusers where they are known; the report has what SHiRA cannot hold."""
        of_model, of_text = split(delta)
        prefix = prefix_of(of_model.entries)
        entries = {name.removeprefix(prefix): entry for name, entry in of_model.entries.items()}
        shapes = {name: entry.shape for name, entry in entries.items()}
        if request.base_path is not None:
            with opened_base(request.base_path) as base:
                shapes = base.shapes
        if parts := diffusers_parts(shapes):
            entries = to_diffusers(entries, parts)
        left_out = set(write(path, entries, request.overwrite))
        squares = {name: sum_of_squares(entry.values) for name, entry in entries.items()}
        lost = sum(squares[name] for name in left_out) / (sum(squares.values()) or 1.0)
        lines = [f"Saved {len(entries) - len(left_out)} Linear layers for PEFT in '{path.name}'."]
        if of_text.entries:
            lines.append(
                f"Left out, because such a file is of one model: {counted(len(of_text.entries), 'parameter')} of "
                f"{titles_of(of_text.entries)}."
            )
        if left_out:
            lines.append(
                f"Left out, because SHiRA holds Linear layers only: {len(left_out)} other parameters with {lost:.2%} "
                "of the squared change."
            )
        return "\n".join(lines)


def read(source: Source, base: Base) -> dict[str, SparseEntry]:
    """Entries by ComfyUI's names. Raises DeltaError unless every layer is sound and one of the base's."""
    layers = layer_names(source.names, {_VALUES, _INDICES})
    entries = {}
    for layer, tensors in layers.items():
        name = layer + WEIGHT
        shape = base.diffusers_shapes.get(name)
        if shape is None or len(shape) != 2:
            raise DeltaError(f"'{base.label}' has no Linear layer '{layer}'. Give the base that the file was made for.")
        values, indices = (tensors[part] for part in (_VALUES, _INDICES))
        entries[name] = _entry(name, source.tensor(values), source.tensor(indices), shape)
    return base.from_diffusers(entries)


def _entry(name: str, values: torch.Tensor, indices: torch.Tensor, shape: tuple[int, ...]) -> SparseEntry:
    of_right_kind = indices.dtype in (torch.int32, torch.int64, torch.float32) and values.dtype in VALUE_DTYPES
    if not of_right_kind or indices.dim() != 2 or len(indices) != 2 or values.dim() != 1:
        raise DeltaError(f"The file's layer '{name}' is damaged: no list of values with rows and columns.")
    rows, columns = indices.long()
    if not torch.equal(indices.long().to(indices.dtype), indices):
        raise DeltaError(f"The file's layer '{name}' is damaged: its positions are no whole numbers.")
    if len(rows) and not (0 <= int(columns.min()) and int(columns.max()) < shape[1] and int(rows.max()) < shape[0]):
        raise DeltaError(
            f"The file changes '{name}' outside its shape {list(shape)}. Give the base that the file was made for."
        )
    return sorted_entry(name, rows * shape[1] + columns, values, shape)


def write(folder: str | os.PathLike, entries: Mapping[str, SparseEntry], overwrite: bool = True) -> list[str]:
    """Write an adapter that PEFT loads into `folder`; returns the names it cannot hold: all but Linear weights.

    entries: by the names of the model that PEFT is to be put on. PEFT expects r · (rows + columns) changes in every
    layer with one r for all, so layers are filled up with changes of 0.
    Raises DeltaError if no r fits all layers, if there is no Linear layer, if the disk has no room for it, or if the
    folder cannot be written, which then is as it was; NameTakenError if it exists and must not.
    """
    linear = {name: entry for name, entry in entries.items() if name.endswith(WEIGHT) and len(entry.shape) == 2}
    if not linear:
        raise DeltaError("SHiRA holds changes of Linear layers only, and this delta has none.")
    rank = max(math.ceil(len(entry.indices) / sum(entry.shape)) for entry in linear.values())
    size = _CHANGE_BYTES * rank * sum(sum(entry.shape) for entry in linear.values())
    disk.check_room(Path(folder, WEIGHTS), size, "The folder for PEFT")
    tensors = {}
    for name, entry in linear.items():
        layer = name.removesuffix(WEIGHT)
        positions, values = _filled(name, entry, rank * sum(entry.shape))
        indices = torch.stack([positions // entry.shape[1], positions % entry.shape[1]]).to(torch.int32)
        tensors[PREFIX + layer + _VALUES], tensors[PREFIX + layer + _INDICES] = values, indices
    folder = Path(folder)
    config = json.dumps(_config(rank, linear), indent=2, sort_keys=True).encode()
    with _new_or_old_folder(folder, overwrite):
        with atomic.replacing(folder / WEIGHTS) as file:
            container.write(file, tensors, {"format": "pt"})
        with atomic.replacing(folder / CONFIG) as file:
            file.write(config)
    return sorted(entries.keys() - linear.keys())


@contextlib.contextmanager
def _new_or_old_folder(folder: Path, overwrite: bool) -> Iterator[None]:
    """A folder to write an adapter into; one that was made for it goes if the block fails."""
    is_new = _make(folder)
    if not (is_new or overwrite):
        raise NameTakenError(f"There is a '{folder}' already, and nothing is overwritten: take another name.")
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                (folder / WEIGHTS).unlink(missing_ok=True)
                folder.rmdir()
        raise


def _make(folder: Path) -> bool:
    """Whether it was made now; False if there is one, or something else of its name. DeltaError if it cannot be."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        if isinstance(error, FileExistsError) and os.path.lexists(folder):
            return False
        raise DeltaError(f"The folder '{folder}' cannot be made ({error.strerror}). Choose another one.") from error
    return True


def _filled(name: str, entry: SparseEntry, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (int64, increasing) and values with changes of 0 at the first free positions, `count` of them."""
    if count > entry.numel:
        raise DeltaError(
            f"SHiRA needs {count:,} changes in '{name}', which has {entry.numel:,} elements: another layer is changed "
            "too densely. Make the delta sparser, or leave this layer out of it."
        )
    missing = count - len(entry.indices)
    # Among the first `count` positions, at least this many are free.
    taken = torch.zeros(count, dtype=torch.bool)
    taken[entry.indices[entry.indices < count].long()] = True
    free = (~taken).nonzero().view(-1)[:missing]
    positions, order = torch.cat([entry.indices.long(), free]).sort()
    return positions, torch.cat([entry.values, torch.zeros(missing)])[order]


def _config(rank: int, linear: Mapping[str, SparseEntry]) -> dict:
    layers = sorted(name.removesuffix(WEIGHT) for name in linear)
    return {
        "peft_type": "SHIRA",
        "r": rank,
        "mask_type": "random",
        # A list would also match every layer whose name ends so.
        "target_modules": "|".join(re.escape(layer) for layer in layers),
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
