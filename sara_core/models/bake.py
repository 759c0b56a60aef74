"""Streaming a delta into a checkpoint file: one tensor in memory at a time, untouched tensors byte for byte."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from ..delta import SparseDelta, SparseEntry
from ..delta import metadata as keys
from ..delta.delta import check_fits
from ..delta.translate import to_diffusers
from ..delta.variants import left_out
from ..errors import DeltaError, UnsupportedModelError
from ..files import atomic, container, disk
from ..names.diffusers import diffusers_parts, is_diffusers
from ..names.resolve import resolve
from ..names.stored import loaded_names
from ..numbers import checked
from . import quantised

_DTYPES = quantised.DTYPES | quantised.FLOAT8
_CHUNK = 1 << 24
_MANY_LOST = 0.1
_SHORTER = "The checkpoint became shorter while it was read. Run it again."


@dataclass
class BakeReport:
    """What rounding to the checkpoint's precision left of a delta.

    changes: all elements of the delta; lost: those that are as before, though their change was not zero
    left_out: a sentence on each weight whose changes do not fit this variant of the model
    """

    changes: int
    lost: int = 0
    left_out: tuple[str, ...] = ()

    def text(self) -> str:
        """For people; empty if nothing was lost or left out."""
        return " ".join(filter(None, (*self.left_out, self._rounding())))

    def _rounding(self) -> str:
        if not self.lost:
            return ""
        text = f"{self.lost:,} of {self.changes:,} changes ({self.lost / self.changes:.1%}) are lost in its rounding."
        if self.lost < _MANY_LOST * self.changes:
            return text
        return f"{text} A version of the checkpoint in a higher precision (fp16 or bf16, best fp32) keeps more of them."


class _Change(NamedTuple):
    """What happens to one weight; scale: by which float8 is multiplied."""

    entry: SparseEntry
    dtype: torch.dtype
    scale: float


def bake(
    base: str | os.PathLike,
    target: str | os.PathLike,
    delta: SparseDelta,
    strength: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
    overwrite: bool = True,
) -> BakeReport:
    """Write to `target` the checkpoint `base` with every named weight round(float32(weight) + strength · Δ).

    Each weight keeps its dtype (and a float8 weight its scale), every other tensor its bytes, the file its metadata, to
    which the bake is added under "sara.baked". The target appears only when complete. `on_progress` is called with
    bytes done and bytes in all, and may raise to stop.
    On another variant of its model (for inpainting …) the first layer's change is left out, and the report says so.
    Raises DeltaError if a file cannot be read or written, the delta does not fit the checkpoint otherwise or makes an
    element too large for its dtype, or the strength is not finite; NameTakenError if the target would replace something
    and must not; UnsupportedModelError, by name, for a weight that is quantised in another way than float8 with one
    scale.
    """
    base, target = Path(base), Path(target)
    strength = checked(strength, "The strength")
    if base.suffix.lower() == ".gguf":
        raise UnsupportedModelError(
            f"'{base.name}' is quantised (GGUF). Bake into the fp16, bf16 or fp32 version of the checkpoint, a "
            ".safetensors file."
        )
    if base.suffix.lower() != ".safetensors":
        raise DeltaError(f"'{base.name}' is not a .safetensors file. Save the checkpoint as .safetensors first.")
    with container.opened(base):
        pass  # the library that reads such files everywhere has checked the header that is read by hand below
    if target.exists() and target.samefile(base):
        raise DeltaError(f"'{base.name}' cannot be baked into itself. Choose another name for the result.")
    with open(base, "rb") as source:
        header, begin = container.read_header(source)
        metadata = header.pop(container.METADATA, {})
        entries = _named_as_in(header, delta.entries, base.name)
        skipped = left_out(entries, {name: tuple(header[name]["shape"]) for name in entries})
        entries = {name: entry for name, entry in entries.items() if name not in skipped}
        report = BakeReport(sum(len(entry.indices) for entry in entries.values()), left_out=tuple(skipped.values()))
        changes = _changes(source, begin, header, entries, base.name)
        disk.check_room(target, os.path.getsize(base), "The checkpoint")
        total = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        with atomic.writing(target, overwrite) as file:
            container.write_header(file, {container.METADATA: _recorded(metadata, delta, strength), **header})
            source.seek(begin)
            for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                start, end = tensor["data_offsets"]
                if name in changes:
                    report.lost += _write_changed(source, file, end - start, name, changes[name], strength)
                else:
                    _copy(source, file, end - start)
                if on_progress is not None:
                    on_progress(end, total)
    return report


def _changes(
    source: BinaryIO, begin: int, header: Mapping[str, Mapping], entries: Mapping[str, SparseEntry], checkpoint: str
) -> dict[str, _Change]:
    """Entries by the checkpoint's names, checked against its shapes, dtypes and scales."""
    changes = {}
    for found, entry in entries.items():
        tensor = header[found]
        scale_name = quantised.scale_name(found, header, checkpoint)  # packed weights have another shape, too
        check_fits(found, entry, tuple(tensor["shape"]))
        scale = 1.0 if scale_name is None else quantised.read_scale(source, begin, scale_name, header[scale_name])
        changes[found] = _Change(entry, _DTYPES[tensor["dtype"]], scale)
    return changes


def _named_as_in(
    header: Mapping[str, Mapping], entries: Mapping[str, SparseEntry], checkpoint: str
) -> dict[str, SparseEntry]:
    """The entries by the names of the file's tensors, which may be diffusers'."""
    quantised.check_not_packed(header, checkpoint)
    target = f"the checkpoint '{checkpoint}'"
    stored = loaded_names(header)
    shapes = {name: tuple(header[found]["shape"]) for name, found in stored.items()}
    parts = diffusers_parts(shapes, whole=True)
    if not is_diffusers(shapes, parts) or entries.keys() <= header.keys():
        return {found: entries[name] for name, found in resolve(entries, header, target).items()}
    known = resolve(entries, {part.name for part in parts.values()}, target)
    named = to_diffusers({known[name]: entry for name, entry in entries.items()}, parts)
    return {stored[name]: entry for name, entry in named.items()}


def _recorded(metadata: Mapping[str, str], delta: SparseDelta, strength: float) -> dict[str, str]:
    """The checkpoint's metadata with this bake added to the list of those it went through."""
    try:
        earlier = json.loads(metadata.get(keys.BAKED, "[]"))
    except (ValueError, RecursionError):
        earlier = []
    bake_record = {"strength": strength, "changed": delta.nnz, "delta": delta.metadata}
    return {**metadata, keys.BAKED: json.dumps([*(earlier if isinstance(earlier, list) else []), bake_record])}


def _write_changed(source: BinaryIO, file: BinaryIO, size: int, name: str, change: _Change, strength: float) -> int:
    """Returns how many changes were lost in rounding."""
    content = bytearray(size)
    if source.readinto(content) != size:
        raise DeltaError(_SHORTER)
    weight = torch.frombuffer(content, dtype=change.dtype)
    lost = quantised.add_to_weight_(name, weight, change.entry, strength, change.scale)
    container.write_tensor(file, weight)
    return lost


def _copy(source: BinaryIO, file: BinaryIO, size: int) -> None:
    while size:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise DeltaError(_SHORTER)
        file.write(chunk)
        size -= len(chunk)
