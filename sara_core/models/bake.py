"""Streaming a delta into a checkpoint file: one tensor in memory at a time, untouched tensors byte for byte."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ..delta import SparseDelta, SparseEntry
from ..delta import metadata as keys
from ..delta.delta import check_fits
from ..delta.text_part import split
from ..delta.translate import to_diffusers
from ..delta.variants import left_out
from ..errors import DeltaError, UnsupportedModelError
from ..files import atomic, container, disk
from ..foreign_text import NAME, plain
from ..names.diffusers import diffusers_parts, is_diffusers
from ..names.resolve import resolve
from ..names.stored import loaded_names
from ..numbers import checked
from . import rewriting
from .bake_report import BakeReport
from .gguf_file import ENDING as GGUF
from .gguf_file import GgufFile
from .quantised import padding
from .quantised.file import QuantisedFile
from .quantised.formats import Shape
from .text_encoders import stored_entries

# In which a quantised weight is written: its own format, or one of these.
AS_THE_FILE = "as the file"
PRECISIONS = {"bf16": "BF16", "fp16": "F16"}

OnProgress = Callable[[int, int], None] | None


def bake(
    base: str | os.PathLike,
    target: str | os.PathLike,
    delta: SparseDelta,
    strength: float = 1.0,
    on_progress: OnProgress = None,
    overwrite: bool = True,
    precision: str = AS_THE_FILE,
) -> BakeReport:
    """Write to `target` the checkpoint `base` with every named weight round(float32(weight) + strength · Δ).

    precision: of quantised weights, named by the delta or not: AS_THE_FILE, where each keeps its format and, wherever
        they can hold the changes, its scales; or "bf16" or "fp16", without what belongs to the quantisation. A GGUF
        file can only be written so, as safetensors.

    Each other weight keeps its dtype, every other tensor its bytes, the file its metadata, to which the bake is added
    under "sara.baked". The target appears only when complete. `on_progress` is called with bytes done and bytes in all,
    and may raise to stop.
    On another variant of its model (for inpainting …) the first layer's change is left out, and so is that of text
    encoders that are not in the file; the report says so.
    Raises DeltaError if a file cannot be read or written or is damaged, the delta does not fit the checkpoint otherwise
    or makes an element too large for its dtype, or the strength is not finite; NameTakenError if the target would
    replace something and must not; UnsupportedModelError, by name, for a weight that is quantised in a way that is not
    known, or whose format cannot hold changes of single elements.
    """
    base, target = Path(base), Path(target)
    strength = checked(strength, "The strength")
    if precision != AS_THE_FILE and precision not in PRECISIONS:
        raise DeltaError(f"The precision is {precision!r}. Choose {AS_THE_FILE!r}, {' or '.join(PRECISIONS)}.")
    is_gguf = base.suffix.lower() == GGUF
    if is_gguf and precision == AS_THE_FILE:
        raise UnsupportedModelError(
            f"'{base.name}' is quantised (GGUF), in which nothing is written. Choose bf16 or fp16 as the precision of "
            "the result, a .safetensors file."
        )
    if not is_gguf and base.suffix.lower() != ".safetensors":
        raise DeltaError(f"'{base.name}' is not a .safetensors file. Save the checkpoint as .safetensors first.")
    if not is_gguf:
        with container.opened(base):
            pass  # the library that reads such files everywhere has checked the header that is read by hand below
    if target.exists() and target.samefile(base):
        raise DeltaError(f"'{base.name}' cannot be baked into itself. Choose another name for the result.")
    with open(base, "rb") as source:
        checkpoint = GgufFile(base) if is_gguf else QuantisedFile(source, base.name)
        shapes = checkpoint.shapes
        of_model, of_text = split(delta)
        entries = _named_as_in(shapes, of_model.entries, base.name)
        skipped = left_out(entries, {name: shapes[name] for name in entries})
        entries = {name: entry for name, entry in entries.items() if name not in skipped}
        in_text, absent = stored_entries(of_text.entries, shapes, base.name)
        entries |= in_text
        if absent and not entries:
            raise DeltaError(f"Nothing would be baked. {' '.join(absent)} Choose a checkpoint that has it.")
        if not is_gguf:
            entries = {name: _placed(checkpoint, name, entry, precision) for name, entry in entries.items()}
        if precision == AS_THE_FILE:
            found = {name: checkpoint.found(name) for name in entries}
            metadata, size = _recorded(checkpoint.metadata, delta, strength), os.path.getsize(base)
            write = rewriting.in_its_precision(source, checkpoint, found, entries, strength, metadata, on_progress)
        else:
            readable = checkpoint if is_gguf else rewriting.Dequantised(checkpoint)
            metadata = _recorded(readable.metadata, delta, strength)
            size, write = rewriting.without_quantisation(
                readable, entries, strength, PRECISIONS[precision], metadata, on_progress
            )
        for name, entry in entries.items():  # packed weights of an unknown kind have another shape, too
            check_fits(name, entry, shapes[name])
        disk.check_room(target, size, "The checkpoint")
        with atomic.writing(target, overwrite) as file:
            loss = write(file)
    changes = sum(len(entry.indices) for entry in entries.values())
    return BakeReport.of(changes, loss, (*skipped.values(), *absent))


def _named_as_in(
    tensors: Mapping[str, Shape], entries: Mapping[str, SparseEntry], checkpoint: str
) -> dict[str, SparseEntry]:
    """The entries by the names of the file's tensors, which may be diffusers'."""
    target = f"the checkpoint '{checkpoint}'"
    stored = loaded_names(tensors)
    shapes = {name: tensors[found] for name, found in stored.items()}
    parts = diffusers_parts(shapes, whole=True)
    if not is_diffusers(shapes, parts) or entries.keys() <= tensors.keys():
        return {found: entries[name] for name, found in resolve(entries, tensors, target).items()}
    known = resolve(entries, {part.name for part in parts.values()}, target)
    named = to_diffusers({known[name]: entry for name, entry in entries.items()}, parts)
    return {stored[name]: entry for name, entry in named.items()}


def _placed(checkpoint: QuantisedFile, name: str, entry: SparseEntry, precision: str) -> SparseEntry:
    """The entry as it lies in the file, which may have its weight filled up to whole blocks."""
    shape = checkpoint.shapes[name]
    if entry.shape == shape or (found := checkpoint.found(name)) is None:
        return entry
    if not padding.is_padded(found.format, entry.shape, shape):
        return entry
    if precision != AS_THE_FILE:
        raise UnsupportedModelError(
            f"The weight '{plain(name, NAME)}' of '{checkpoint.label}' is filled up to whole blocks of "
            f"{found.format.name}, and the file does not say where which weight ends. Choose '{AS_THE_FILE}' as the "
            "precision of the result, or use the fp16, bf16 or fp32 version of the checkpoint."
        )
    return padding.placed(entry, shape)


def _recorded(metadata: Mapping[str, str], delta: SparseDelta, strength: float) -> dict[str, str]:
    """The checkpoint's metadata with this bake added to the list of those it went through."""
    try:
        earlier = json.loads(metadata.get(keys.BAKED, "[]"))
    except (ValueError, RecursionError):
        earlier = []
    bake_record = {"strength": strength, "changed": delta.nnz, "delta": delta.metadata}
    return {**metadata, keys.BAKED: json.dumps([*(earlier if isinstance(earlier, list) else []), bake_record])}
